"""Pods that work in the time of a scene, step by step, and callers that come in it, whatever becomes of them.

A pod takes so many requests at once, and each takes it so many steps. What is more waits within it. Who leaves is
dropped at once, and what was done for it was done in vain.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Self

from tests.fakes import MODELS, answer
from tests.running import Running
from tests.scenes.client import Client
from tests.scenes.says import GOOD
from tests.scenes.stage import Stage
from tests.scenes.watching import Answering, Watch


class Paced:
    """`step` lets it work. An async context; `watch` hears what it says."""

    def __init__(self, name: str, watch: Watch, *, at_once: int, steps: int) -> None:
        self.name = name
        self.watch = watch
        self.held: dict[_Line, int] = {}
        """Those that it has, the oldest first, and how many steps each still takes."""
        self.received = 0
        self._at_once = at_once
        self.steps = steps
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Line(self), "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for line in list(self.held):
            line.transport.abort()

    def step(self) -> None:
        """Work on the oldest."""
        for line in list(self.held)[: self._at_once]:
            self.held[line] -= 1
            if not self.held[line]:
                line.answer()


class _Line(asyncio.Protocol):
    """One connection from a gateway."""

    transport: asyncio.Transport
    _answering: Answering

    def __init__(self, pod: Paced) -> None:
        self._pod = pod
        self._came = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a server
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, dash, body = self._came.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not dash or len(body) < int(length or b"0"):
            return
        request, self._came = self._came, b""
        if head.startswith(b"POST "):
            self._pod.received += 1
            self._answering = self._pod.watch.reached(self._pod.name, request)
            self._pod.held[self] = self._pod.steps
        else:
            known = {b"/v1/models": answer(MODELS), b"/health": answer(b"")}
            self.transport.write(known.get(head.split(b" ")[1], answer(b"{}", b"404 Not Found")))

    def answer(self) -> None:
        self._end(GOOD)
        self.transport.write(GOOD)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._pod.held:
            self._end(b"")

    def _end(self, said: bytes) -> None:
        del self._pod.held[self]
        self._answering.says(said)
        self._answering.ends()


class Rush:
    """Callers that come to replicas in rotation, whatever came of those before, and wait for so long each."""

    def __init__(self, stage: Stage, pods: Sequence[Paced], *, patience_steps: int) -> None:
        self.rotation: list[Running] = []
        """The replicas that callers are sent to."""
        self._stage = stage
        self._pods = pods
        self._patience_steps = patience_steps
        self._asked: dict[Client, int] = {}
        self._steps = 0

    async def step(self, callers: int) -> Counter[str]:
        """So many come, and the pods do as much as they can. What became of whom."""
        stage = self._stage
        self._steps += 1
        for place in range(callers):
            client = await stage.asks(self.rotation[place % len(self.rotation)])
            self._asked[client] = self._steps
        await stage.until(self._placed, "requests wait for what is no pod")
        for pod in self._pods:
            pod.step()
        await stage.until(self._placed, "requests wait for what is no pod")
        came: Counter[str] = Counter()
        for client, since in list(self._asked.items()):
            if client.has_heard:
                came["answered" if (await client.answer()).status == 200 else "refused"] += 1
            elif self._steps - since >= self._patience_steps:
                client.leave()
                came["lost"] += 1
            else:
                continue
            del self._asked[client]
        stage.sweep(1)
        return came

    def _placed(self) -> bool:
        """Each request is at a pod, in a line, or answered."""
        active = sum(each.gateway.pipeline.active for each in self._stage.gateways)
        heard = sum(each.has_heard for each in self._asked)
        return active == sum(len(pod.held) for pod in self._pods) + waiting(self._stage) and active + heard >= len(
            self._asked
        )


def waiting(stage: Stage) -> int:
    """How many are in the gateways' lines."""
    return sum(count for each in stage.gateways for _, count in each.gateway.balancer.waiting())
