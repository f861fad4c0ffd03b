"""Do two generators agree? Figure by figure, over the means of all rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Final

from loadtest.referees.figures import E2E, GAP, TPOT, TTFT, Figures

TOLERANCE: Final = 0.1
FLOOR_MS: Final = 1.0
"""Two times that are no further apart agree, whatever share of them that is: an event loop notes what it reads no
sooner than it comes to it, and with a dozen processes on two cores that is a part of a millisecond."""
DISTURBED: Final = f"{GAP} p90"
"""Told, not judged: a single gap is as long as the host lets it be, and a referee's dozen processes delay the pods and
the gateway on the same cores. So it is longer in a referee's turn than in ours, by a seventh on two cores, while p50
and TPOT, the mean of the same gaps, are the same. When ours asks at the same time it finds what AIPerf finds: 18.2 ms
and 17.9 ms in one minute, and 15.4 ms before and after."""
JUDGED: Final = ("p50", "p90")
TOLD: Final = ("p99",)
"""Not judged: of 150 requests it is the slowest but one, and differs as much between two rounds of one generator."""


class Word(StrEnum):
    AGREE = "agree"
    FLOOR = "within the floor"
    DIFFER = "differ"
    UNSTEADY = "unsteady"
    """Rounds of the same generator are further apart than two generators may be: the host's doing, and no verdict."""
    TOLD = "not judged"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of two generators: means of the rounds, in milliseconds or per second."""

    measure: str
    ours: float
    theirs: float
    word: Word
    between_own: float
    """How far apart our own rounds are, as a share of their mean."""
    between_theirs: float

    @property
    def apart(self) -> float:
        """Theirs by ours, less one."""
        return self.theirs / self.ours - 1

    @property
    def holds(self) -> bool:
        """Only a p90 may be too unsteady to be judged: a host on which medians and rates are proves nothing."""
        return self.word is not Word.DIFFER and (self.word is not Word.UNSTEADY or self.measure.endswith("p90"))


def compared(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Sequence[Row]:
    """Each figure that both have. In the same order for all referees."""
    rows = []
    for name in (TTFT, TPOT, GAP, E2E):
        if any(name not in each.times for each in (*ours, *theirs)):
            continue
        for place in (*JUDGED, *TOLD):
            values = [[float(getattr(each.times[name], place)) for each in some] for some in (ours, theirs)]
            measure = f"{name} {place}"
            judged = place in JUDGED and measure != DISTURBED
            rows.append(_row(measure, *values, floor=FLOOR_MS, judged=judged))
    for name, field in (("requests/s", "requests_per_second"), ("output tokens/s", "tokens_per_second")):
        rows.append(_row(name, *([float(getattr(each, field)) for each in some] for some in (ours, theirs)), floor=0.0))
    return rows


def _row(measure: str, ours: Sequence[float], theirs: Sequence[float], *, floor: float, judged: bool = True) -> Row:
    mine, other = fmean(ours), fmean(theirs)
    between_own, between_theirs = ((max(some) - min(some)) / fmean(some) for some in (ours, theirs))
    if not judged:
        word = Word.TOLD
    elif max(between_own * mine, between_theirs * other) > max(TOLERANCE * mine, floor):
        word = Word.UNSTEADY
    elif abs(other - mine) <= TOLERANCE * mine:
        word = Word.AGREE
    else:
        word = Word.FLOOR if abs(other - mine) <= floor else Word.DIFFER
    return Row(measure, mine, other, word, between_own, between_theirs)


def other_load(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Sequence[str]:
    """Why the two did not play the same: then their figures say nothing. Empty: they did."""
    first = ours[0]
    found = []
    for field in ("whole", "prompt_tokens", "output_tokens"):
        counts = {getattr(each, field) for each in (*ours, *theirs)}
        if len(counts) > 1:
            listed = ", ".join(f"{count:,}" for count in sorted(counts))
            found.append(f"{field.replace('_', ' ')}: {listed}")
    if failed := sum(each.failed for each in (*ours, *theirs)):
        found.append(f"{failed} requests failed")
    if not first.whole:
        found.append("nothing came whole")
    return found
