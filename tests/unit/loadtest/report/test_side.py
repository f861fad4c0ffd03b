"""What is kept of a run: each request in its step, kind, key and pod, and no more than a page can hold."""

import pytest

from loadtest.load.record import Record
from loadtest.load.schedule import Step
from loadtest.report.side import MOST_GROUPS, Mark, Side, side_of
from tests.unit.loadtest.report.made import OBJECTIVES, PODS, record, risen, schedule


def side(records: list[Record], *, pods: tuple[str, ...] = (), workers: int | None = None) -> Side:
    return side_of("gateway", records, schedule(records, workers=workers), OBJECTIVES, pods=pods)


def test_every_request_is_in_one_step_one_kind_one_key() -> None:
    told = risen()
    for groups in (told.steps, told.kinds, told.keys):
        assert sum(group.measures.requests for group in groups) == told.measures.requests
        assert sum(group.measures.output_tokens for group in groups) == told.measures.output_tokens


def test_a_steps_rates_are_by_its_own_length() -> None:
    told = risen(rates=(5, 20), seconds=10)
    assert [step.measures.offered_per_second for step in told.steps] == [5.0, 20.0]


def test_a_pod_that_got_nothing_is_told_of() -> None:
    told = side([record(pod="chat-0"), record(pod="chat-1")], pods=PODS)
    assert [(pod.name, pod.measures.requests) for pod in told.pods] == [("chat-0", 1), ("chat-1", 1), ("chat-2", 0)]
    assert told.spread is not None
    assert told.spread.max_over_mean == 1.5


def test_where_no_answer_names_its_pod_nothing_is_told_of_pods() -> None:
    told = side([record(), record()], pods=PODS)
    assert told.pods == ()
    assert told.spread is None


def test_many_callers_are_told_together_and_none_is_lost() -> None:
    records = [record(key=f"caller-{number:03}") for number in range(200) for _ in range(200 - number)]
    told = side(records).keys
    assert len(told) == MOST_GROUPS
    assert told[0].name == "caller-000"
    assert told[-1].name == "177 others"
    assert sum(group.measures.requests for group in told) == len(records)


def test_the_rates_of_a_closed_loop_are_by_the_time_it_took() -> None:
    records = [record(at=0.0, waited=0.25, tokens=1), record(at=0.25, waited=0.25, tokens=1)]
    told = side(records, workers=1)
    assert told.measures.whole_per_second == pytest.approx(4.0)
    assert told.steps[0].measures.whole_per_second == pytest.approx(4.0)
    assert told.measures.late_ms is None


def test_the_rates_of_an_open_loop_are_by_the_schedule_and_what_ran_over() -> None:
    assert side([record(waited=0.1, tokens=1)]).measures.seconds == 1.0
    assert side([record(waited=4.0, tokens=1)]).measures.seconds == 4.0


def test_a_step_that_a_closed_loop_never_reached_is_not_told_of() -> None:
    records = [record(waited=0.5, tokens=1)]
    steps = [Step("first", 0.0, 1.0, None), Step("second", 1.0, 2.0, None)]
    told = side_of("gateway", records, schedule(records, steps, workers=1), OBJECTIVES)
    assert [step.name for step in told.steps] == ["first"]


def test_marks_are_in_the_order_of_time() -> None:
    records = [record()]
    marks = [Mark(2.0, "back"), Mark(1.0, "gone")]
    told = side_of("gateway", records, schedule(records), OBJECTIVES, marks=marks)
    assert [mark.what for mark in told.marks] == ["gone", "back"]


def test_of_no_request_at_all_there_is_still_something_to_tell() -> None:
    told = side([])
    assert (told.measures.requests, told.measures.goodput, told.curves) == (0, None, {})
