"""The fleet follows what the source sees and what the pods tell; what was told stays until it is known to be untrue."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Model, Pod, PodState, Pool, RefusedPod
from gateway.discovery import roster as module
from gateway.discovery.models import Listing
from gateway.discovery.roster import Roster
from gateway.discovery.source import Sighting
from gateway.discovery.static import StaticPod, pods_of
from tests.fakes import Hands
from tests.turns import within

PODS = pods_of([StaticPod("a-0", "h", 1, "a"), StaticPod("a-1", "h", 2, "a"), StaticPod("b-0", "h", 3, "b")])
A0, A1, B0 = (pod.uid for pod in PODS)


class Told:
    """A source whose word a test gives."""

    mode = "kubernetes"

    def __init__(self, sighting: Sighting) -> None:
        self.sighting = sighting
        self.changed: Callable[[], None] = lambda: None

    async def run(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        await asyncio.Event().wait()

    def seen(self) -> Sighting:
        return self.sighting

    def see(self, *pods: Pod, refused: tuple[RefusedPod, ...] = ()) -> None:
        self.sighting = Sighting(pods, refused)
        self.changed()

    def stale_seconds(self) -> float:
        return 0.0

    def replicas(self) -> int:
        return 1


class Kept:
    """A roster that runs, and what it wrote."""

    def __init__(self, source: Told, pools: dict[str, Pool]) -> None:
        self.source = source
        self.hands = Hands()
        self.cell: Cell[Fleet] = Cell(Fleet())
        self.rejected: Counter[str] = Counter()
        self.roster = Roster(source, pools, self.cell, self.hands, self._reject)

    def _reject(self, reason: str, count: int) -> None:
        self.rejected[reason] += count

    async def published(self) -> Fleet:
        """The next fleet."""
        self.hands.now += module.PUBLISH_SECONDS
        async with within(2):
            return await self.cell.wait_changed()


@asynccontextmanager
async def kept(*pods: Pod, pools: dict[str, Pool] | None = None, listed: bool = True) -> AsyncIterator[Kept]:
    made = Kept(Told(Sighting(pods, listed=listed)), pools or {})
    task = asyncio.create_task(made.roster.run())
    await made.published()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def listing(*names: str, odd: int = 0) -> Listing:
    return Listing(tuple(Model(name, {"id": name}) for name in names), odd)


def states(fleet: Fleet) -> dict[str, tuple[PodState, str]]:
    return {pod.name: (pod.state, pod.reason) for pod in fleet.pods}


async def test_a_pod_is_ready_when_it_has_listed_its_models() -> None:
    async with kept(*PODS) as at:
        assert states(at.cell.value)["a-0"] == (PodState.STARTING, "not asked for its models yet")
        assert at.cell.value.listed
        at.roster.heard(A0, listing("m"))
        at.roster.silent(A1, "/v1/models: no answer in 5 s")
        fleet = await at.published()
        assert states(fleet)["a-0"] == (PodState.READY, "")
        assert states(fleet)["a-1"] == (PodState.STARTING, "/v1/models: no answer in 5 s")
        assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0"]
        at.roster.heard(A1, listing("m", "lora"))
        fleet = await at.published()
        assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0", "a-1"]
        assert [pod.name for pod in fleet.routes["lora"].pods] == ["a-1"]


async def test_a_pod_that_falls_silent_keeps_its_models() -> None:
    async with kept(*PODS) as at:
        at.roster.heard(A0, listing("m"))
        await at.published()
        at.roster.silent(A0, "/v1/models: status 500")
        at.roster.heard(A1, listing("m"))
        fleet = await at.published()
        assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0", "a-1"]


async def test_an_adapter_that_goes_is_gone_for_that_pod_alone() -> None:
    async with kept(*PODS) as at:
        at.roster.heard(A0, listing("m", "lora"))
        at.roster.heard(A1, listing("m", "lora"))
        await at.published()
        at.roster.heard(A0, listing("m"))
        fleet = await at.published()
        assert [pod.name for pod in fleet.routes["lora"].pods] == ["a-1"]
        at.roster.heard(A1, listing("m"))
        fleet = await at.published()
        # It was served, so it is known: a 503 with a time to come back, not a 404.
        assert fleet.routes["lora"].pods == ()
        assert "lora" not in fleet.cards


async def test_a_model_is_remembered_for_a_day() -> None:
    async with kept(*PODS) as at:
        at.roster.heard(A0, listing("m"))
        await at.published()
        at.source.see()
        fleet = await at.published()
        assert fleet.routes["m"].pods == ()
        at.hands.now += module.REMEMBER_SECONDS
        at.source.see()
        assert not (await at.published()).routes


async def test_what_is_remembered_is_bounded() -> None:
    async with kept(*PODS) as at:
        for start in range(0, module.MAX_REMEMBERED + 100, 50):
            at.roster.heard(A0, listing(*(f"m{number}" for number in range(start, start + 50))))
        assert len((await at.published()).routes) == module.MAX_REMEMBERED


async def test_an_asleep_pod_gets_no_work_and_wakes_up() -> None:
    async with kept(*PODS) as at:
        at.roster.slept(A0, "weights_offloaded")
        at.roster.heard(A0, listing("m"))
        fleet = await at.published()
        assert states(fleet)["a-0"] == (PodState.ASLEEP, "asleep (weights_offloaded)")
        assert fleet.routes["m"].pods == ()
        at.roster.slept(A0, "")
        fleet = await at.published()
        assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0"]


async def test_since_is_when_state_and_reason_began() -> None:
    async with kept(*PODS) as at:
        first = at.cell.value.pods[0].since
        at.hands.now += 100
        at.roster.heard(A1, listing("m"))
        assert (await at.published()).pods[0].since == first
        at.hands.now += 100
        at.roster.heard(A0, listing("m"))
        assert (await at.published()).pods[0].since > first + 200


async def test_an_unready_pod_is_out_at_once_and_back_with_what_it_told() -> None:
    async with kept(*PODS) as at:
        at.roster.heard(A0, listing("m"))
        await at.published()
        unready = replace(PODS[0], state=PodState.STARTING, reason="Ready is False", askable=False)
        at.source.see(unready)
        fleet = await at.published()
        assert fleet.routes["m"].pods == ()
        assert states(fleet) == {"a-0": (PodState.STARTING, "Ready is False")}
        assert [model.name for model in fleet.pods[0].models] == ["m"]
        at.source.see(PODS[0])
        assert [pod.name for pod in (await at.published()).routes["m"].pods] == ["a-0"]


async def test_a_new_pod_at_an_old_address_inherits_nothing() -> None:
    async with kept(*PODS) as at:
        at.roster.heard(A0, listing("m"))
        await at.published()
        at.source.see(replace(PODS[0], uid="another"))
        fleet = await at.published()
        assert states(fleet)["a-0"] == (PodState.STARTING, "not asked for its models yet")
        # A late word of the one that is gone changes nothing.
        at.roster.heard(A0, listing("m"))
        at.roster.slept(A0, "weights_offloaded")
        at.source.changed()
        assert (await at.published()).routes["m"].pods == ()


async def test_a_pod_cannot_take_another_pools_model() -> None:
    async with kept(*PODS, pools={"b": Pool("b", ("small*",))}) as at:
        at.roster.heard(A0, listing("m"))
        at.roster.heard(B0, listing("m", "small", odd=2))
        fleet = await at.published()
        assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0"]
        assert [pod.name for pod in fleet.routes["small"].pods] == ["b-0"]
        assert at.rejected == {"model_not_in_pool": 1, "model_name": 2}
        # It is news once, not with each answer.
        at.roster.heard(B0, listing("m", "small", odd=2))
        assert at.rejected.total() == 3


async def test_names_that_a_pod_may_not_serve_are_not_even_known() -> None:
    async with kept(replace(PODS[0], allowed=("m",))) as at:
        at.roster.heard(A0, listing("victim"))
        fleet = await at.published()
        assert not fleet.routes
        assert states(fleet)["a-0"] == (PodState.READY, "it lists no model that it may serve")


async def test_refused_pods_are_shown_and_counted_once() -> None:
    refused = RefusedPod("evil", "address", "its address is loopback")
    async with kept() as at:
        for _ in range(3):
            at.source.see(refused=(refused,))
            assert (await at.published()).refused == (refused,)
        assert at.rejected == {"address": 1}
        at.source.see()
        await at.published()
        at.source.see(refused=(refused,))
        await at.published()
        assert at.rejected == {"address": 2}


async def test_asked_means_that_each_ready_pod_of_the_first_listing_was_asked_once() -> None:
    async with kept(listed=False) as at:
        assert not at.cell.value.listed
        assert not at.cell.value.asked
        starting = replace(PODS[2], state=PodState.STARTING, askable=False)
        at.source.see(PODS[0], PODS[1], starting)
        fleet = await at.published()
        assert (fleet.listed, fleet.asked) == (True, False)
        at.roster.heard(A0, listing("m"))
        assert not (await at.published()).asked
        at.roster.silent(A1, "no")
        assert (await at.published()).asked
        # What comes later does not take readiness back.
        at.source.see(*PODS)
        assert (await at.published()).asked


async def test_a_pod_that_goes_before_it_was_asked_is_not_waited_for() -> None:
    async with kept(*PODS[:2]) as at:
        at.roster.heard(A0, listing("m"))
        at.source.see(PODS[0])
        assert (await at.published()).asked


async def test_an_empty_listing_leaves_nobody_to_ask() -> None:
    async with kept() as at:
        assert at.cell.value.listed
        assert at.cell.value.asked


async def test_many_changes_make_one_fleet() -> None:
    async with kept(*PODS) as at:
        fleets = []

        async def count() -> None:
            while True:
                fleets.append(await at.cell.wait_changed())

        counting = asyncio.create_task(count())
        for number in range(100):
            at.roster.heard(A0, listing(f"m{number}"))
        await at.published()
        await asyncio.sleep(0)
        counting.cancel()
        assert len(fleets) == 1
        assert fleets[0].routes["m99"].pods


async def test_a_change_that_follows_another_at_once_waits_for_its_turn() -> None:
    async with kept(*PODS) as at:
        # No time has passed since the fleet that is there, as the clock has it.
        at.roster.heard(A0, listing("m"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not at.cell.value.routes
        async with within(2):
            assert (await at.cell.wait_changed()).routes
