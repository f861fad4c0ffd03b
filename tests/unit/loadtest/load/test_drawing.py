"""A scenario becomes its schedule: the same each time, complete, and each thing drawn from a seed of its own."""

from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.load import drawing
from loadtest.load.arrivals import ClosedLoop, OpenLoop, Pattern
from loadtest.load.drawing import draw
from loadtest.load.lengths import Even, Fixed, LogNormal
from loadtest.load.plan import Entry, Leave, Objectives, Prompt, Scenario, StandPlan
from loadtest.load.section import BadScenario

CHAT = "/v1/chat/completions"


def entry(kind: str = "chat", share: float = 1.0, **changes: Any) -> Entry:
    usual = Entry(
        kind=kind,
        share=share,
        key=kind,
        callers=1,
        path=CHAT,
        model="m",
        stream=True,
        prompt=Prompt(Fixed(10)),
        answer=Fixed(5),
        leave=None,
        extra={},
    )
    return replace(usual, **changes)


def scenario(
    *mix: Entry, arrivals: OpenLoop | ClosedLoop | None = None, seed: int = 1, seconds: float = 10
) -> Scenario:
    return Scenario(
        name="x",
        question="?",
        seed=seed,
        seconds=seconds,
        arrivals=arrivals or OpenLoop(Pattern.POISSON, (20,)),
        mix=mix or (entry(),),
        objectives=Objectives(),
        stand=StandPlan(()),
        faults=(),
        expect={},
    )


RICH = (
    entry("a", 3, prompt=Prompt(LogNormal(50, 1), families=3, turns=4), answer=LogNormal(20, 1), callers=5),
    entry("b", 2, leave=Leave(0.3, after_seconds=(0.1, 2)), stream=False),
    entry("c", 1, path="/v1/embeddings", stream=False, answer=None),
)


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([None, ClosedLoop(4, 100)]))
def test_the_same_scenario_has_the_same_schedule(seed: int, arrivals: ClosedLoop | None) -> None:
    made = scenario(*RICH, seed=seed, arrivals=arrivals)
    assert draw(made) == draw(made)


def test_another_seed_has_another_schedule() -> None:
    one, two = draw(scenario(*RICH)), draw(scenario(*RICH, seed=2))
    assert [each.at for each in one.requests] != [each.at for each in two.requests]
    assert one.requests[0].body != two.requests[0].body


def test_numbers_and_times_rise_and_each_request_knows_its_step() -> None:
    schedule = draw(scenario(*RICH, arrivals=OpenLoop(Pattern.POISSON, (10, 20, 30)), seconds=9))
    assert [each.number for each in schedule.requests] == list(range(len(schedule.requests)))
    at = [each.at for each in schedule.requests if each.at is not None]
    assert at == sorted(at)
    assert len(at) == len(schedule.requests)
    for each in schedule.requests:
        step = schedule.steps[each.step]
        assert each.at is not None
        assert step.begin <= each.at < step.end
    assert (schedule.workers, schedule.seconds) == (None, 9)


def test_a_closed_loop_has_workers_and_no_times() -> None:
    schedule = draw(scenario(arrivals=ClosedLoop(4, 30)))
    assert (schedule.workers, len(schedule.requests)) == (4, 30)
    assert {each.at for each in schedule.requests} == {None}
    assert [(step.name, step.rate) for step in schedule.steps] == [("4 at once", None)]


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(1, 100))
def test_shares_are_kept_to_the_request(shares: list[float], count: int) -> None:
    mix = [entry(f"kind-{place}", share) for place, share in enumerate(shares)]
    kinds = Counter(each.kind for each in draw(scenario(*mix, arrivals=ClosedLoop(1, count))).requests)
    assert kinds.total() == count
    for each in mix:
        assert abs(kinds[each.kind] - count * each.share / sum(shares)) < 1


def test_a_changed_prompt_leaves_the_times_and_the_other_kinds_alone() -> None:
    first, other = entry("a"), entry("b")
    one = draw(scenario(first, other)).requests
    two = draw(scenario(replace(first, prompt=Prompt(Even(1, 99))), other)).requests
    assert [(each.at, each.kind) for each in one] == [(each.at, each.kind) for each in two]
    assert [each for each in one if each.kind == "b"] == [each for each in two if each.kind == "b"]
    assert [each for each in one if each.kind == "a"] != [each for each in two if each.kind == "a"]


def test_so_many_leave_as_was_said_and_when_it_was_said() -> None:
    mix = (
        entry("seconds", leave=Leave(0.3, after_seconds=(0.1, 2.0))),
        entry("tokens", leave=Leave(0.25, after_tokens=(1, 3))),
        entry("stays"),
    )
    requests = draw(scenario(*mix, arrivals=ClosedLoop(1, 300))).requests
    seconds = [each.leave_after for each in requests if each.kind == "seconds" and each.leave_after is not None]
    tokens = [each.leave_after_tokens for each in requests if each.leave_after_tokens is not None]
    assert (len(seconds), len(tokens)) == (30, 25)
    assert all(0.1 <= each <= 2.0 for each in seconds)
    assert set(tokens) == {1, 2, 3}
    assert all(each.leave_after is None for each in requests if each.kind != "seconds")


def test_every_caller_asks() -> None:
    requests = draw(scenario(entry(callers=4), arrivals=ClosedLoop(1, 100))).requests
    assert {each.key for each in requests} == {"chat-0", "chat-1", "chat-2", "chat-3"}


@pytest.mark.parametrize(
    ("path", "stream", "keys"),
    [
        (CHAT, True, {"model", "messages", "max_tokens", "stream", "stream_options"}),
        (CHAT, False, {"model", "messages", "max_tokens"}),
        ("/v1/completions", True, {"model", "prompt", "max_tokens", "stream", "stream_options"}),
        ("/v1/responses", True, {"model", "input", "max_output_tokens", "stream"}),
        ("/v1/messages", True, {"model", "system", "messages", "max_tokens", "stream"}),
        ("/v1/messages", False, {"model", "system", "messages", "max_tokens"}),
        ("/v1/embeddings", False, {"model", "input"}),
    ],
)
def test_a_body_is_what_its_path_wants(path: str, stream: bool, keys: set[str]) -> None:
    asked = entry(path=path, stream=stream, prompt=Prompt(Fixed(10), families=1), extra={"temperature": 0})
    [request] = draw(scenario(asked, arrivals=ClosedLoop(1, 1))).requests
    body = orjson.loads(request.body)
    assert body.keys() == keys | {"temperature"}
    assert (request.path, request.stream, request.max_tokens) == (path, stream, 5)
    if "messages" in keys and "system" not in keys:
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    if "system" in keys:
        assert [message["role"] for message in body["messages"]] == ["user"]


def test_the_prompt_is_about_as_long_as_it_says() -> None:
    for request in draw(scenario(entry(prompt=Prompt(Even(100, 2000), families=2)))).requests:
        said = sum(len(message["content"]) for message in orjson.loads(request.body)["messages"])
        assert said / 4 == pytest.approx(request.prompt_tokens, rel=0.05)


def test_a_schedule_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_BYTES", 1 << 20)
    with pytest.raises(BadScenario, match=r"x: its requests are more than 1 MiB together; ask for fewer"):
        draw(scenario(entry(prompt=Prompt(Fixed(10_000))), arrivals=ClosedLoop(1, 100)))


def test_two_kinds_never_say_the_same() -> None:
    requests = draw(scenario(entry("a"), entry("b"), arrivals=ClosedLoop(1, 200))).requests
    said = {kind: {each.body for each in requests if each.kind == kind} for kind in ("a", "b")}
    assert not said["a"] & said["b"]
    assert all(len(bodies) == 100 for bodies in said.values())


def test_a_run_too_short_for_a_request_or_too_long_for_all_is_refused() -> None:
    made = scenario()
    with pytest.raises(BadScenario, match=r"x: no request comes within 0\.001 s"):
        draw(made.lasting(0.001))
    with pytest.raises(BadScenario, match="x: makes 20000000 requests, more than 500000; give it less time or scale"):
        draw(made.scaled(100_000))
