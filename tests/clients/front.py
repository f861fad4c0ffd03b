"""The gateway as a client sees it, and how a call is played before it."""

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, TypeVar
from urllib.request import urlopen

import pytest

Role = Literal["embed", "score", "speech"]
Call = Callable[["Front"], None] | Callable[["Front"], Coroutine[Any, Any, None]]
Marked = TypeVar("Marked", bound=Callable[..., Any])

IDLE_SECONDS = 30.0
"""Of a generation that would take more than twice as long, left to itself (`questions.ENDLESS`): a machine may be busy.
"""


@dataclass(frozen=True)
class Front:
    """An address, a key, and the models behind it by what they can do."""

    url: str
    """Without `/v1`."""
    key: str
    pod_url: str
    """The pod that serves `chat`: a call may look whether it is busy."""
    chat: str = "acme/chat"
    embed: str | None = None
    score: str | None = None
    speech: str | None = None

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def wait_until_idle(self) -> None:
        """Until the pod serves nobody. Both backends count their open requests at `/load`."""
        give_up_at = time.monotonic() + IDLE_SECONDS
        while self.open_requests():
            assert time.monotonic() < give_up_at, f"the pod still works, {IDLE_SECONDS:g} s after its client left"
            time.sleep(0.01)

    def open_requests(self) -> int:
        with urlopen(f"{self.pod_url}/load", timeout=30) as answer:
            count: int = json.load(answer)["server_load"]
            return count


def needs(role: Role) -> Callable[[Marked], Marked]:
    """Mark a call that wants a model of this kind. Where there is none, the call must be a 404 (see `play`)."""

    def mark(call: Marked) -> Marked:
        call.__dict__["needs"] = role
        return call

    return mark


def needed(call: Call) -> Role | None:
    """The kind of model that a call wants beside one that chats."""
    role: Role | None = call.__dict__.get("needs")
    return role


def calls(module: ModuleType) -> list[Call]:
    """The calls of a module: its public functions."""
    return [
        function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    ]


def calls_of(module: ModuleType) -> pytest.MarkDecorator:
    """Parametrizes a test by the calls of a module."""
    return pytest.mark.parametrize("call", calls(module), ids=lambda call: call.__name__)


def play(call: Call, front: Front) -> None:
    """Make one call. What the models before us cannot do is asked of the one that chats, and must be a clean 404."""
    role = needed(call)
    if role is None or getattr(front, role) is not None:
        _run(call, front)
        return
    with pytest.raises(Exception) as refused:  # noqa: PT011 - each client has its own class; the status is what counts
        _run(call, replace(front, **{role: front.chat}))
    assert getattr(refused.value, "status_code", None) == 404, refused.value
    assert "not_found" in str(getattr(refused.value, "body", "")), refused.value


def _run(call: Call, front: Front) -> None:
    running = call(front)
    if running is not None:
        asyncio.run(running)
