"""The contract's retry table, row by row, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.balancer import Blame
from gateway.pipeline.retries import BLAME, MAX_CONNECT_RETRIES, Again, Retries
from gateway.upstream.failure import Failure

ONCE_ELSEWHERE = [
    Failure.RESET,
    Failure.BUSY,
    Failure.DYING,
    Failure.ENGINE_DEAD,
    Failure.SIDECAR,
    Failure.SILENT,
    Failure.MODEL_GONE,
]
NEVER = [Failure.SERVER_ERROR, Failure.JUNK, Failure.TIMEOUT, Failure.REFUSED, Failure.ABANDONED]


def test_every_failure_has_a_row() -> None:
    assert {Failure.CONNECT, Failure.STALE, *ONCE_ELSEWHERE, *NEVER} == set(Failure)


@pytest.mark.parametrize("budget_left", [True, False])
def test_a_refused_connection_is_tried_on_two_more_pods_whatever_the_budget(budget_left: bool) -> None:
    retries = Retries()
    assert [retries.again(Failure.CONNECT, uid, budget_left) for uid in "abc"] == [
        Again.OTHER_POD,
        Again.OTHER_POD,
        None,
    ]
    assert retries.excluded == {"a", "b", "c"}
    assert not retries.on_budget


@pytest.mark.parametrize("budget_left", [True, False])
def test_a_stale_connection_is_replaced_once_at_the_same_pod_whatever_the_budget(budget_left: bool) -> None:
    retries = Retries()
    assert retries.again(Failure.STALE, "a", budget_left) is Again.SAME_POD
    assert retries.excluded == set()
    assert not retries.on_budget


def test_a_second_stale_connection_counts_as_one_that_was_cut() -> None:
    retries = Retries()
    retries.again(Failure.STALE, "a", True)
    assert retries.again(Failure.STALE, "a", True) is Again.OTHER_POD
    assert retries.again(Failure.STALE, "b", True) is None


@pytest.mark.parametrize("failure", ONCE_ELSEWHERE)
def test_what_another_pod_may_do_better_goes_there_once_on_the_budget(failure: Failure) -> None:
    retries = Retries()
    assert retries.again(failure, "a", True) is Again.OTHER_POD
    assert retries.excluded == {"a"}
    assert retries.on_budget
    assert retries.again(failure, "b", True) is None


@pytest.mark.parametrize("failure", ONCE_ELSEWHERE)
def test_without_budget_nothing_is_sent_again(failure: Failure) -> None:
    retries = Retries()
    assert retries.again(failure, "a", False) is None
    assert not retries.on_budget


@pytest.mark.parametrize("first", ONCE_ELSEWHERE)
@pytest.mark.parametrize("second", ONCE_ELSEWHERE)
def test_the_once_is_shared_by_all_reasons(first: Failure, second: Failure) -> None:
    retries = Retries()
    retries.again(first, "a", True)
    assert retries.again(second, "b", True) is None


@pytest.mark.parametrize("failure", NEVER)
def test_what_would_only_fail_again_is_not_repeated(failure: Failure) -> None:
    assert Retries().again(failure, "a", True) is None


def test_a_refused_connection_does_not_spend_the_one_repetition() -> None:
    retries = Retries()
    assert retries.again(Failure.CONNECT, "a", True) is Again.OTHER_POD
    assert retries.again(Failure.BUSY, "b", True) is Again.OTHER_POD
    assert retries.again(Failure.CONNECT, "c", True) is Again.OTHER_POD
    assert retries.again(Failure.CONNECT, "d", True) is None
    assert retries.excluded == {"a", "b", "c", "d"}


@given(st.lists(st.tuples(st.sampled_from(Failure), st.sampled_from("abc"), st.booleans())))
def test_however_attempts_fail_there_are_few_of_them_and_none_at_a_pod_that_was_left(
    failures: list[tuple[Failure, str, bool]],
) -> None:
    retries = Retries()
    stale = replayed = connects = 0
    for failure, uid, budget_left in failures:
        again = retries.again(failure, uid, budget_left)
        if again is None:
            break
        if again is Again.SAME_POD:
            stale += 1
            assert failure is Failure.STALE
        else:
            assert uid in retries.excluded
            replayed += failure is not Failure.CONNECT
            connects += failure is Failure.CONNECT
    assert stale <= 1
    assert replayed <= 1
    assert connects <= MAX_CONNECT_RETRIES
    assert retries.on_budget == (replayed == 1)


def test_each_failure_weighs_on_its_pod_as_the_table_says() -> None:
    """What is missing says nothing of the pod: it answered as it should, or was not to blame for the end."""
    assert BLAME == {
        Failure.CONNECT: Blame.POD,
        Failure.STALE: Blame.NONE,
        Failure.RESET: Blame.POD,
        Failure.BUSY: Blame.BUSY,
        Failure.DYING: Blame.POD,
        Failure.ENGINE_DEAD: Blame.POD,
        Failure.SILENT: Blame.NONE,
        Failure.SIDECAR: Blame.POD,
        Failure.SERVER_ERROR: Blame.IN_DOUBT,
        Failure.JUNK: Blame.POD,
        Failure.TIMEOUT: Blame.POD,
        Failure.MODEL_GONE: Blame.NONE,
    }
    assert set(Failure) - set(BLAME) == {Failure.REFUSED, Failure.ABANDONED}
