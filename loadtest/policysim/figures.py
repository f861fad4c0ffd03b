"""What is told of runs: figures of one, and of a cell's runs together."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from loadtest.policysim.run import Run

WARMING_UP = 0.2
"""The first part of the requests, not counted: the caches are filled and the pods get busy."""
GROWS = 2.0
"""Unstable: first tokens take so many times as long in the last quarter as in the second,"""
LONG_SECONDS = 2.0
"""and longer than this; or the last first token comes so late after the last request:"""
LEFT_OVER = 0.25
"""in parts of all the time before."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Times are to the first token, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    hits: float
    """The part of all prompt tokens that was found in a cache."""
    imbalance: float
    """Requests in the pod that has most, over time, divided by the mean of the pods."""
    unstable: float
    """1.0: more comes than is done. Of runs together: the part of them."""


def figures_of(run: Run) -> Figures:
    times = run.first_token_seconds
    counted = sorted(times[int(len(times) * WARMING_UP) :])
    quarter = len(times) // 4
    early, late = statistics.fmean(times[quarter : 2 * quarter]), statistics.fmean(times[-quarter:])
    grows = late > max(GROWS * early, LONG_SECONDS)
    left_over = run.begun_seconds - run.arrived_seconds > LEFT_OVER * run.arrived_seconds
    return Figures(
        mean=statistics.fmean(counted),
        p50=_quantile(counted, 0.50),
        p95=_quantile(counted, 0.95),
        p99=_quantile(counted, 0.99),
        hits=run.cached_tokens / run.prompt_tokens,
        imbalance=max(run.pod_seconds) * len(run.pod_seconds) / sum(run.pod_seconds),
        unstable=float(grows or left_over),
    )


def together(runs: Sequence[Figures]) -> Figures:
    """The mean over seeds, of each figure."""
    return Figures(
        **{field.name: statistics.fmean(getattr(run, field.name) for run in runs) for field in fields(Figures)}
    )


def as_dict(figures: Figures) -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(figures).items()}


def _quantile(in_order: Sequence[float], part: float) -> float:
    return in_order[min(int(len(in_order) * part), len(in_order) - 1)]
