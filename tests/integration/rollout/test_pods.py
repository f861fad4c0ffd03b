"""A rolling restart of every pod under load, and the sudden death of one: what callers see of it."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.apiserver.server import ApiServer
from tests.discovering import NAMESPACE, kubeconfig
from tests.integration.rollout.callers import (
    BEFORE_THE_FIRST_BYTE,
    How,
    Load,
    Wanted,
    ask,
    calling,
    wanted_chats,
)
from tests.integration.rollout.deployment import Member, deployment
from tests.integration.rollout.lateness import Lateness, lateness
from tests.integration.rollout.lines import Line
from tests.integration.rollout.processes import Gateways, listed, simulated
from tests.integration.test_process import SECONDS, Served

PODS = 3
ROUNDS = int(os.environ.get("ROLLOUT_ROUNDS", "1"))
CUT_IS_SAID_SECONDS = 4.0
"""A terminating pod that says nothing for 2 s is asked for its health, and given up if it does not answer: twice that,
since the look-out is four times a second."""
SEEN_SECONDS = 0.5
"""Within so long a gateway sees what the API server has said."""
TOLD_SECONDS = 1.0
"""Within so long a client hears of its pod's death."""
STREAMS = 600
HELD = 16.0
"""Times as slow as it is: no stream ends before the last one has begun, on a machine that makes that late."""
GAUGES = ("poolgate_in_flight", "poolgate_pod_in_flight", "poolgate_queue_depth")


@asynccontextmanager
async def before(server: ApiServer, folder: Path) -> AsyncIterator[Served]:
    """A gateway that finds its pods at this API server, ready."""
    with kubeconfig(server) as file:
        discovery = {"mode": "kubernetes", "namespaces": [NAMESPACE], "pod_networks": ["127.0.0.0/8"]}
        gateways = Gateways(folder, {"discovery": discovery}, {"KUBECONFIG": str(file)})
        async with gateways.serving() as gateway:
            await gateway.until_ready()
            yield gateway


async def all_begun(lines: list[Line]) -> None:
    """Wait until each has the first byte of an answer's body."""
    async with asyncio.timeout(SECONDS):
        while not all(line.begun for line in lines):
            await asyncio.sleep(0.01)


async def goes_on(lines: list[Line]) -> None:
    """Wait until one of them hears more than it has."""
    before = [line.events for line in lines]
    async with asyncio.timeout(SECONDS):
        while [line.events for line in lines] == before:
            await asyncio.sleep(0.01)


async def at_rest(gateway: Served) -> None:
    """Every gauge of what runs is back to zero."""
    async with asyncio.timeout(SECONDS):
        while any((await running(gateway)).values()):
            await asyncio.sleep(0.05)


async def running(gateway: Served) -> dict[str, float]:
    """What the gauges of running and waiting requests say."""
    scraped = (await gateway.ops("/metrics")).body.decode()
    return {
        f"{family.name}{sample.labels}": sample.value
        for family in text_string_to_metric_families(scraped)
        if family.name in GAUGES
        for sample in family.samples
    }


@dataclass(frozen=True)
class Manner:
    """How pods end."""

    flags: tuple[str, ...]
    pre_stop_seconds: float
    grace_seconds: float
    one_at_a_time: bool
    """The next is told to go when the last one is gone and nobody waits any more who waited there, not when its
    successor is ready."""


FINISHING = Manner(
    ("--shutdown=drain", "--shutdown-timeout=60"), pre_stop_seconds=1.0, grace_seconds=64.0, one_at_a_time=False
)
"""With a preStop hook, and time for what runs."""
HANGING = Manner(("--shutdown=silent",), pre_stop_seconds=0.0, grace_seconds=6.0, one_at_a_time=True)
"""As vLLM does by itself: the port refuses, open streams hear nothing more. A request that meets two such pods gets no
third, so they go one at a time."""


async def restarted(folder: Path, chats: list[list[Wanted]], manner: Manner) -> tuple[Load, list[Member], Lateness]:
    """What callers heard while every pod was replaced, the pods that went, and how late the machine made it all."""
    pre_stop_seconds, grace_seconds = manner.pre_stop_seconds, manner.grace_seconds
    async with (
        ApiServer() as server,
        deployment(
            server, PODS, *manner.flags, pre_stop_seconds=pre_stop_seconds, grace_seconds=grace_seconds
        ) as fleet,
        before(server, folder) as gateway,
        lateness(lambda: [gateway.process.pid, *(member.process.pid for member in fleet.gone)]) as late,
        calling(lambda: Line.connect(gateway.port), gateway.key, chats) as load,
    ):
        for _ in range(ROUNDS):
            for member in list(fleet.members):
                await fleet.replace(member)
                if manner.one_at_a_time:
                    await fleet.settled()
                    await load.all_ask_anew(SECONDS)
        await fleet.settled()
        assert len(fleet.gone) == PODS * ROUNDS
    return load, fleet.gone, late


def assert_nobody_is_sent_to(member: Member, load: Load, late: Lateness) -> None:
    """No new request goes to a pod that the API server has called terminating."""
    came = [heard.sent_at for heard in load.heard if heard.pod == member.name and heard.sent_at > member.marked_at]
    after = [sent_at - member.marked_at - late.between(member.marked_at, sent_at) for sent_at in came]
    assert not [seconds for seconds in after if seconds > SEEN_SECONDS]


async def test_a_rolling_restart_of_pods_that_finish_their_streams_goes_unnoticed(tmp_path: Path) -> None:
    chats = [*await wanted_chats(14, (10, 30, 60)), *await wanted_chats(4, (20,), stream=False)]
    load, gone, late = await restarted(tmp_path, chats, FINISHING)
    assert load.counts == {How.WHOLE: len(load.heard)}
    for member in gone:
        assert member.exit_code == 0
        assert_nobody_is_sent_to(member, load, late)
    # The first to go had streams to finish; those that took their place may have been too cold for any.
    for member in gone[:PODS]:
        assert any(heard.pod == member.name and heard.spans(member.marked_at) for heard in load.heard)


async def test_a_rolling_restart_of_pods_that_hang_cuts_only_what_had_begun_and_says_so_soon(tmp_path: Path) -> None:
    chats = [*await wanted_chats(16, (30, 60)), *await wanted_chats(1, (5,), stream=False)]
    load, gone, late = await restarted(tmp_path, chats, HANGING)
    assert not load.ended(*BEFORE_THE_FIRST_BYTE), load.counts
    assert {heard.how for heard in load.heard} == {How.WHOLE, How.TOLD}, load.counts
    went = {member.name: member for member in gone}
    for heard in load.ended(How.TOLD):
        terminated_at = went[heard.pod].terminated_at
        assert heard.begun_at
        assert heard.sent_at < terminated_at
        waited = late.between(terminated_at, heard.ended_at)
        assert heard.ended_at - terminated_at - waited < CUT_IS_SAID_SECONDS
    # The first to go had streams to finish; those that took their place may have been too cold for any.
    assert {heard.pod for heard in load.ended(How.TOLD)} >= {member.name for member in gone[:PODS]}
    for member in gone:
        assert_nobody_is_sent_to(member, load, late)


async def test_a_killed_pod_costs_exactly_its_own_streams_and_they_are_told_within_a_second(tmp_path: Path) -> None:
    chats = await wanted_chats(60, (40,))
    async with (
        simulated(token_ms=150.0) as a,
        simulated(token_ms=150.0) as b,
        simulated(token_ms=150.0) as c,
    ):
        each = STREAMS // PODS
        pools = {"chat": {"max_in_flight_per_pod": each}}
        gateways = Gateways(tmp_path, {"discovery": listed(a=a, b=b, c=c), "pools": pools})
        async with gateways.serving() as gateway:
            await gateway.until_ready()
            for pod in (a, b, c):
                await pod.slow(HELD)
            lines = [await Line.connect(gateway.port) for _ in range(STREAMS)]
            asking = [
                asyncio.create_task(ask(line, lambda: Line.connect(gateway.port), gateway.key, chats[number % 60][0]))
                for number, line in enumerate(lines)
            ]
            await all_begun(lines)
            assert sum((await running(gateway)).values()) == 2 * STREAMS
            for pod in (a, b, c):
                await pod.slow(1.0)
            await goes_on(lines)
            async with lateness(lambda: [gateway.process.pid]) as late:
                await a.kill()
                killed_at = asyncio.get_running_loop().time()
                heard = [one for _, one in await asyncio.gather(*asking)]
            ended = Counter((one.pod, one.how) for one in heard)
            assert ended == {("a", How.TOLD): each, ("b", How.WHOLE): each, ("c", How.WHOLE): each}
            cut = [one for one in heard if one.pod == "a"]
            told_at = max(one.ended_at for one in cut)
            assert told_at - killed_at - late.between(killed_at, told_at) < TOLD_SECONDS
            assert {one.told for one in cut} <= {"upstream_reset", "upstream_truncated"}
            await at_rest(gateway)
            for line in lines:
                line.leave()
