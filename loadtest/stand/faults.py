"""What befalls the stand at its second, each with its mark on the timeline: when it began, and when it was mended.

A fault that cannot be made ends the run: a verdict about a kill that never was would be worth nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from loadtest.bench.processes import BenchError
from loadtest.load.plan import Fault
from loadtest.stand.looking import total
from loadtest.stand.pods import Pod
from loadtest.stand.stand import SimulatedStand
from loadtest.stand.watching import Watched

HEARD_SECONDS: Final = 1.0
"""So much later those before a gateway hear that it drains; until then they send."""
KUBELET_SECONDS: Final = 0.5
"""So much later than a container died its pod is not ready any more."""
SETTLE_SECONDS: Final = 1.0
"""Between one pod of a rolling restart and the next."""
MODE_LOOK_SECONDS: Final = 0.1


async def befall(stand: SimulatedStand, faults: Sequence[Fault], seen: Watched, zero: float) -> None:
    """All of them, each at its second; they may overlap. `zero`: the instant of `time.monotonic()` of second 0."""
    tasks = [asyncio.create_task(_befall(stand, fault, seen, zero)) for fault in faults]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _befall(stand: SimulatedStand, fault: Fault, seen: Watched, zero: float) -> None:
    """Raises BenchError."""
    await asyncio.sleep(max(0.0, zero + fault.at - time.monotonic()))
    try:
        await MAKERS[fault.what](stand, fault, seen)
    except OSError as error:
        raise BenchError(f"{fault.what} could not be made: {error}") from error


async def kill_pod(stand: SimulatedStand, fault: Fault, seen: Watched) -> None:
    """SIGKILL. In a cluster the kubelet sees it a moment later; a pod that comes back has its old name."""
    pod = _pod_of(stand, fault)
    stand.mark(f"{pod.name} killed")
    await pod.kill()
    if stand.cluster is not None:
        await asyncio.sleep(KUBELET_SECONDS)
        stand.cluster.crash(pod)
    if fault.back_after is None:
        return
    await asyncio.sleep(fault.back_after)
    await pod.start()
    if stand.cluster is not None:
        stand.cluster.recover(pod)
    stand.mark(f"{pod.name} back")


async def restart_pods(stand: SimulatedStand, fault: Fault, seen: Watched) -> None:
    """One after the other: terminating, SIGTERM, its answers end within the grace, a new process, ready."""
    grace = fault.grace_seconds or 30.0
    for pod in stand.pods:
        stand.mark(f"{pod.name} restarts")
        if stand.cluster is not None:
            stand.cluster.delete(pod, round(grace))
        await pod.end(grace)
        if stand.cluster is not None:
            stand.cluster.vanish(pod)
        await pod.start()
        if stand.cluster is not None:
            stand.cluster.appear(pod)
        await asyncio.sleep(SETTLE_SECONDS)
    stand.mark("all pods restarted")


async def slow_pod(stand: SimulatedStand, fault: Fault, seen: Watched) -> None:
    pod, factor = _pod_of(stand, fault), fault.factor or 4.0
    stand.mark(f"{pod.name} slower by {factor:g}")
    await pod.set_slowness(factor)
    if fault.seconds is not None:
        await asyncio.sleep(fault.seconds)
        await pod.set_slowness(1.0)
        stand.mark(f"{pod.name} as before")


async def stop_redis(stand: SimulatedStand, fault: Fault, seen: Watched) -> None:
    """SIGKILL; what comes back is empty."""
    if stand.redis is None:
        raise BenchError("stop_redis: the stand has none; say redis: true")
    stand.mark("Redis killed")
    await stand.redis.kill()
    if fault.seconds is None:
        return
    await asyncio.sleep(fault.seconds)
    await stand.redis.start()
    stand.mark("Redis back")
    while not await _all_in_redis(stand):
        await asyncio.sleep(MODE_LOOK_SECONDS)
    seen.mode_back_at = stand.clock()


async def _all_in_redis(stand: SimulatedStand) -> bool:
    """Raises OSError when a gateway is gone; one that is too busy to tell is not known to."""
    told = await asyncio.gather(*(gateway.scrape() for gateway in stand.gateways), return_exceptions=True)
    for gateway, series in zip(stand.gateways, told, strict=True):
        if isinstance(series, BaseException):
            if not isinstance(series, OSError) or not gateway.pids:
                raise series
            return False
        if total(series, "poolgate_limit_mode", 'mode="redis"') != 1:
            return False
    return True


async def replace_gateways(stand: SimulatedStand, fault: Fault, seen: Watched) -> None:
    """One after the other, a new one first. The old one's callers hear of its end a moment after itself."""
    for place, old in enumerate(list(stand.gateways)):
        new = stand.new_gateway()
        await new.start()
        await stand.knows_its_pods(new)
        stand.mark(f"{old.name} gives way to {new.name}")
        stand.gateways[place] = new
        stand.leaving.append(old)
        old.terminate()
        await asyncio.sleep(HEARD_SECONDS)
        stand.urls[place] = new.url
        code = await old.ended()
        stand.leaving.remove(old)
        if code:
            raise BenchError(f"{old.name} ended with code {code} after its drain")
    stand.mark("all gateways replaced")


def _pod_of(stand: SimulatedStand, fault: Fault) -> Pod:
    return stand.pod(fault.pod or stand.pod_names[0])


MAKERS: Final[Mapping[str, Callable[[SimulatedStand, Fault, Watched], Awaitable[None]]]] = {
    "kill_pod": kill_pod,
    "restart_pods": restart_pods,
    "slow_pod": slow_pod,
    "stop_redis": stop_redis,
    "replace_gateways": replace_gateways,
}
