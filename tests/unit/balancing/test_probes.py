"""What `/health` is asked for, when, and what follows; on a loop whose time jumps to its next timer."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

from gateway.balancing.balancer import Balancer
from gateway.balancing.probes import Condition, Probes
from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Pod, PodState, Pool, Route
from gateway.core.ports import FetchFailed
from tests.jumping import JumpingLoop

PODS = tuple(Pod(uid, f"pod-{uid}", "p", "h", 1, PodState.READY) for uid in "abcd")
A, B = PODS[:2]


class Answers:
    """A `Fetch` that says what a pod's `/health` is, after so many seconds."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        """Of which pod, and when."""
        self.sick: dict[str, int] = {}
        """The status of those that are not well; 0: no answer."""
        self.seconds = 0.1

    async def __call__(self, pod: Pod, path: bytes, timeout_seconds: float) -> bytes:
        assert (path, timeout_seconds) == (b"/health", 1.0)
        self.asked.append((pod.uid, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.seconds)
        if pod.uid in self.sick:
            raise FetchFailed("not well", self.sick[pod.uid])
        return b""


class Scene:
    """Four warm pods that are asked by this fetch."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        route = Route("m", Pool("p"), PODS)
        self.fleet = Cell(Fleet(PODS, {"m": route}, listed=True))
        self.balancer = Balancer(self.fleet, clock=self.clock, chance=lambda: 0.0, ejected=lambda pool, reason: None)
        self.balancer.update()
        self.answers = Answers()
        self.probes = Probes(self.balancer, self.answers, self.clock)

    @property
    def asked(self) -> list[str]:
        return [uid for uid, _ in self.answers.asked]

    def eject(self, pod: Pod) -> None:
        seat = self.balancer.seat_of(pod.uid)
        assert seat is not None
        assert self.balancer.wedged(seat)

    def state(self, pod: Pod) -> str:
        return self.balancer.health_of(pod.uid).state


def run(scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    went_wrong: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: went_wrong.append(context))
        await scene(Scene())

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())
    assert not went_wrong


def test_whoever_asks_while_a_question_is_under_way_gets_its_answer() -> None:
    async def plays(scene: Scene) -> None:
        scene.answers.seconds = 0.9
        first = scene.probes.ask(A)
        await asyncio.sleep(0.8)
        answers = await asyncio.gather(first, *(scene.probes.ask(A) for _ in range(200)))
        assert set(answers) == {Condition.ALIVE}
        assert scene.asked == ["a"]

    run(plays)


def test_an_answer_is_good_for_half_a_second_after_the_question_and_no_longer() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        await scene.probes.ask(A)
        await asyncio.sleep(0.39)
        scene.answers.sick["a"] = 0
        assert await scene.probes.ask(A) is Condition.ALIVE
        await asyncio.sleep(0.02)
        assert await scene.probes.ask(A) is Condition.GONE
        assert scene.asked == ["a", "a"]
        running.cancel()

    run(plays)


def test_each_pod_is_asked_for_itself() -> None:
    async def plays(scene: Scene) -> None:
        scene.answers.sick["b"] = 503
        one, other = scene.probes.ask(A), scene.probes.ask(B)
        assert (await one, await other) == (Condition.ALIVE, Condition.SICK)
        assert scene.asked == ["a", "b"]

    run(plays)


def test_a_pod_that_answers_otherwise_is_sick_and_one_that_does_not_answer_is_gone() -> None:
    async def plays(scene: Scene) -> None:
        scene.answers.sick = {"a": 500, "b": 0}
        assert await scene.probes.ask(A) is Condition.SICK
        assert await scene.probes.ask(B) is Condition.GONE

    run(plays)


def test_an_asker_that_is_cancelled_leaves_the_answer_to_the_others() -> None:
    async def plays(scene: Scene) -> None:
        async def asks() -> Condition:
            return await asyncio.shield(scene.probes.ask(A))

        leaves, stays = asyncio.create_task(asks()), asyncio.create_task(asks())
        await asyncio.sleep(0.05)
        leaves.cancel()
        assert await stays is Condition.ALIVE
        assert leaves.cancelled()
        assert scene.asked == ["a"]

    run(plays)


def test_an_ejected_pod_is_asked_when_its_time_is_over_and_tried_if_it_is_well() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        scene.eject(A)
        began = scene.clock()
        await asyncio.sleep(9.9)
        assert scene.asked == []
        assert scene.state(A) == "ejected"
        await asyncio.sleep(0.6)
        assert [(uid, round(at - began, 1)) for uid, at in scene.answers.asked] in ([("a", 10.0)], [("a", 10.2)])
        assert scene.state(A) == "probing"
        await asyncio.sleep(60)
        assert scene.asked == ["a"]
        running.cancel()

    run(plays)


def test_an_ejected_pod_that_is_not_well_stays_out_and_is_asked_again_ever_later() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        scene.answers.sick = {"a": 503, "b": 0}
        scene.eject(A)
        scene.eject(B)
        await asyncio.sleep(65)
        assert scene.asked == ["a", "b"] * 3
        assert scene.state(A) == scene.state(B) == "ejected"
        times = [at for uid, at in scene.answers.asked if uid == "a"]
        assert [round(later - at) for at, later in pairwise(times)] == [20, 30]
        scene.answers.sick.clear()
        await asyncio.sleep(40)
        assert scene.state(A) == scene.state(B) == "probing"
        running.cancel()

    run(plays)


def test_a_pod_that_takes_long_to_answer_is_asked_once() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        scene.answers.seconds = 0.9
        scene.eject(A)
        await asyncio.sleep(10.8)
        assert scene.state(A) == "ejected"
        await asyncio.sleep(1.0)
        assert scene.state(A) == "probing"
        assert scene.asked == ["a"]
        running.cancel()

    run(plays)


def test_nothing_is_kept_of_an_answer_that_is_old() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        await scene.probes.ask(A)
        assert scene.probes._asked.keys() == {"a"}
        await asyncio.sleep(1.0)
        assert not scene.probes._asked
        # One under way is kept, however old.
        scene.answers.seconds = 3.0
        asked = scene.probes.ask(A)
        await asyncio.sleep(2.0)
        assert scene.probes.ask(A) is asked
        assert await asked is Condition.ALIVE
        running.cancel()

    run(plays)


def test_who_stops_asking_leaves_no_question_behind() -> None:
    async def plays(scene: Scene) -> None:
        running = asyncio.create_task(scene.probes.run())
        scene.answers.seconds = 30.0
        scene.eject(A)
        await asyncio.sleep(10.5)
        asked = scene.probes.ask(B)
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running, asked])
        assert running.cancelled()
        assert asked.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert scene.state(A) == "ejected"

    run(plays)
