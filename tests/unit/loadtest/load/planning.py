"""Requests and schedules as short as a test needs them, and whom they are sent to in vain."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from socket import socket

from loadtest.load.schedule import Planned, Schedule, Step

PATH = "/v1/chat/completions"


def planned(
    number: int = 0,
    at: float | None = 0.0,
    *,
    stream: bool = False,
    key: str = "caller",
    path: str = PATH,
    max_tokens: int = 8,
    leave_after: float | None = None,
    leave_after_tokens: int | None = None,
) -> Planned:
    body: dict[str, object] = {
        "model": "m",
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": max_tokens,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Planned(
        number=number,
        at=at,
        step=0,
        kind="chat",
        key=key,
        path=path,
        body=json.dumps(body).encode(),
        stream=stream,
        prompt_tokens=4,
        max_tokens=max_tokens,
        leave_after=leave_after,
        leave_after_tokens=leave_after_tokens,
    )


def open_loop(requests: Sequence[Planned], seconds: float = 1.0) -> Schedule:
    return Schedule(requests, (Step("all", 0.0, seconds, len(requests) / seconds),), None, seconds)


def evenly(count: int, seconds: float, *, stream: bool = False) -> Schedule:
    """So many requests at one distance."""
    return open_loop([planned(n, n * seconds / count, stream=stream) for n in range(count)], seconds)


def closed_loop(workers: int, count: int, seconds: float = 60.0, *, stream: bool = False) -> Schedule:
    requests = [planned(n, None, stream=stream) for n in range(count)]
    return Schedule(requests, (Step("all", 0.0, seconds, None),), workers, seconds)


@contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that is taken, so that nobody else comes to listen there, and that refuses who connects."""
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
