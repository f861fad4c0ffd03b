"""What is written down of each metric is what the code counts, and says what to do."""

import math
import re
from itertools import pairwise

import pytest

from gateway.balancing.health import Reason
from gateway.core.call import Outcome
from gateway.core.errors import Overloaded, PoolgateError
from gateway.core.fleet import Deadlines, Pool
from gateway.limits.admission import DECISIONS
from gateway.limits.rules import LIMITS
from gateway.pipeline.operations import OPERATIONS
from gateway.pipeline.retries import Retries
from gateway.telemetry import definitions as given
from gateway.telemetry.definitions import DEFINITIONS, OTHER, Definition
from gateway.upstream.failure import Failure

each_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)


def subclasses(kind: type[PoolgateError]) -> list[type[PoolgateError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in subclasses(below))]


# --- closed sets are those of the modules that own them -----------------------------------------------------


def test_operations_are_those_of_the_table_and_other() -> None:
    assert (*(operation.label for operation in OPERATIONS), OTHER) == given.OPERATIONS


def test_reasons_of_ejections_are_the_health_machines() -> None:
    assert set(given.EJECTION_REASONS) == {reason.value for reason in Reason}


def test_failures_and_retries_are_those_of_the_retry_table() -> None:
    assert tuple(failure.value for failure in Failure) == given.FAILURES
    again = [failure for failure in Failure if Retries().again(failure, "u", budget_left=True) is not None]
    assert set(given.RETRIED) == {failure.value for failure in again}


def test_limits_and_decisions_are_those_of_admission() -> None:
    assert (given.LIMITS, given.DECISIONS) == (LIMITS, DECISIONS)


def test_an_attempt_whose_answer_had_begun_ends_as_errors_in_a_stream_do() -> None:
    endings = {kind.outcome for kind in subclasses(PoolgateError)} - {Outcome.REFUSED, Outcome.INTERNAL}
    assert set(given.ANSWERED) == endings | {Outcome.COMPLETED}


def test_codes_of_those_turned_away_are_the_503s() -> None:
    assert set(given.TURNED_AWAY_CODES) == {kind.code for kind in subclasses(Overloaded)[1:]}


# --- each definition ----------------------------------------------------------------------------------------


@each_definition
def test_a_name_has_its_unit_and_its_ending(definition: Definition) -> None:
    assert re.fullmatch(r"(poolgate|process)_[a-z_]+", definition.name)
    assert definition.ours == definition.name.startswith("poolgate_")
    assert definition.name.endswith("_total") == (definition.kind == "counter")
    if definition.kind == "histogram":
        assert definition.name.endswith("_seconds")
        assert "econds" in definition.meaning
    assert bool(definition.buckets) == (definition.kind == "histogram")


@each_definition
def test_it_says_what_it_means_and_what_to_do(definition: Definition) -> None:
    for text in (definition.meaning, definition.do):
        assert text[-1] in ".)", text
        assert "|" not in text
    assert "`" not in definition.meaning  # it is the HELP as well


@each_definition
def test_every_label_tells_its_values(definition: Definition) -> None:
    for label in definition.labels:
        assert bool(label.values) != bool(label.told), label
        assert len(set(label.values)) == len(label.values)


@each_definition
def test_no_metric_that_it_names_is_missing(definition: Definition) -> None:
    named = re.findall(r"`((?:poolgate|process)_\w+)", definition.do)
    assert set(named) <= {each.name for each in DEFINITIONS}


# --- buckets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("definition", [d for d in DEFINITIONS if d.buckets], ids=lambda definition: definition.name)
def test_buckets_ascend_in_steps_that_tell_something(definition: Definition) -> None:
    assert all(1 < high / low <= 5 for low, high in pairwise(definition.buckets))
    assert not any(math.isinf(bound) for bound in definition.buckets)
    assert len(definition.buckets) <= 24


def test_objectives_for_a_first_token_are_bounds() -> None:
    assert {0.5, 1, 2.5, 5, 10} <= set(given.TTFT_BUCKETS)
    # As alerts write it, and a scrape shows it.
    assert str(float(given.TTFT_BUCKETS[given.TTFT_BUCKETS.index(2.5)])) == "2.5"


def test_the_default_deadlines_are_bounds() -> None:
    deadlines, pool = Deadlines(), Pool("p")
    assert deadlines.ttft_seconds in given.TTFT_BUCKETS
    assert {deadlines.response_seconds, deadlines.stream_seconds} <= set(given.DURATION_BUCKETS)
    assert pool.queue_wait_seconds in given.QUEUE_WAIT_BUCKETS


def test_what_ends_early_is_told_apart_from_what_takes_minutes() -> None:
    assert given.DURATION_BUCKETS[0] <= 0.01
    assert given.OVERHEAD_BUCKETS[0] <= 0.0001 < 0.001 <= given.OVERHEAD_BUCKETS[4]
    assert given.INTER_TOKEN_BUCKETS[0] <= 0.005
