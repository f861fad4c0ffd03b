"""A rolling restart of every gateway replica, as a Deployment does it: nobody notices."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from tests.integration.rollout.callers import How, Load, calling, wanted_chats
from tests.integration.rollout.processes import Gateways, listed, simulated
from tests.integration.rollout.service import Service, service
from tests.integration.test_process import Served

REPLICAS = 2
ROUNDS = int(os.environ.get("ROLLOUT_ROUNDS", "1"))
LOADS: dict[str, tuple[tuple[int, ...], Callable[[Random], float]]] = {
    # Streams that run when their replica is told to go, and connections that are used again at once.
    "streams": ((10, 30, 60), lambda chance: chance.choice((0.0, 0.05))),
    # A replica with moments in which nothing runs, and connections that lie idle for seconds.
    "short-chats": ((1, 2), lambda chance: chance.choice((0.1, 0.3, 2.0))),
}


async def replaced(old: Served, new: Served, rotation: Service) -> float:
    """Out with the old one as soon as the new one is in rotation. When it was told to go."""
    rotation.add(new)
    await rotation.until(new, in_rotation=True)
    old.signal(signal.SIGTERM)
    return asyncio.get_running_loop().time()


def assert_seamless(load: Load, told_at: dict[int, float]) -> None:
    """Every request was answered in full, those to replicas on their way out as well."""
    assert load.counts == {How.WHOLE: len(load.heard)}
    for port, moment in told_at.items():
        assert any(heard.port == port and heard.sent_at > moment for heard in load.heard), "the old one was not asked"


@pytest.mark.parametrize(("tokens", "pause_seconds"), LOADS.values(), ids=LOADS)
async def test_a_rolling_restart_of_every_replica_goes_unnoticed(
    tmp_path: Path, tokens: tuple[int, ...], pause_seconds: Callable[[Random], float]
) -> None:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(simulated()) for _ in range(2)]
        gateways = Gateways(tmp_path, {"discovery": listed(a=a, b=b)})
        rotation = await stack.enter_async_context(service())
        replicas = [await stack.enter_async_context(gateways.serving()) for _ in range(REPLICAS)]
        for replica in replicas:
            rotation.add(replica)
        for replica in replicas:
            await rotation.until(replica, in_rotation=True)
        chats = await wanted_chats(16, tokens)
        told_at: dict[int, float] = {}
        gone: list[Served] = []
        async with calling(rotation.connect, gateways.key, chats, pause_seconds=pause_seconds) as load:
            for _ in range(ROUNDS):
                for place, old in enumerate(replicas):
                    replicas[place] = await stack.enter_async_context(gateways.serving())
                    told_at[old.port] = await replaced(old, replicas[place], rotation)
                    gone.append(old)
                for old in gone:
                    await old.ended_well()
        assert_seamless(load, told_at)
        for old in gone:
            assert old.lines
            assert {line["outcome"] for line in old.lines} == {"completed"}
