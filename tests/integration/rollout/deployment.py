"""A Deployment of simulated pods, at a stand-in API server: what Kubernetes says of each, and does to its process.

A pod ends as a kubelet ends it: it is marked for deletion, which everybody who watches sees; its preStop hook sleeps;
SIGTERM; it is unready; its process exits, or is killed when the grace period is over; its object is gone.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.apiserver import cluster
from tests.apiserver.server import ApiServer
from tests.discovering import appear
from tests.integration.rollout.processes import PodProcess


@dataclass
class Member:
    """One pod. Times are the loop's; 0: not yet."""

    name: str
    process: PodProcess
    object: cluster.Pod
    marked_at: float = 0.0
    """It is terminating, and the API server has said so."""
    terminated_at: float = 0.0
    """It had its SIGTERM."""
    exit_code: int | None = None


class Deployment:
    """See the module's text."""

    def __init__(
        self, server: ApiServer, flags: tuple[str, ...], *, pre_stop_seconds: float, grace_seconds: float
    ) -> None:
        self._server = server
        self._flags = flags
        self._pre_stop_seconds = pre_stop_seconds
        self._grace_seconds = grace_seconds
        self._made = 0
        self._ending: list[asyncio.Task[None]] = []
        self.members: list[Member] = []
        """Those that nobody has told to go."""
        self.gone: list[Member] = []

    async def grow(self) -> None:
        """One pod more: its process serves, and it is ready."""
        process = await PodProcess.start(*self._flags)
        name = f"chat-{self._made}"
        self._made += 1
        self.members.append(Member(name, process, appear(self._server, name, process)))

    async def replace(self, member: Member) -> None:
        """A new pod, and when that is ready out with this one; its end goes on beside what comes next."""
        await self.grow()
        self.members.remove(member)
        self.gone.append(member)
        self._ending.append(asyncio.create_task(self._end(member)))

    async def settled(self) -> None:
        """Wait until whoever was told to go is gone."""
        await asyncio.gather(*self._ending)

    async def close(self) -> None:
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for member in (*self.members, *self.gone):
            await member.process.kill()

    async def _end(self, member: Member) -> None:
        now = asyncio.get_running_loop().time
        member.marked_at = now()
        member.object.delete()
        await asyncio.sleep(self._pre_stop_seconds)
        member.terminated_at = now()
        member.process.signal(signal.SIGTERM)
        member.object.become_unready()
        try:
            async with asyncio.timeout(self._grace_seconds - self._pre_stop_seconds):
                member.exit_code = await member.process.ended()
        except TimeoutError:
            member.process.signal(signal.SIGKILL)
            member.exit_code = await member.process.ended()
        member.object.kill()


@asynccontextmanager
async def deployment(
    server: ApiServer, pods: int, *flags: str, pre_stop_seconds: float, grace_seconds: float
) -> AsyncIterator[Deployment]:
    """A Deployment with so many ready pods."""
    made = Deployment(server, flags, pre_stop_seconds=pre_stop_seconds, grace_seconds=grace_seconds)
    try:
        await asyncio.gather(*(made.grow() for _ in range(pods)))
        yield made
    finally:
        await made.close()
