"""The soak's callers, taps and checker before a gateway that lies: each lie is found, by its rule; and no truth is."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from loadtest.invariants import Bounds, Checker
from loadtest.invariants.events import ClientLeft, Event, PodReceived
from loadtest.invariants.lives import request_id_of
from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.timing import TimeModel
from loadtest.tap import Tap
from tests.soak.callers import BAD_KEY, OPEN_KEY, TIGHT_KEY, WISHES, Book, Callers, Door
from tests.soak.liar import Liar, Lie
from tests.turns import Turns

REQUESTS = 120
FOUND_BY = {
    Lie.NONE: set(),
    Lie.ENDS_WELL: {"I2"},
    Lie.ENDS_WITHOUT_A_WORD: {"I1"},
    Lie.SAYS_TWICE: {"I3"},
    Lie.WORKS_ON: {"I10"},
    Lie.ASKS_TWICE: {"I8"},
}
STREAMS = [(make, weight) for make, weight in WISHES if make.__name__ in ("_stream", "_leaver")]


class Ordered:
    """Hears for a checker. Who leaves before its request is at the pod has left when it is there: a request that is on
    its way then comes to the pod or not, as the machine will have it, and nobody lies."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._received: set[str] = set()
        self._leaving: dict[str, ClientLeft] = {}

    def hear(self, event: Event) -> None:
        if isinstance(event, ClientLeft) and event.request_id not in self._received:
            self._leaving[event.request_id] = event
            return
        self._checker.hear(event)
        if isinstance(event, PodReceived):
            request_id = request_id_of(event.attempt_id)
            self._received.add(request_id)
            if (left := self._leaving.pop(request_id, None)) is not None:
                self._checker.hear(left._replace(at=event.at))

    def quiescent(self, at: float) -> None:
        for left in self._leaving.values():
            self._checker.hear(left)
        self._checker.quiescent(at)


async def judged(lie: Lie, clock: Callable[[], float]) -> Checker:
    """What finds the rules that are broken, when so many callers take this gateway for an honest one."""
    checker = Checker(Bounds(lines=False))
    ordered = Ordered(checker)
    settings = PodSettings(model="m", time=TimeModel(step_seconds=0.04, step_seconds_per_sequence=0.0))
    async with SimulatedPod(settings) as pod:
        tap = Tap("a", ordered.hear, clock)
        await tap.listen(pod.port)
        pod.set_fault("cut:after=3,share=0.3")
        async with Liar(tap, lie) as liar:
            keys = dict.fromkeys((OPEN_KEY, TIGHT_KEY, BAD_KEY), "any")
            book = Book(keys, [Door("liar", liar.port)])
            callers = Callers(book, ordered.hear, clock, Random(1), rps=150, wishes=STREAMS)
            calling = asyncio.create_task(callers.run())
            async with asyncio.timeout(120):
                while sum(callers.counts.values()) < REQUESTS:
                    await asyncio.sleep(0.01)
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                await callers.settled()
                # What a pod does for nobody goes on for as long as its answer is.
                await pod.until(lambda each: each.in_flight == 0, seconds=60)
            callers.close()
        tap.close()
    assert checker.endings["complete"] > 10
    assert checker.endings["left"] > 2
    ordered.quiescent(clock())
    return checker


@pytest.mark.parametrize("lie", list(Lie))
async def test_a_lie_is_found_by_its_rule(lie: Lie) -> None:
    # All that is judged happens on this loop: what others take of the processor is none of its time.
    with Turns() as turns:
        checker = await judged(lie, lambda: turns.seconds)
    assert checker.counts.keys() >= FOUND_BY[lie]
    assert bool(checker.counts) is (lie is not Lie.NONE), checker.violations[:5]
