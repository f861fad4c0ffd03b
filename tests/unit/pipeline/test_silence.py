"""Each threshold of silence, from both sides."""

from dataclasses import dataclass

import pytest

from gateway.pipeline.silence import (
    Running,
    Suspicion,
    suspicion,
)

NONE, ASK, LOST, WEDGED = Suspicion
SHORT = 0.001
T = 1000.0
"""When the pod was last heard of, unless a case says otherwise."""


@dataclass
class Told:
    """What is known of a pod."""

    heard_at: float = T
    leaving_since: float | None = None
    slowest: float = 0.0


def waits(sent_at: float = T, tokens: int = 0) -> Running:
    """A stream without a first token."""
    return Running(streams=True, begun=False, sent_at=sent_at, tokens=tokens)


def begun(sent_at: float = T) -> Running:
    return Running(streams=True, begun=True, sent_at=sent_at, tokens=0)


def whole(sent_at: float = T, tokens: int = 0) -> Running:
    """A request whose answer comes in one piece."""
    return Running(streams=False, begun=False, sent_at=sent_at, tokens=tokens)


class TestAPodOnItsWayDown:
    @pytest.mark.parametrize(
        ("quiet", "found"),
        [
            (0.0, NONE),
            (2.0 - SHORT, NONE),
            (2.0, ASK),
            (10.0 - SHORT, ASK),
            (10.0, LOST),
            (1e6, LOST),
        ],
    )
    def test_it_is_asked_after_a_while_and_given_up_after_a_longer_one(self, quiet: float, found: Suspicion) -> None:
        assert suspicion(Told(leaving_since=T - 60.0), [begun()], T + quiet) is found

    def test_its_time_runs_from_when_it_began_to_terminate_if_it_was_silent_before(self) -> None:
        pod = Told(heard_at=T - 500.0, leaving_since=T)
        assert suspicion(pod, [begun()], T + 2.0 - SHORT) is NONE
        assert suspicion(pod, [begun()], T + 10.0 - SHORT) is ASK
        assert suspicion(pod, [begun()], T + 10.0) is LOST

    @pytest.mark.parametrize("running", [[waits()], [whole()], [begun()]])
    def test_it_is_looked_at_whatever_runs_there(self, running: list[Running]) -> None:
        assert suspicion(Told(leaving_since=T), running, T + 10.0) is LOST

    def test_what_it_did_before_is_no_excuse(self) -> None:
        pod = Told(leaving_since=T, slowest=100.0)
        assert suspicion(pod, [waits(tokens=1_000_000)] * 2, T + 10.0) is LOST


class TestAWedgedEngine:
    def test_it_is_stuck_if_nothing_comes_for_ten_seconds_while_two_streams_wait(self) -> None:
        running = [waits(), waits()]
        assert suspicion(Told(), running, T + 10.0 - SHORT) is NONE
        assert suspicion(Told(), running, T + 10.0) is WEDGED

    def test_a_pod_that_was_slow_before_has_five_times_as_long_and_ten_seconds_more(self) -> None:
        pod, running = Told(slowest=3.0), [waits(), waits()]
        assert suspicion(pod, running, T + 25.0 - SHORT) is NONE
        assert suspicion(pod, running, T + 25.0) is WEDGED

    def test_a_long_prompt_has_the_time_that_a_slow_pod_needs(self) -> None:
        running = [waits(tokens=100), waits(tokens=40_000)]
        # 2,000 tokens a second.
        assert suspicion(Told(slowest=1.0), running, T + 30.0 - SHORT) is NONE
        assert suspicion(Told(slowest=1.0), running, T + 30.0) is WEDGED

    @pytest.mark.parametrize(
        "running",
        [
            [],
            [waits()],
            [waits(), whole(), whole()],
            [begun(), begun(), begun()],
            [begun(), whole(), whole()],
        ],
        ids=["nothing", "one", "one-and-whole-answers", "all-have-begun", "only-whole-answers-wait"],
    )
    def test_less_than_two_streams_with_one_that_waits_says_nothing(self, running: list[Running]) -> None:
        assert suspicion(Told(), running, T + 1e6) is NONE

    def test_one_that_waits_beside_one_that_has_begun_is_enough(self) -> None:
        assert suspicion(Told(), [begun(), waits()], T + 10.0) is WEDGED

    def test_any_sign_of_life_starts_the_time_again(self) -> None:
        running = [waits(T - 60.0), waits(T - 60.0)]
        assert suspicion(Told(heard_at=T), running, T + 10.0 - SHORT) is NONE
        assert suspicion(Told(heard_at=T - 30.0), running, T - 30.0 + 10.0) is WEDGED

    def test_the_time_runs_from_when_the_second_stream_was_there(self) -> None:
        """An idle pod was not heard of for long, and that is no fault; nor is one prompt alone a reason."""
        pod = Told(heard_at=T - 3600.0)
        for running in ([waits(T - 100.0), waits(T), waits(T + 5.0)], [waits(T + 5.0), waits(T), waits(T - 100.0)]):
            assert suspicion(pod, running, T + 10.0 - SHORT) is NONE
            assert suspicion(pod, running, T + 10.0) is WEDGED

    def test_the_prompt_of_a_stream_that_has_begun_is_no_excuse(self) -> None:
        running = [begun()._replace(tokens=1_000_000), waits()]
        assert suspicion(Told(), running, T + 10.0) is WEDGED
