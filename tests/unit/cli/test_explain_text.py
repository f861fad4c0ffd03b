"""The text that explains a request: what an operator reads, and that nothing in it is read as anything but text."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from gateway.api.explanation import explanation
from gateway.cli.explain_text import CANDIDATES_SHOWN, ENDINGS, cost, headline, page
from gateway.cli.figures import duration
from gateway.core.call import Attempt, Outcome
from gateway.core.caller import Tenant
from tests.unit.telemetry.trails import refused, trail

FAILED = Attempt("chat-1", "least", (), (), 0, "reset")
CHEAPEST = Attempt("chat-0", "cheapest", ("chat-2", "chat-0", "chat-3"), (812.4, 33.123, 2000.0), 512, "completed")


def told(**more: Any) -> dict[str, Any]:
    """An explanation as it comes out of JSON."""
    ended = json.loads(json.dumps(explanation(trail(**{"tried": (CHEAPEST,), "model": "qwen3-8b"} | more), 1.7e9)))
    assert isinstance(ended, dict)
    return ended


def shown(request: dict[str, Any], *, colours: bool = False) -> str:
    """The page as it is printed."""
    out = StringIO()
    Console(file=out, width=200, force_terminal=colours, color_system="standard" if colours else None).print(
        page(request)
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "chat for qwen3-8b: completed in 190 ms, 1 attempt"),
        (
            {"tried": (FAILED, CHEAPEST), "queue_seconds": 0.12, "ended_at": 1000.812},
            "chat for qwen3-8b: completed in 812 ms, 2 attempts, waited 120 ms",
        ),
        (
            {"outcome": Outcome.TRUNCATED, "code": "upstream_reset"},
            "chat for qwen3-8b: cut (upstream_reset) after 190 ms, 1 attempt",
        ),
        (
            {
                "outcome": Outcome.REFUSED,
                "code": "queue_timeout",
                "tried": (),
                "queue_seconds": 10.0,
                "ended_at": 1010.0,
            },
            "chat for qwen3-8b: refused (queue_timeout) after 10.0 s, waited 10.0 s",
        ),
        ({"outcome": Outcome.CLIENT_LEFT}, "chat for qwen3-8b: left by its client after 190 ms, 1 attempt"),
        ({"model": "", "operation": "models", "tried": ()}, "models: completed in 190 ms"),
    ],
)
def test_the_headline_tells_the_whole_story(more: dict[str, Any], words: str) -> None:
    assert headline(told(**more)).plain == words
    assert shown(told(**more)).splitlines()[0] == words


def test_every_outcome_has_its_words() -> None:
    assert set(ENDINGS) == set(Outcome)
    assert headline(told() | {"outcome": "of-a-later-version"}).plain.startswith(
        "chat for qwen3-8b: of-a-later-version"
    )


def test_who_asked_and_when_stands_below() -> None:
    line = shown(told()).splitlines()[1]
    assert line == (
        "2023-11-14T22:30:00.190Z · request id-1 · tenant acme · key k1 · pool chat · status 200 · "
        "first token after 100 ms · 34 prompt tokens, 16 of them cached"
    )


def test_each_attempt_tells_its_pod_why_and_how_it_ended() -> None:
    lines = [line.rstrip() for line in shown(told(tried=(FAILED, CHEAPEST))).splitlines()]
    assert "1. chat-1: it had the fewest requests in flight (least); ended as reset" in lines
    (second,) = [line for line in lines if line.startswith("2. ")]
    assert second.startswith("2. chat-0: it had the least work")
    assert "(cheapest)" in second
    assert second.endswith("some 512 tokens of the prompt are believed cached there")


def test_the_candidates_stand_cheapest_first_and_the_chosen_one_is_marked() -> None:
    lines = [line.split() for line in shown(told()).splitlines()]
    at = lines.index(["pod", "cost"])
    assert lines[at + 2 : at + 5] == [["→", "chat-0", "33.1"], ["chat-2", "812"], ["chat-3", "2000"]]


def test_a_table_is_no_wider_than_what_stands_in_it() -> None:
    assert max(map(len, shown(told()).splitlines()[4:])) < 40


def test_where_nothing_was_weighed_there_is_no_table() -> None:
    assert "cost" not in shown(told(tried=(FAILED,)))


def test_of_very_many_candidates_the_cheapest_and_the_chosen_one_are_shown() -> None:
    names = tuple(f"pod-{number}" for number in range(500))
    costs = tuple(float(number) for number in range(500))
    text = shown(told(tried=(Attempt("pod-400", "prefix", names, costs, 0, "completed"),)))
    lines = [line.split() for line in text.splitlines()]
    assert ["pod-0", "0"] in lines
    assert [f"pod-{CANDIDATES_SHOWN}", str(CANDIDATES_SHOWN)] not in lines
    assert ["→", "pod-400", "400"] in lines
    assert f"and {500 - CANDIDATES_SHOWN - 1} more" in text


def test_candidates_without_a_cost_are_shown_without() -> None:
    lines = [line.split() for line in shown(told(tried=(CHEAPEST._replace(costs=()),))).splitlines()]
    assert ["→", "chat-0", "-"] in lines
    assert ["chat-2", "-"] in lines


def test_a_request_that_was_sent_to_no_pod_says_so() -> None:
    ended = refused(tenant=Tenant("k", "acme"), status=503, code="no_ready_pod", operation="chat", model="m")
    text = shown(explanation(ended, 0.0))
    assert text.splitlines()[0] == "chat for m: refused (no_ready_pod) after 0.5 ms"
    assert "It was sent to no pod." in text


def test_what_callers_and_pods_say_is_neither_markup_nor_steers_the_terminal() -> None:
    odd = "[bold]x[/bold] :warning: \x1b[2J[/nothing]"
    attempt = Attempt(odd, odd, (odd,), (1.0,), 0, odd)
    text = shown(told(model=odd, pool=odd, operation=odd, code=odd, tried=(attempt,)), colours=True)
    cleaned = "[bold]x[/bold] :warning: \N{REPLACEMENT CHARACTER}[2J[/nothing]"
    assert text.count(cleaned) >= 7
    assert "\x1b[2J" not in text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (33.123, "33.1"),
        (99.96, "100"),
        (812.4, "812"),
        (1e6, "1000000"),
    ],
)
def test_a_cost_has_the_digits_that_count(value: float | None, words: str) -> None:
    assert cost(value) == words


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0.0, "0 ms"), (0.351, "0.35 ms"), (9.9, "9.9 ms"), (812.4, "812 ms"), (9999.4, "9999 ms"), (12_345, "12.3 s")],
)
def test_a_duration_has_its_unit(milliseconds: float, words: str) -> None:
    assert duration(milliseconds) == words
