"""When requests come. The whole schedule is drawn before the start, from a seed.

Every pattern is a row of gaps whose mean is one; a row is laid on the clock by how many requests ought to have come
until each moment (a time change: the integral of the rate, turned around). So steps and ramps are the same row,
stretched, and a burst goes on over the border between two steps.

Gamma gaps are how BurstGPT (Wang et al., arXiv:2401.17644) models the bursts it found in a public service.
`burstiness` is their coefficient of variation, deviation by mean: 1 is Poisson, more comes in bursts, less is more
even. What is right depends on who asks, so there is no default. In rows that were read of Azure's trace of 2023 (see
`lengths`) it is 1.0 for the chat service (131 gaps), and between 6 and 7 for the code service, whose editors ask in
flurries with seconds of silence between (some 450 gaps).
"""

import enum
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from loadtest.load.schedule import Step

MAX_REQUESTS = 500_000
"""Of a schedule."""
RAMP_STEPS = 10
"""A ramp has no steps of its own; its measures are told in so many."""


class Pattern(enum.StrEnum):
    """How requests follow each other at one rate."""

    CONSTANT = "constant"
    POISSON = "poisson"
    GAMMA = "gamma"


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many workers, each with one request at a time, until so many requests were sent or time is up."""

    workers: int
    requests: int

    def scaled(self, factor: float) -> "ClosedLoop":
        return ClosedLoop(max(round(self.workers * factor), 1), max(round(self.requests * factor), 1))


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests come whatever became of those before. `rates` are requests per second: of steps of equal length, or,
    if it `rises`, at the begin and the end of a steady change."""

    pattern: Pattern
    rates: tuple[float, ...]
    rises: bool = False
    burstiness: float = 1.0

    def scaled(self, factor: float) -> "OpenLoop":
        return replace(self, rates=tuple(rate * factor for rate in self.rates))

    def expected(self, seconds: float) -> float:
        """How many requests come, about."""
        return seconds * sum(self.rates) / len(self.rates)

    def steps(self, seconds: float) -> tuple[Step, ...]:
        rates = self.rates
        if self.rises:
            first, last = rates
            rates = tuple(first + (last - first) * (place + 0.5) / RAMP_STEPS for place in range(RAMP_STEPS))
        length = seconds / len(rates)
        return tuple(
            Step(f"{rate:g}/s", place * length, (place + 1) * length, rate) for place, rate in enumerate(rates)
        )

    def times(self, seconds: float, rng: random.Random) -> list[float]:
        """When each request is sent, in seconds from the start, in order, all before `seconds`."""
        when = self._on_ramp if self.rises else self._on_stairs
        times = []
        for due in accumulate(self._gaps(rng)):
            at = when(due, seconds)
            if at >= seconds:
                break
            times.append(at)
        return times

    def _gaps(self, rng: random.Random) -> Iterator[float]:
        """Endless, one in the mean."""
        match self.pattern:
            case Pattern.CONSTANT:
                yield 0.5  # so that R requests per second for S seconds are R x S
                while True:
                    yield 1.0
            case Pattern.POISSON:
                while True:
                    yield rng.expovariate(1.0)
            case Pattern.GAMMA:
                shape = 1 / self.burstiness**2
                while True:
                    yield rng.gammavariate(shape, 1 / shape)

    def _on_stairs(self, due: float, seconds: float) -> float:
        length = seconds / len(self.rates)
        for place, rate in enumerate(self.rates):
            if due < rate * length:
                return min(place * length + due / rate, (place + 1) * length)
            due -= rate * length
        return math.inf

    def _on_ramp(self, due: float, seconds: float) -> float:
        if due >= self.expected(seconds):
            return math.inf
        first, last = self.rates
        # first x t + (last - first) x t² / 2 seconds = due, solved so that equal rates are no special case.
        root = math.sqrt(max(first**2 + 2 * due * (last - first) / seconds, 0.0))
        return 2 * due / (first + root) if first + root else math.inf
