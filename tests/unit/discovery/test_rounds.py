"""Each pod is asked in a task of its own, politely; what it says has an age, and silence never means full or idle."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Pod, PodLoad, PodState
from gateway.core.ports import FetchFailed
from gateway.discovery.roster import Roster
from gateway.discovery.rounds import Pace, Rounds
from gateway.discovery.source import Given, Sighting
from gateway.discovery.static import StaticPod, pods_of
from tests.fakes import Hands
from tests.turns import within
from tests.unit.discovery.test_roster import Told

PODS = pods_of([StaticPod("a-0", "h", 1, "a"), StaticPod("a-1", "h", 2, "a")])
A0, A1 = (pod.uid for pod in PODS)
QUICK = Pace(
    models=0.02,
    models_per_pod=0.0,
    models_first_again=0.005,
    gauges=0.02,
    gauges_per_replica=0.0,
    gauges_per_pod=0.0,
    count=0.005,
    count_per_replica=0.0,
    count_per_pod=0.0,
    spread=0.0,
)
AWAKE = (
    b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
    b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0\n'
)
ASLEEP = (
    b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
    b'vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 1.0\n'
)


@dataclass
class Pods:
    """What pods answer, by (uid, path); None: nothing, for ever; an error: that."""

    answers: dict[tuple[str, str], bytes | FetchFailed | None] = field(default_factory=dict)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: list[tuple[str, str]] = field(default_factory=list)

    async def fetch(self, pod: Pod, path: bytes, timeout_seconds: float) -> bytes:
        key = (pod.uid, path.decode())
        self.asked[key] += 1
        self.first.append(key)
        answer = self.answers.get(key, FetchFailed("status 404"))
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, FetchFailed):
            raise answer
        assert isinstance(answer, bytes)
        return answer


class Asking:
    """Rounds that run before pods."""

    def __init__(self, source: Told | Given, pods: Pods, pace: Pace, replicas: int) -> None:
        self.pods = pods
        self.hands = Hands()
        self.cell: Cell[Fleet] = Cell(Fleet())
        self.ours: Counter[str] = Counter()
        self.roster = Roster(source, {}, self.cell, asyncio.get_running_loop().time, lambda reason, count: None)
        self.told: list[tuple[str, PodLoad]] = []
        self.rounds = Rounds(
            self.roster,
            self.cell,
            pods.fetch,
            in_flight=lambda uid: self.ours[uid],
            told=lambda uid, load, until: self.told.append((uid, load)),
            replicas=lambda: replicas,
            clock=asyncio.get_running_loop().time,
            chance=lambda: 0.5,
            pace=pace,
        )

    def state(self, name: str) -> PodState | None:
        return {pod.name: pod.state for pod in self.cell.value.pods}.get(name)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with within(2):
            while not holds():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def asking(
    answers: dict[tuple[str, str], bytes | FetchFailed | None],
    *,
    source: Told | None = None,
    pace: Pace = QUICK,
    replicas: int = 1,
) -> AsyncIterator[Asking]:
    at = Asking(source or Given(PODS), Pods(answers), pace, replicas)
    tasks = [asyncio.create_task(at.roster.run()), asyncio.create_task(at.rounds.run())]
    try:
        yield at
        for task in tasks:
            assert not task.done(), task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


MODELS = b'{"data":[{"id":"m"}]}'


async def test_a_pod_that_hangs_holds_up_nobody() -> None:
    hanging: dict[tuple[str, str], bytes | FetchFailed | None] = {(A0, "/metrics"): None, (A0, "/v1/models"): None}
    async with asking(hanging | {(A1, "/v1/models"): MODELS}) as at:
        await at.until(lambda: at.cell.value.routes.get("m") is not None)
        assert [pod.name for pod in at.cell.value.routes["m"].pods] == ["a-1"]
        assert at.state("a-0") is PodState.STARTING


async def test_a_pod_that_sleeps_never_gets_work_not_even_at_first() -> None:
    async with asking({(A0, "/v1/models"): MODELS, (A0, "/metrics"): ASLEEP}) as at:
        seen: set[PodState | None] = set()

        def noted() -> bool:
            seen.add(at.state("a-0"))
            return PodState.ASLEEP in seen

        await at.until(noted)
        assert PodState.READY not in seen
        at.pods.answers[A0, "/metrics"] = AWAKE
        await at.until(lambda: at.state("a-0") is PodState.READY)


async def test_a_sleeper_that_can_no_more_be_asked_is_not_kept_from_its_work_for_ever() -> None:
    async with asking({(A0, "/v1/models"): MODELS, (A0, "/metrics"): ASLEEP}) as at:
        await at.until(lambda: at.state("a-0") is PodState.ASLEEP)
        at.pods.answers[A0, "/metrics"] = FetchFailed("no")
        await at.until(lambda: at.state("a-0") is PodState.READY)


async def test_models_are_asked_again_and_again_and_sooner_after_a_failure() -> None:
    async with asking({(A0, "/v1/models"): FetchFailed("no")}, pace=replace(QUICK, models=100.0)) as at:
        await at.until(lambda: at.pods.asked[A0, "/v1/models"] >= 3)
        at.pods.answers[A0, "/v1/models"] = b'{"data":[{"id":"late"}]}'
        await at.until(lambda: "late" in at.cell.value.routes)
    async with asking({(A0, "/v1/models"): MODELS}) as at:
        await at.until(lambda: "m" in at.cell.value.cards)
        at.pods.answers[A0, "/v1/models"] = b'{"data":[{"id":"m"},{"id":"lora"}]}'
        await at.until(lambda: "lora" in at.cell.value.cards)
        at.pods.answers[A0, "/v1/models"] = MODELS
        await at.until(lambda: "lora" not in at.cell.value.cards)


async def test_a_count_is_believed_once_it_has_shown_our_own_requests() -> None:
    answers: dict[tuple[str, str], bytes | FetchFailed | None] = {
        (A0, "/v1/models"): MODELS,
        (A0, "/metrics"): AWAKE,
        (A0, "/load"): b'{"server_load": 0}',
    }
    async with asking(answers) as at:
        await at.until(lambda: at.pods.asked[A0, "/metrics"] >= 3)
        # With none of ours there, it could not show them: not asked.
        assert not at.pods.asked[A0, "/load"]
        at.ours[A0] = 2
        await at.until(lambda: at.pods.asked[A0, "/load"] >= 2)
        assert at.rounds.load_of(A0).in_flight is None
        at.pods.answers[A0, "/load"] = b'{"server_load": 5}'
        await at.until(lambda: at.rounds.load_of(A0).in_flight == 5)
        # Who chooses among the pods is told each time: 3 of the 5 are not ours.
        uid, told = [each for each in at.told if each[1].in_flight == 5][-1]
        assert (uid, told.in_flight, told.in_flight_own) == (A0, 5, 2)
        before = at.pods.asked[A0, "/load"], at.pods.asked[A0, "/metrics"]
        await at.until(lambda: at.pods.asked[A0, "/load"] >= before[0] + 12)
        # From then on it is read more often than the gauges.
        assert at.pods.asked[A0, "/metrics"] - before[1] <= 6


async def test_a_value_that_is_not_renewed_is_gone_not_full_and_not_idle() -> None:
    async with asking({(A0, "/v1/models"): MODELS, (A0, "/metrics"): AWAKE}) as at:
        await at.until(lambda: at.rounds.load_of(A0).gauges is not None)
        gauges = at.rounds.load_of(A0).gauges
        assert gauges is not None
        assert (gauges.running, gauges.waiting) == (2, 1)
        at.pods.answers[A0, "/metrics"] = FetchFailed("no answer in 2 s")
        await at.until(lambda: at.rounds.load_of(A0).gauges is None)
        assert at.state("a-0") is PodState.READY


async def test_a_pod_that_goes_is_asked_no_more_and_its_load_is_forgotten() -> None:
    source = Told(Sighting(PODS))
    answers: dict[tuple[str, str], bytes | FetchFailed | None] = {
        (uid, path): body for uid in (A0, A1) for path, body in (("/v1/models", MODELS), ("/metrics", AWAKE))
    }
    async with asking(answers, source=source) as at:
        await at.until(lambda: all(at.rounds.load_of(uid).gauges is not None for uid in (A0, A1)))
        source.see(PODS[1])
        await at.until(lambda: at.rounds.load_of(A0) == PodLoad())
        before = at.pods.asked[A0, "/metrics"]
        later = at.pods.asked[A1, "/metrics"] + 3
        await at.until(lambda: at.pods.asked[A1, "/metrics"] >= later)
        assert at.pods.asked[A0, "/metrics"] == before
        source.see(*PODS)
        await at.until(lambda: at.pods.asked[A0, "/metrics"] > before)


@pytest.mark.parametrize(
    ("pods", "replicas", "gauges", "count"),
    [(3, 1, 5.0, 0.4), (3, 20, 20.0, 1.0), (1000, 1, 20.0, 2.0), (1000, 40, 40.0, 2.0)],
)
def test_the_more_gateways_and_pods_there_are_the_less_often_each_pod_is_read(
    pods: int, replicas: int, gauges: float, count: float
) -> None:
    assert Pace().gauges_seconds(pods, replicas) == gauges
    assert Pace().count_seconds(pods, replicas) == count
    assert Pace().models_seconds(pods) == max(10.0, pods / 50)
