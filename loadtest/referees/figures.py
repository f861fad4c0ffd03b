"""What a generator found, in the words that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loadtest.report.measures import Measures, Times

TTFT: Final = "TTFT"
TPOT: Final = "TPOT"
"""The mean time from one token to the next of one request; what AIPerf and GuideLLM call inter-token latency."""
GAP: Final = "ITL"
"""Each gap between two pieces of content; AIPerf calls it inter-chunk latency, GuideLLM has none."""
E2E: Final = "end to end"


class NotFound(Exception):
    """What a referee wrote is not what it is known to write; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates are by the time from the first request to the last answer."""

    whole: int
    failed: int
    prompt_tokens: int
    """This and the next by the pods' own count."""
    output_tokens: int
    requests_per_second: float
    tokens_per_second: float
    times: Mapping[str, Percentiles]


def of_ours(measures: Measures) -> Figures:
    """Of a report's measures: what it prints is what is compared."""
    named = {TTFT: measures.ttft_ms, TPOT: measures.tpot_ms, GAP: measures.itl_ms, E2E: measures.e2e_ms}
    return Figures(
        whole=measures.whole,
        failed=measures.requests - measures.whole,
        prompt_tokens=measures.prompt_tokens,
        output_tokens=measures.output_tokens,
        requests_per_second=measures.whole_per_second,
        tokens_per_second=measures.tokens_per_second,
        times={name: _percentiles(times) for name, times in named.items() if times is not None},
    )


def _percentiles(times: Times) -> Percentiles:
    return Percentiles(times.p50, times.p90, times.p99)
