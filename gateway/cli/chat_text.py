"""A chat on a terminal: the answer as it comes, a sign of waiting before it, and its figures after it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.status import Status

from gateway.cli import chat_client
from gateway.cli.figures import duration, number, rate
from gateway.core.clock import Clock

_STEERING = dict.fromkeys((*range(32), *range(127, 160)), "�")
_STEERING |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
"""What a terminal would obey instead of show, but for line ends."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A chat that has ended well, times in milliseconds."""

    answered: chat_client.Answered
    ttft_ms: float | None
    duration_ms: float

    @property
    def tokens(self) -> int | None:
        """Of the answer."""
        count = self.answered.usage.get("completion_tokens")
        return count if isinstance(count, int) else None

    @property
    def tokens_per_second(self) -> float | None:
        """After the first one."""
        if self.tokens is None or self.tokens < 2 or self.ttft_ms is None or self.duration_ms <= self.ttft_ms:
            return None
        return (self.tokens - 1) / (self.duration_ms - self.ttft_ms) * 1000

    def summary(self) -> str:
        """In a line."""
        answered, speed = self.answered, self.tokens_per_second
        parts = [
            answered.model,
            "no token came" if self.ttft_ms is None else f"first token after {duration(self.ttft_ms)}",
            "" if self.tokens is None else f"{number(self.tokens)} tokens",
            "" if speed is None else f"{rate(speed)} tokens/s",
            f"{duration(self.duration_ms)} in all",
            f"pod {answered.pod}" if answered.pod else "",
            f"request {answered.request_id}" if answered.request_id else "",
            "cut at the longest answer allowed" if answered.finish == "length" else "",
        ]
        return " · ".join(part for part in parts if part)

    def told(self) -> dict[str, Any]:
        """For machines."""
        answered = self.answered
        return {
            "model": answered.model,
            "text": answered.text,
            "finish": answered.finish,
            "ttft_ms": round(self.ttft_ms, 1) if self.ttft_ms is not None else None,
            "duration_ms": round(self.duration_ms, 1),
            "prompt_tokens": answered.usage.get("prompt_tokens"),
            "completion_tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second, 1) if self.tokens_per_second is not None else None,
            "pod": answered.pod,
            "request_id": answered.request_id,
        }


class Printer:
    """Where the answer goes. `quiet`: nowhere, and no sign of waiting either."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._guarded = sys.stdout.isatty()
        self._waiting: Status | None = None
        self._open = False

    def wait(self, model: str) -> None:
        """Nothing has come yet."""
        if not self._quiet and sys.stderr.isatty():
            console = Console(stderr=True, markup=False, highlight=False, emoji=False)
            self._waiting = console.status(f"waiting for {self.shown(model)} ...")
            self._waiting.start()

    def print(self, piece: str) -> None:
        """A piece of the answer, at once."""
        self._stop_waiting()
        if not self._quiet:
            sys.stdout.write(self.shown(piece) if self._guarded else piece)
            sys.stdout.flush()
            self._open = not piece.endswith("\n")

    def end(self) -> None:
        """What comes next begins its own line."""
        self._stop_waiting()
        if self._open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._open = False

    def shown(self, text: str) -> str:
        """Without what would steer a terminal."""
        return text.translate(_STEERING)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None


async def talk(url: str, key: str | None, model: str | None, body: Mapping[str, Any], out: Printer) -> Talk:
    """One chat. Its connection closes with it, however it ends: closing is what frees the pod.

    Raises `chat_client.Unanswered`.
    """
    now, answered = Clock().monotonic, chat_client.Answered()
    first_at: float | None = None
    async with chat_client.connect(url, key) as client:
        answered.model = model or await chat_client.first_model(client)
        out.wait(answered.model)
        began = now()
        async for piece in chat_client.stream(client, {"model": answered.model, **body}, answered):
            if first_at is None:
                first_at = now()
            if piece:
                out.print(piece)
        ended = now()
    ttft = None if first_at is None else (first_at - began) * 1000
    return Talk(answered, ttft, (ended - began) * 1000)
