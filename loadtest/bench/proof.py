"""Before a target is measured it has to show that it does what the others do: passes tokens on, to both pods.

A proxy that collects an answer before it sends it on, or that sends all callers to one pod, is cheaper than it
should be. So a few streams are opened that end only when they are told to: each must bring tokens while the
pod still sends, and each pod must have some of them. That each comes whole is checked as in any round.
"""

import http.client
import json
import time
from typing import Final

from loadtest.bench.backend import FINISH_PATH, LOAD_PATH
from loadtest.bench.client import NotWhole, Streamed, StreamLoad, open_streams
from loadtest.bench.meaning import StreamedByMeaning
from loadtest.bench.targets import Running
from loadtest.bench.wire import Wish, chat_request, spread, stream_body

_HOST: Final = "127.0.0.1"
_STREAMS: Final = 24
"""A fair coin sends so many to one pod once in eight million times."""
_PERIOD_US: Final = 50_000
_MORE_TOKENS_THAN_COME: Final = 1_000_000
_SECONDS: Final = 60.0


async def prove(target: Running, key: str, pods: tuple[int, ...]) -> None:
    """Raises NotWhole with what was not shown."""
    load = StreamLoad()
    requests = tuple(
        chat_request(
            _HOST,
            target.ports[index % len(target.ports)],
            key,
            stream_body(Wish(_MORE_TOKENS_THAN_COME, _PERIOD_US, phase_us)),
            target.headers,
        )
        for index, phase_us in enumerate(spread(_STREAMS, _PERIOD_US))
    )
    try:
        await _show(load, target, requests, pods)
    finally:
        await load.abandon()  # nothing is open if all was shown


async def _show(load: StreamLoad, target: Running, requests: tuple[bytes, ...], pods: tuple[int, ...]) -> None:
    kind = Streamed if target.verbatim else StreamedByMeaning
    await open_streams(load, target.ports, requests, per_second=200, kind=kind)
    until = time.monotonic() + _SECONDS
    while load.begun < _STREAMS or load.tokens < 2 * _STREAMS:
        if time.monotonic() > until:
            raise NotWhole(f"it does not stream: {load.begun} of {_STREAMS} streams began, {load.tokens} tokens came")
        await load.watch(_PERIOD_US / 1e6)
    each = [_told(pod, "GET", LOAD_PATH)["server_load"] for pod in pods]
    _told(pods[0], "POST", FINISH_PATH)
    await load.ended(_SECONDS)
    if load.whole != _STREAMS:
        raise NotWhole(f"{load.whole} of {_STREAMS} streams came whole")
    if not all(each):
        raise NotWhole(f"it does not balance: of {_STREAMS} streams the pods had {', '.join(map(str, each))}")


def _told(pod: int, method: str, path: bytes) -> dict[str, int]:
    """A pod's answer; for a moment nothing else is done here."""
    connection = http.client.HTTPConnection(_HOST, pod, timeout=30)
    try:
        connection.request(method, path.decode())
        told: dict[str, int] = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()
