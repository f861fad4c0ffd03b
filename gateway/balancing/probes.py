"""Asks a pod's `/health`, at the moments that call for it: before an ejected pod may come back, after an answer that
leaves open whether the pod or the request is ill, and where a pod on its way down has fallen silent.

Whoever asks while a question is under way gets its answer, and so does who asks within half a second of it: two
hundred requests that one pod's death cuts ask once.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial

from gateway.balancing.balancer import Balancer
from gateway.core.fleet import Pod
from gateway.core.ports import Fetch, FetchFailed

ASK_SECONDS = 1.0
FRESH_SECONDS = 0.5
LOOK_SECONDS = 0.25


class Condition(Enum):
    """What a pod's `/health` said."""

    ALIVE = "alive"
    SICK = "sick"
    """It answered, but not with 200: vLLM's engine is dead."""
    GONE = "gone"
    """It did not answer at all."""


class Probes:
    """See the module's text."""

    def __init__(self, balancer: Balancer, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._balancer = balancer
        self._fetch = fetch
        self._clock = clock
        self._asked: dict[str, tuple[float, asyncio.Task[Condition]]] = {}

    def ask(self, pod: Pod, *, died: bool = False) -> "asyncio.Task[Condition]":
        """A task with what the pod's `/health` says now; it takes a second at most. Not to be cancelled: others may
        wait for it too (`asyncio.shield`).

        `died`: it looks as if the pod had died just now, so that it was alive a moment ago is no answer.
        """
        now = self._clock()
        asked = self._asked.get(pod.uid)
        if asked is not None:
            at, task = asked
            if not task.done() or (now - at < FRESH_SECONDS and not (died and _says_alive(task))):
                return task
        task = asyncio.get_running_loop().create_task(self._condition(pod))
        self._asked[pod.uid] = (now, task)
        return task

    async def run(self) -> None:
        """Let ejected pods back whose time is over and who say they are well; ends by cancellation."""
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                now = self._clock()
                for uid in [uid for uid, (at, task) in self._asked.items() if task.done() and now - at > FRESH_SECONDS]:
                    del self._asked[uid]
                for pod in self._balancer.due(now):
                    self.ask(pod).add_done_callback(partial(self._judge, pod))
        finally:
            for _, task in self._asked.values():
                task.cancel()

    def _judge(self, pod: Pod, task: "asyncio.Task[Condition]") -> None:
        if not task.cancelled():
            self._balancer.judged(pod, alive=task.result() is Condition.ALIVE)

    async def _condition(self, pod: Pod) -> Condition:
        try:
            await self._fetch(pod, b"/health", ASK_SECONDS)
        except FetchFailed as failed:
            return Condition.SICK if failed.status else Condition.GONE
        return Condition.ALIVE


def _says_alive(task: "asyncio.Task[Condition]") -> bool:
    return not task.cancelled() and task.result() is Condition.ALIVE
