"""The soak's callers, taps and checker before a gateway that lies: each lie is found, by its rule; and no truth is."""

import asyncio
from random import Random

import pytest

from loadtest.invariants import Bounds, Checker
from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.timing import TimeModel
from loadtest.tap import Tap
from tests.soak.callers import BAD_KEY, OPEN_KEY, TIGHT_KEY, WISHES, Book, Callers, Door
from tests.soak.liar import Liar, Lie

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


async def broken_by(lie: Lie) -> set[str]:
    """The rules that are broken when so many callers take this gateway for an honest one."""
    clock = asyncio.get_running_loop().time
    checker = Checker(Bounds(lines=False))
    settings = PodSettings(model="m", time=TimeModel(step_seconds=0.04, step_seconds_per_sequence=0.0))
    async with SimulatedPod(settings) as pod:
        tap = Tap("a", checker.hear, clock)
        await tap.listen(pod.port)
        pod.set_fault("cut:after=3,share=0.3")
        async with Liar(tap, lie) as liar:
            keys = dict.fromkeys((OPEN_KEY, TIGHT_KEY, BAD_KEY), "any")
            book = Book(keys, [Door("liar", liar.port)])
            callers = Callers(book, checker.hear, clock, Random(1), rps=150, wishes=STREAMS)
            calling = asyncio.create_task(callers.run())
            async with asyncio.timeout(30):
                while sum(callers.counts.values()) < REQUESTS:
                    await asyncio.sleep(0.01)
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                await callers.settled()
                # What a pod does for nobody goes on for as long as its answer is.
                await pod.until(lambda each: each.in_flight == 0, seconds=20)
            callers.close()
        tap.close()
    assert checker.endings["complete"] > 10
    assert checker.endings["left"] > 2
    checker.quiescent(clock())
    return set(checker.counts)


@pytest.mark.parametrize("lie", list(Lie))
async def test_a_lie_is_found_by_its_rule(lie: Lie) -> None:
    broken = await broken_by(lie)
    assert broken >= FOUND_BY[lie]
    assert bool(broken) is (lie is not Lie.NONE)
