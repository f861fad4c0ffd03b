"""Each scenario is played for a few seconds, with all its processes and faults: what it promises of them holds.

How long things take is not asked here: a machine that tests may be busy. Where a policy's choice is what is promised
the requests come from so many workers, not by the clock: what stands at the pods is then the same however fast the
machine is. And with its promise broken, a scenario says no: a green one would prove nothing otherwise.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from loadtest.load.arrivals import ClosedLoop
from loadtest.load.drawing import draw
from loadtest.load.plan import Scenario
from loadtest.load.progress import Silent
from loadtest.load.reading import load, names
from loadtest.load.record import Ending
from loadtest.stand.cores import Cores
from loadtest.stand.run import at_simulated, evidence_of
from loadtest.stand.stand import laid_over
from loadtest.stand.verdicts import JUDGES, Evidence

TAKES_TIME: Final = {
    "always_in_redis",
    "added_p50_ms_at_most",
    "added_p99_ms_at_most",
    "itl_p99_ms_at_most",
    "kib_per_stream_at_most",
    "leaving_seen_within_seconds",
    "memory_growth_mib_at_most",
    "redis_again_within_seconds",
    "ttft_p50_of_key_at_least_ms",
    "ttft_p95_of_key_ms",
    "ttft_p99_without_redis_ms",
}
"""What a busy machine may answer with no."""
AT_ONCE: Final = 4
WANTS_REDIS: Final = {"admitted_over_limit_at_most", "admitted_under_limit_at_most", "true_waits_within_seconds"}
"""What is exact while Redis answers within 50 ms; a busy machine may take longer, and the gateway then says so."""
Change = Callable[[Scenario], Scenario]


def _as_it_is(scenario: Scenario) -> Scenario:
    return scenario


def _quick_tokens(scenario: Scenario) -> Scenario:
    """Ten times as many tokens a second: streams that last twenty seconds take two."""
    pods = tuple(replace(plan, flags=("--step-ms", "20")) for plan in scenario.stand.pods)
    return replace(scenario, stand=replace(scenario.stand, pods=pods))


def _short_queue(scenario: Scenario) -> Scenario:
    """Who is sent away is sent away because the line is full: nobody's wait ends by the clock."""
    return configured(scenario, {"pools": {"chat": {"queue_limit": 8, "queue_wait_seconds": 60}}})


def _at_once(scenario: Scenario) -> Scenario:
    """Pods and gateways restart side by side, one gateway and two pods."""
    (plan,) = scenario.stand.pods
    stand = replace(scenario.stand, gateways=1, pods=(replace(plan, count=2),))
    return replace(scenario, stand=stand, faults=tuple(replace(fault, at=0.2) for fault in scenario.faults))


def _only_the_kill(scenario: Scenario) -> Scenario:
    """A replaced gateway takes its five seconds, whatever the length of the run."""
    faults = tuple(fault for fault in scenario.faults if fault.what != "replace_gateways")
    return replace(scenario, faults=faults)


def _from(workers: int, requests: int, scenario: Scenario) -> Scenario:
    return replace(scenario, arrivals=ClosedLoop(workers, requests))


def _all_along(scenario: Scenario) -> Scenario:
    """What befalls it does so from second 0 to the end."""
    return replace(scenario, faults=tuple(replace(fault, at=0.0, seconds=None) for fault in scenario.faults))


def _much_slower(scenario: Scenario) -> Scenario:
    """The pod's answers take six seconds more than the others', whatever the machine adds to all."""
    return _all_along(replace(scenario, faults=tuple(replace(fault, factor=20.0) for fault in scenario.faults)))


LONG: Final = 600.0
"""Of requests from workers, who end when they have sent theirs."""


@dataclass(frozen=True)
class Short:
    seconds: float = 2.0
    scale: float = 1.0
    change: Change = _as_it_is
    too_short_for: frozenset[str] = frozenset()
    eased: Mapping[str, Any] = field(default_factory=dict)
    """Bounds for so few requests."""


LIMIT_STORM: Final = Short(
    seconds=3.0,
    scale=2.0,
    # Of the thirty that a key has one may be counted on the other side of a second.
    eased={"admitted_over_limit_at_most": 0.04, "admitted_under_limit_at_most": 0.04},
)
PREFIX: Final = Short(seconds=LONG, change=partial(_from, 8, 300), too_short_for=frozenset({"busiest_pod_at_most"}))
# Of four pods a quarter is what a policy gives that does not look.
SLOW_POD: Final = {"share_of_pod_at_most": {"chat-3": 0.21}}
SHORT: Mapping[str, Short] = {
    "burst": Short(),
    "disconnects": Short(),
    "fairness": Short(change=_short_queue),
    "limit-storm": LIMIT_STORM,
    "long-streams": Short(seconds=1.0, change=_quick_tokens),
    "overhead": Short(),
    # The pod is ejected for ten seconds, whenever it is back.
    "pod-kill": Short(seconds=3.0, too_short_for=frozenset({"share_of_pod_at_least"})),
    "prefix": PREFIX,
    "redis-down": Short(seconds=3.0, scale=2.0),
    "rolling-restart": Short(seconds=17.0, change=_at_once),
    "slow-pod": Short(seconds=LONG, change=lambda each: _from(8, 150, _much_slower(each)), eased=SLOW_POD),
    "smoke": Short(),
    "soak": Short(seconds=4.0, scale=2.0, change=_only_the_kill, too_short_for=frozenset({"recovers_within_seconds"})),
    "steady": Short(too_short_for=frozenset({"busiest_pod_at_most"})),
}


def configured(scenario: Scenario, config: Mapping[str, Any]) -> Scenario:
    """With this laid over the gateways' configuration."""
    return replace(scenario, stand=replace(scenario.stand, config=laid_over(scenario.stand.config, config)))


BROKEN: Mapping[str, tuple[str, Short, Change]] = {
    "only_whole_endings": (
        "burst",
        Short(),
        lambda scenario: configured(scenario, {"pools": {"chat": {"max_in_flight_per_pod": 1, "queue_limit": 1}}}),
    ),
    "admitted_over_limit_at_most": (
        "limit-storm",
        LIMIT_STORM,
        # Each replica counts for itself.
        lambda scenario: replace(scenario, stand=replace(scenario.stand, redis=False)),
    ),
    "extra_bursts_at_most": (
        "redis-down",
        Short(seconds=3.0, scale=2.0),
        lambda scenario: _limited_to(2, _all_along(configured(scenario, {"limits": {"on_redis_down": "allow"}}))),
    ),
    "share_of_pod_at_most": (
        "slow-pod",
        Short(seconds=6.0, change=_all_along, eased=SLOW_POD),
        lambda scenario: configured(scenario, {"pools": {"chat": {"policy": "round_robin"}}}),
    ),
    "prefix_hits_over_others_at_least": (
        "prefix",
        PREFIX,
        # The other way round: of two pools alike, one may be luckier.
        lambda scenario: configured(scenario, {"pools": {"auto": {"policy": "least"}, "least": {"policy": "auto"}}}),
    ),
}
"""By the promise: a scenario that makes it, and how the stand breaks it."""


def _short(name: str, short: Short) -> Scenario:
    scenario = load(name).scaled(short.scale).lasting(short.seconds)
    untimed = replace(scenario.objectives, ttft_ms=None, tpot_ms=None, e2e_ms=None)
    return short.change(replace(scenario, objectives=untimed, expect={**scenario.expect, **short.eased}))


EVERY: Mapping[str, Callable[[], Scenario]] = {
    **{name: partial(_short, name, short) for name, short in SHORT.items()},
    **{
        promise: partial(lambda of, short, change: change(_short(of, short)), *broken)
        for promise, broken in BROKEN.items()
    },
}
"""What can be played, by the name that a test has."""


def _limited_to(per_minute: int, scenario: Scenario) -> Scenario:
    """Those that have a limit."""
    keys = {key: fields and {"requests_per_minute": per_minute} for key, fields in scenario.stand.keys.items()}
    return replace(scenario, stand=replace(scenario.stand, keys=keys))


async def played(scenario: Scenario) -> Evidence:
    with TemporaryDirectory() as folder:
        cores = Cores.of_this_host(pinned=False)
        came = await at_simulated(scenario, draw(scenario), cores, Path(folder), Silent())
    return evidence_of(scenario, came)


async def _together(plays: Mapping[str, Scenario]) -> Mapping[str, Evidence | BaseException]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(scenario: Scenario) -> Evidence:
        async with turn:
            return await played(scenario)

    longest_first = sorted(plays, key=lambda name: -plays[name].seconds)
    came = await asyncio.gather(*(one(plays[name]) for name in longest_first), return_exceptions=True)
    return dict(zip(longest_first, came, strict=True))


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Mapping[str, Evidence | BaseException]:
    """What came of each that a test was chosen for. Some at once: most of a scenario is waiting."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = {item.callspec.params["name"] for item in here}
    return asyncio.run(_together({name: make() for name, make in EVERY.items() if name in chosen}))


def of(plays: Mapping[str, Evidence | BaseException], name: str) -> Evidence:
    came = plays[name]
    if isinstance(came, BaseException):
        raise came
    return came


def found(evidence: Evidence) -> Mapping[str, bool | None]:
    """What was said to each of the scenario's expectations, those aside that are about time."""
    aside = set(TAKES_TIME)
    if evidence.watched is not None and evidence.watched.times_by_itself:
        aside |= WANTS_REDIS
    asked = {name: value for name, value in evidence.scenario.expect.items() if name not in aside}
    return {name: JUDGES[name](evidence, value).held for name, value in asked.items()}


def test_every_scenario_is_played_here() -> None:
    assert set(SHORT) == set(names())


@pytest.mark.parametrize("name", SHORT)
def test_what_it_promises_holds(name: str, plays: Mapping[str, Evidence | BaseException]) -> None:
    evidence = of(plays, name)
    scenario = evidence.scenario
    assert len(evidence.records) == len(draw(scenario).requests)
    assert bool(evidence.marks) == bool(scenario.faults)
    assert bool(evidence.direct) == scenario.stand.direct
    broken = {name for name, held in found(evidence).items() if held is False} - SHORT[name].too_short_for
    assert not broken, [JUDGES[name](evidence, scenario.expect[name]).words for name in broken]


@pytest.mark.parametrize("name", ["disconnects", "smoke"])
def test_pods_see_who_left(name: str, plays: Mapping[str, Evidence | BaseException]) -> None:
    """Not within which time: but before the answer's end, which would come in more than a second."""
    evidence = of(plays, name)
    assert evidence.watched is not None
    left = sum(record.ending is Ending.LEFT for record in evidence.records)
    seen = max(sum(load.aborts for load in sample.pods.values() if load) for sample in evidence.watched.samples)
    assert 3 <= left <= 2 * seen


@pytest.mark.parametrize("name", BROKEN)
def test_with_its_promise_broken_it_says_no(name: str, plays: Mapping[str, Evidence | BaseException]) -> None:
    evidence = of(plays, name)
    assert found(evidence)[name] is False, JUDGES[name](evidence, evidence.scenario.expect[name]).words


@pytest.mark.parametrize("name", ["smoke"])
def test_nothing_of_it_goes_unjudged(name: str, plays: Mapping[str, Evidence | BaseException]) -> None:
    assert None not in found(of(plays, name)).values()
