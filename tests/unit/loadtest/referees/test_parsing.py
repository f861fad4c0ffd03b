"""What AIPerf 0.13.0 and GuideLLM 0.8.1 wrote of 120 requests (shortened to what is read, and some that is near it)."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from loadtest.referees import aiperf, guidellm
from loadtest.referees.figures import E2E, GAP, TPOT, TTFT, Figures, NotFound

CAPTURED = Path(__file__).parent / "captured"

Read = Callable[[Mapping[str, Any]], Figures]
AIPERF, GUIDELLM = (json.loads((CAPTURED / name).read_text()) for name in ("aiperf-0.13.0.json", "guidellm-0.8.1.json"))
both = pytest.mark.parametrize(
    ("read", "captured"), [(aiperf.figures, AIPERF), (guidellm.figures, GUIDELLM)], ids=["AIPerf", "GuideLLM"]
)


@both
def test_both_saw_the_same_load(read: Read, captured: Mapping[str, Any]) -> None:
    found = read(captured)
    assert (found.whole, found.failed) == (120, 0)
    assert (found.prompt_tokens, found.output_tokens) == (73_375, 7_202)


@both
def test_what_is_read_fits_together(read: Read, captured: Mapping[str, Any]) -> None:
    """Time to the first token and the tokens after it are the whole, and 120 requests came at six a second."""
    found = read(captured)
    assert found.requests_per_second == pytest.approx(6, rel=0.1)
    assert found.tokens_per_second == pytest.approx(found.requests_per_second * 7_202 / 120)
    tokens = 7_202 / 120
    whole = found.times[TTFT].p50 + (tokens - 1) * found.times[TPOT].p50
    assert found.times[E2E].p50 == pytest.approx(whole, rel=0.1)
    for times in found.times.values():
        assert times.p50 < times.p90 < times.p99


def test_aiperfs_figures_are_told_in_our_words() -> None:
    found = aiperf.figures(AIPERF)
    assert found.times[TTFT].p50 == pytest.approx(120.829, abs=0.001)
    assert found.times[TPOT].p90 == pytest.approx(18.645, abs=0.001)
    assert found.times[GAP].p50 == pytest.approx(12.533, abs=0.001)
    assert found.times[E2E].p99 == pytest.approx(1_690.244, abs=0.001)


def test_guidellms_figures_are_told_in_our_words() -> None:
    found = guidellm.figures(GUIDELLM)
    assert found.times[TTFT].p50 == pytest.approx(119.584, abs=0.001)
    assert found.times[TPOT].p50 == pytest.approx(
        16.048, abs=0.001
    )  # and not its TPOT, which has the first token in it
    assert found.times[E2E].p50 == pytest.approx(1_041.679, abs=0.001)  # it tells seconds
    assert GAP not in found.times


@both
def test_a_report_that_lacks_a_figure_is_none(read: Read, captured: Mapping[str, Any]) -> None:
    def names(told: Any) -> list[list[Any]]:
        """The ways to everything that has a name."""
        inside = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
        return [[name, *rest] for name, value in inside for rest in ([], *names(value))]

    needed = 0
    for way in names(captured):
        changed = copy.deepcopy(captured)
        inside: Any = changed
        for name in way[:-1]:
            inside = inside[name]
        del inside[way[-1]]
        try:
            assert read(changed) == read(captured)
        except NotFound:
            needed += 1
    assert needed >= 20


@both
def test_requests_that_failed_are_counted(read: Read, captured: Mapping[str, Any]) -> None:
    changed = copy.deepcopy(captured)
    if read is aiperf.figures:
        changed["request_count"]["avg"] = 117.0
    else:
        changed["benchmarks"][0]["scheduler_metrics"]["requests_made"].update(successful=117, errored=3)
    assert (read(changed).whole, read(changed).failed) == (117, 3)


def test_a_time_in_another_unit_is_not_taken_for_milliseconds() -> None:
    changed = {**AIPERF, "time_to_first_token": {**AIPERF["time_to_first_token"], "unit": "s"}}
    with pytest.raises(NotFound, match="a time in s"):
        aiperf.figures(changed)


def test_aiperf_that_was_stopped_has_found_nothing() -> None:
    with pytest.raises(NotFound, match="stopped"):
        aiperf.figures({**AIPERF, "is_complete": False})


@pytest.mark.parametrize("referee", [aiperf.AIPerf(), guidellm.GuideLLM()], ids=lambda referee: str(referee.name))
def test_a_referee_that_wrote_nothing_is_named(referee: aiperf.AIPerf | guidellm.GuideLLM, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"{referee.name} wrote no"):
        referee.read(tmp_path)
