"""A request is explained to an operator: where it went and why, and nothing that is a secret or was said in it."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.api.explanation import explanation
from gateway.api.status import WHY
from gateway.core.call import Attempt, Outcome
from gateway.core.caller import Tenant
from tests.unit.telemetry.trails import refused, trail

MONOTONIC_TO_WALL = 1_795_460_361.25 - 1000.19
BALANCING = Path(__file__).resolve().parents[3] / "gateway" / "balancing"
TRIED = (
    Attempt("chat-1", "least", (), (), 0, "reset"),
    Attempt("chat-0", "cheapest", ("chat-0", "chat-2"), (1.23456, 7.0), 512, "completed"),
)


def test_an_explanation_has_the_shape_that_scripts_rely_on() -> None:
    ended = trail(attempts=2, tried=TRIED, queue_seconds=0.12)
    assert json.loads(json.dumps(explanation(ended, MONOTONIC_TO_WALL))) == {
        "request_id": "id-1",
        "ts": "2026-11-23T18:59:21.250Z",
        "tenant": "acme",
        "key_id": "k1",
        "operation": "chat",
        "model": "org/m",
        "pool": "chat",
        "stream": True,
        "status": 200,
        "outcome": "completed",
        "code": "",
        "queue_ms": 120.0,
        "ttft_ms": 100.0,
        "duration_ms": 190.0,
        "prompt_tokens": 34,
        "cached_tokens": 16,
        "attempts": [
            {
                "pod": "chat-1",
                "decision": "least",
                "why": "it had the fewest requests in flight",
                "cached_tokens": 0,
                "ended": "reset",
                "candidates": [],
            },
            {
                "pod": "chat-0",
                "decision": "cheapest",
                "why": WHY["cheapest"],
                "cached_tokens": 512,
                "ended": "completed",
                "candidates": [{"pod": "chat-0", "cost": 1.235}, {"pod": "chat-2", "cost": 7.0}],
            },
        ],
    }


def test_a_request_that_went_nowhere_has_no_attempts_and_nulls() -> None:
    ended = refused(tenant=Tenant("k", "acme"), status=503, code="queue_full")
    told = explanation(ended, MONOTONIC_TO_WALL)
    assert (told["status"], told["outcome"], told["code"], told["attempts"]) == (503, "refused", "queue_full", [])
    assert [told[name] for name in ("ttft_ms", "prompt_tokens", "cached_tokens")] == [None, None, None]
    assert explanation(refused(), MONOTONIC_TO_WALL)["tenant"] is None


def test_pods_that_were_weighed_without_a_cost_have_none() -> None:
    ended = trail(tried=(Attempt("chat-0", "p2c", ("chat-0", "chat-1"), (), 0, "completed"),))
    assert explanation(ended, 0.0)["attempts"][0]["candidates"] == [
        {"pod": "chat-0", "cost": None},
        {"pod": "chat-1", "cost": None},
    ]


def test_it_is_json_whatever_was_weighed_and_whatever_a_model_is_called() -> None:
    costs = (float("inf"), float("nan"), 1.0)
    ended = trail(model="a\ud800b", tried=(Attempt("a", "cheapest", ("a", "b", "c"), costs, 0, "completed"),))
    told = explanation(ended, MONOTONIC_TO_WALL)
    json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
    assert told["model"] == "a?b"
    assert [each["cost"] for each in told["attempts"][0]["candidates"]] == [None, None, 1.0]


def test_a_decision_of_which_nothing_is_known_is_told_as_it_is() -> None:
    ended = trail(tried=(Attempt("a", "of-a-later-version", (), (), 0, "completed"),))
    (attempt,) = explanation(ended, 0.0)["attempts"]
    assert (attempt["decision"], attempt["why"]) == ("of-a-later-version", "")


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_told_by_its_word(outcome: Outcome) -> None:
    told = explanation(trail(outcome=outcome), 0.0)
    assert (told["outcome"], type(told["outcome"])) == (outcome.value, str)


def words() -> Iterator[str]:
    """Every word that the code in `balancing` gives as a reason of a choice."""
    for file in BALANCING.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                given = list(node.args) if name in ("Choice", "_choice", "_first_in_rank") else []
                given += [each.value for each in node.keywords if each.arg == "reason"]
                for each in given:
                    for inner in ast.walk(each):
                        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                            yield inner.value


def test_every_word_that_a_choice_may_be_has_its_sentence_and_no_other_has() -> None:
    assert set(words()) == set(WHY)
