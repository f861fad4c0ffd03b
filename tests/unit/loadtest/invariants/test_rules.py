"""Each invariant: traces that keep it, and traces that break it and are found out."""

from typing import Any

import pytest

from loadtest.invariants import events as e
from loadtest.invariants.checker import Checker
from loadtest.invariants.events import How, Kind, Piece, Shape
from loadtest.invariants.rules import RULES, Bounds
from tests.unit.loadtest.invariants.traces import (
    BODY,
    DONE,
    ERROR,
    LAST,
    ROLE,
    SEEN,
    STREAM,
    TEXT,
    USAGE,
    Trace,
    broken,
)

OTHER_TEXT = Piece(Kind.CONTENT, 22)
BOUNDS = Bounds(per_minute={"tight": 6}, canaries=("canary-7",), most_series=4)
AT_REST = {
    "poolgate_in_flight": 0.0,
    "poolgate_requests_total": 1.0,
    'poolgate_tokens_total{kind="prompt"}': 7.0,
    'poolgate_tokens_total{kind="completion"}': 2.0,
}
"""What the gateway counts after one whole stream."""


def error(status: int = 503, code: str = "no_ready_pod", outcome: str = "refused", **more: Any) -> Trace:
    trace = Trace().sends().client(status=status).ends(code=code, **more)
    return trace.line(outcome, attempts=0, completion_tokens=None)


def cut_and_told(code: str = "upstream_truncated") -> Trace:
    trace = Trace().sends().pod(ROLE, TEXT).client(ROLE, TEXT).pod_is_cut().client(ERROR, DONE).ends(code=code)
    return trace.line("truncated", usage_source="estimated")


def left() -> Trace:
    return Trace().sends().pod(ROLE, TEXT).client(ROLE).tell(e.ClientLeft, "r")


def ready(trace: Trace, *pods: str, pool: str = "chat") -> Trace:
    for pod in pods:
        trace.tell(e.PodMarked, pod, pool, "ready", 0.0)
    return trace


def marked(state: str, *others: str) -> Trace:
    """Pod `a` is known to be in this state, the others are ready."""
    trace = ready(Trace(), "a", *others)
    return trace.tell(e.PodMarked, "a", "chat", state, trace.at + 0.5)


def many_retries(count: int) -> Trace:
    trace = Trace()
    for number in range(count):
        name = f"r{number}"
        trace.sends(name).pod(request_id=name).pod_is_cut(request_id=name).pod(request_id=name, number=2)
    for number in range(count):
        name = f"r{number}"
        trace.client(request_id=name, status=502).pod_is_cut(2, request_id=name)
        trace.ends(request_id=name, code="upstream_disconnected").line("truncated", name, attempts=2)
    return trace


def spent(count: int, pause: float = 0.0, lost: bool = False) -> Trace:
    trace = Trace()
    for number in range(count):
        if lost and number == count // 2:
            trace.tell(e.LimitsLost)
        trace.whole(f"r{number}", key="tight").later(pause)
    return trace


def shares(a: int, b: int, *, even_after: float = 0.0) -> Trace:
    """After a fault pods `a` and `b` of one pool get so many requests."""
    trace = ready(Trace(), "a", "b").tell(e.FaultBegan, "kill")
    trace.tell(e.FaultEnded, "kill", trace.at + even_after).later(11)
    for number in range(a + b):
        name = f"s{number}"
        trace.sends(name).pod(*STREAM, request_id=name, pod="a" if number < a else "b").pod_ends(request_id=name)
        trace.client(*SEEN, request_id=name).ends(request_id=name).line(request_id=name)
    return trace


def lagging(seconds: float, machine: float = 0.0) -> Trace:
    trace = Trace().scrape({"poolgate_loop_lag_seconds": 0.0}).later(70)
    return trace.tell(e.MachineLag, machine).scrape({"poolgate_loop_lag_seconds": seconds})


def after_a_fault(seconds: float, trace: Trace) -> Trace:
    """The request of a trace is sent so long after a fault."""
    started = Trace().tell(e.FaultBegan, "kill").tell(e.FaultEnded, "kill", 0.0).later(seconds)
    shift = started.at - 100.0
    started.events.extend(event._replace(at=event.at + shift) for event in trace.events)
    started.at = trace.at + shift
    return started


KEPT: dict[str, Trace] = {
    "a stream": Trace().whole(),
    "a stream with usage": Trace()
    .sends(wants_usage=True)
    .pod(*STREAM)
    .pod_ends()
    .client(ROLE, TEXT, LAST, USAGE, DONE)
    .ends()
    .line(),
    "an answer that is no stream": Trace()
    .sends(shape=Shape.WHOLE)
    .pod(BODY)
    .pod_ends()
    .client(BODY)
    .ends()
    .line(),
    "a stream of another kind": Trace()
    .sends(shape=Shape.NAMED)
    .pod(ROLE, TEXT, DONE)
    .pod_ends()
    .client(ROLE, TEXT, DONE)
    .ends()
    .line(usage_source="estimated"),
    "a pod that is ahead of the client": Trace().sends().pod(*STREAM).client(*SEEN).ends().line().pod_ends(),
    "an error": error(),
    "a stream that was cut": cut_and_told(),
    "a pod's own error event": Trace()
    .sends()
    .pod(ROLE, ERROR, DONE)
    .pod_ends()
    .client(ROLE, ERROR, DONE)
    .ends(code="InternalServerError")
    .line("upstream_failed", usage_source="estimated"),
    "a second attempt": Trace()
    .sends()
    .pod(ROLE)
    .pod_is_cut()
    .pod(*(Piece(piece.kind, piece.digest + 100, piece.finishes, piece.tokens) for piece in STREAM), number=2, pod="b")
    .pod_ends(2)
    .client(*(Piece(piece.kind, piece.digest + 100, piece.finishes) for piece in SEEN))
    .ends()
    .line(attempts=2),
    "a client that left": left().pod_is_cut(after=0.1).line("client_left", usage_source="estimated"),
    "a client that left while the loop was held up": left()
    .scrape({"poolgate_loop_lag_seconds": 0.6, "poolgate_in_flight": 1})
    .pod_is_cut(after=0.5)
    .line("client_left", usage_source="estimated")
    .scrape({**AT_REST, 'poolgate_tokens_total{kind="completion"}': 2}),
    "a client that left at once": Trace().sends().tell(e.ClientLeft, "r"),
    "a long answer that was cut": Trace()
    .sends(shape=Shape.WHOLE)
    .pod()
    .client()
    .pod_is_cut()
    .ends(How.CUT)
    .line("truncated", usage_source="estimated"),
    "gauges": Trace().whole().scrape(AT_REST),
    "a scrape while a stream runs": Trace()
    .sends()
    .pod(ROLE)
    .later(3)
    .scrape({"poolgate_in_flight": 1, "poolgate_pod_in_flight": 1})
    .client(ROLE)
    .pod_is_cut()
    .client(ERROR, DONE)
    .ends(code="upstream_reset")
    .line("truncated", usage_source="estimated")
    .scrape({**AT_REST, "poolgate_in_flight": 0.0}),
    "a request that is on its way while it is counted": Trace()
    .whole()
    .sends("s")
    .scrape({**AT_REST, "poolgate_in_flight": 0.0})
    .client(status=503, request_id="s")
    .ends(code="no_ready_pod", request_id="s")
    .line("refused", "s", attempts=0, completion_tokens=None, prompt_tokens=None)
    .scrape({**AT_REST, "poolgate_requests_total": 2.0}),
    "a terminating pod that nobody can know of yet": marked("terminating", "b").whole(),
    "another pod than the terminating one": marked("terminating", "b")
    .later(1)
    .sends()
    .pod(*STREAM, pod="b")
    .pod_ends()
    .client(*SEEN)
    .ends()
    .line(),
    "the only pod, not ready": marked("not_ready").later(1).whole(),
    "an ejected pod in a panic": Trace().sends().tell(e.Picked, "r", "a", "ejected", 0).pod(*STREAM).pod_ends()
    .client(*SEEN).ends().line(),
    "as many retries as the budget allows": many_retries(10),
    "a limit kept": spent(6),
    "a limit kept that refills": spent(12, pause=10.0),
    "a limit that was lost on the way": spent(12, lost=True),
    "text": Trace().tell(e.Text, "log", "nothing to see"),
    "a connection that is closed when idle": Trace().whole().tell(e.LineLost, "r", 75.0),
    "the event loop": lagging(0.01),
    "the event loop in its first minute": Trace().scrape({"poolgate_loop_lag_seconds": 0.9}),
    "the event loop of a machine that stands still": lagging(0.9, machine=0.9),
    "a request that was just over when it was counted": Trace().whole().scrape({**AT_REST, "poolgate_in_flight": 1.0})
    .scrape(AT_REST),
    "an error soon after a fault": after_a_fault(5, error()),
    "a refusal long after a fault": after_a_fault(20, error(429, "rate_limit_exceeded")),
    "even shares": shares(60, 55),
    "a few requests, by chance uneven": shares(40, 22),
    "uneven shares while a pod warms up": shares(100, 0, even_after=60.0),
}  # fmt: skip

BROKEN: dict[str, tuple[str, Trace]] = {
    "no byte of an answer": ("I1", Trace().sends().ends(How.UNANSWERED).line("internal")),
    "a stream that ends without a word": (
        "I1",
        Trace().sends().pod(ROLE).client(ROLE).pod_is_cut().ends(How.CUT).line("truncated", usage_source="estimated"),
    ),
    "a stream whose body just ends": (
        "I1",
        Trace().sends().pod(ROLE, TEXT).client(ROLE, TEXT).pod_is_cut().ends().line("truncated", usage_source="x"),
    ),
    "an error that is cut": ("I1", Trace().sends().client(status=503).ends(How.CUT).line("refused", attempts=0)),
    "a cut answer of a pod that was whole": (
        "I1",
        Trace().sends(shape=Shape.WHOLE).pod(BODY).pod_ends().client().ends(How.CUT).line("truncated"),
    ),
    "an error event that nobody has sent": ("I1", cut_and_told("made_up")),
    "no access line": ("I1", Trace().sends().client(status=503).ends(code="no_ready_pod").later(6)),
    "no access line at the end": ("I1", Trace().sends().client(status=503).ends(code="no_ready_pod")),
    "two access lines": ("I1", Trace().whole().line()),
    "an error of the gateway's own": ("I1", error(500, "internal_error", "internal")),
    "a fault of the gateway's own that nobody has seen": ("I1", left().pod_is_cut().line("internal", usage_source="x")),
    "an error of the gateway's own in a stream": ("I1", cut_and_told("internal_error")),
    "an access line that tells of success": ("I1", error(outcome="completed")),
    "an access line that tells of a failure": (
        "I1",
        Trace().sends().pod(*STREAM).pod_ends().client(*SEEN).ends().line("truncated"),
    ),
    "a request without an end": ("I1", Trace().sends().pod(ROLE).line("truncated", usage_source="estimated")),
    "a clean end without a finish reason": (
        "I2",
        Trace().sends().pod(ROLE, TEXT, DONE).pod_ends().client(ROLE, TEXT, DONE).ends().line(usage_source="x"),
    ),
    "a clean end with a finish reason for one of two": (
        "I2",
        Trace().sends(choices=2).pod(*STREAM).pod_ends().client(*SEEN).ends().line(),
    ),
    "an end mark that no pod has sent": (
        "I2",
        Trace().sends().pod(ROLE, LAST).pod_is_cut().client(ROLE, LAST, DONE).ends().line(usage_source="x"),
    ),
    "a byte that the pod has not sent": (
        "I3",
        Trace().sends().pod(*STREAM).pod_ends().client(ROLE, OTHER_TEXT, LAST, DONE).ends().line(),
    ),
    "an event that is missing": (
        "I3",
        Trace().sends().pod(*STREAM).pod_ends().client(ROLE, LAST, DONE).ends().line(),
    ),
    "an event that comes twice": (
        "I3",
        Trace().sends().pod(*STREAM).pod_ends().client(ROLE, TEXT, TEXT, LAST, DONE).ends().line(),
    ),
    "usage withheld from who asked for it": (
        "I3",
        Trace()
        .sends(wants_usage=True)
        .pod(ROLE, USAGE, LAST, DONE)
        .pod_ends()
        .client(ROLE, LAST, DONE)
        .ends()
        .line(),
    ),
    "bytes of two pods": (
        "I3",
        Trace()
        .sends()
        .pod(ROLE, TEXT)
        .pod_is_cut()
        .pod(ROLE, OTHER_TEXT, LAST, DONE, number=2, pod="b")
        .pod_ends(2)
        .client(ROLE, TEXT, LAST, DONE)
        .ends()
        .line(attempts=2, usage_source="x"),
    ),
    "words behind an error event": (
        "I3",
        Trace()
        .sends()
        .pod(ROLE, ERROR, TEXT)
        .pod_is_cut()
        .client(ROLE, ERROR, TEXT, DONE)
        .ends(code="x")
        .line("upstream_failed", usage_source="x"),
    ),
    "another body than the pod's": (
        "I3",
        Trace().sends(shape=Shape.WHOLE).pod(BODY).pod_ends().client(Piece(Kind.BODY, 9)).ends().line(),
    ),
    "a gauge that stays": ("I4", Trace().scrape({"poolgate_connections": 1.0})),
    "a gauge below 0": ("I4", Trace().scrape({'poolgate_queue_depth{pool="chat"}': -1.0}).scrape({})),
    "a request in flight that no client has sent": ("I5", Trace().scrape({"poolgate_in_flight": 1.0}).scrape({})),
    "a pod's request that is not counted": (
        "I5",
        Trace().sends().pod(ROLE).later(3).scrape({"poolgate_in_flight": 0.0}).pod_ends().scrape({}),
    ),
    "more at pods than in flight": (
        "I5",
        Trace()
        .sends()
        .scrape({"poolgate_in_flight": 0.0, "poolgate_pod_in_flight": 1.0})
        .client(status=503)
        .ends()
        .line("refused")
        .scrape({}),
    ),
    "other tokens than the pod's": (
        "I6",
        Trace().sends().pod(*STREAM).pod_ends().client(*SEEN).ends().line(completion_tokens=3),
    ),
    "estimated though the pod told": (
        "I6",
        Trace().sends().pod(*STREAM).pod_ends().client(*SEEN).ends().line(usage_source="estimated"),
    ),
    "counted tokens that are not in the lines": (
        "I6",
        Trace().whole().scrape({**AT_REST, 'poolgate_tokens_total{kind="completion"}': 3.0}),
    ),
    "a request to a terminating pod": ("I7", marked("terminating", "b").later(1).whole()),
    "a request to a pod that is gone, the only one": ("I7", marked("gone").later(1).whole()),
    "a request to a pod that is not ready beside one that is": ("I7", marked("not_ready", "b").later(1).whole()),
    "a terminating pod picked": (
        "I7",
        Trace().sends().tell(e.Picked, "r", "a", "terminating", 0).pod(*STREAM).pod_ends().client(*SEEN).ends().line(),
    ),
    "an ejected pod picked beside a good one": (
        "I7",
        Trace().sends().tell(e.Picked, "r", "a", "ejected", 1).pod(*STREAM).pod_ends().client(*SEEN).ends().line(),
    ),
    "attempts without an end": (
        "I8",
        Trace()
        .sends()
        .pod()
        .pod_is_cut()
        .pod(number=2)
        .pod_is_cut(2)
        .pod(number=3)
        .pod_is_cut(3)
        .pod(number=4)
        .pod_is_cut(4)
        .client(status=502)
        .ends()
        .line("truncated", attempts=4),
    ),
    "refused connections without an end": ("I8", error().whole("s").sends("t").line("refused", "t", attempts=6)),
    "an attempt behind the first byte": (
        "I8",
        Trace()
        .sends()
        .pod(ROLE)
        .client(ROLE)
        .pod_is_cut()
        .pod(number=2, pod="b")
        .pod_is_cut(2)
        .client(ERROR, DONE)
        .ends(code="upstream_reset")
        .line("truncated", attempts=2, usage_source="estimated"),
    ),
    "a storm of retries": ("I8", many_retries(12)),
    "more than the limit": ("I9", spent(8)),
    "more than the limit twice": ("I9", spent(14, lost=True)),
    "a pod that works on for nobody": (
        "I10",
        left().pod_is_cut(after=0.5).line("client_left", usage_source="estimated"),
    ),
    "a pod that works on for nobody to the end": ("I10", left().line("client_left", usage_source="x").later(2)
        .tell(e.Text, "log", "").pod_is_cut()),
    "a dead request that is sent": (
        "I10",
        Trace().sends().tell(e.ClientLeft, "r").pod(after=0.5).pod_is_cut().line("client_left", completion_tokens=0),
    ),
    "memory that grows": ("I11", Trace().scrape({"process_resident_memory_bytes": 300e6})),
    "series that grow": ("I11", Trace().scrape({f"a{number}": 1.0 for number in range(9)})),
    "a prompt in the log": ("I12", Trace().tell(e.Text, "log", "he said canary-7, then left")),
    "an error of another shape": ("I13", error(faulty="no JSON")),
    "a connection that breaks behind an answer": ("I13", Trace().whole().tell(e.LineLost, "r", 0.01)),
    "a request that nobody has sent": ("I14", Trace().tell(e.PodReceived, "a", "x-0f-1")),
    "a request that is not for pods": (
        "I14",
        Trace().sends(to_pods=False, shape=Shape.WHOLE).pod(BODY).pod_ends().client(BODY).ends().line(),
    ),
    "a line of a request that nobody has sent": ("I14", Trace().line(request_id="x")),
    "an answer out of nothing": (
        "I14",
        Trace().sends(shape=Shape.WHOLE).client().ends().line(attempts=0, completion_tokens=None),
    ),
    "more attempts than the line tells": (
        "I14",
        Trace().sends().pod().pod_is_cut().pod(*STREAM, number=2).pod_ends(2).client(*SEEN).ends().line(),
    ),
    "requests that are counted and have no line": (
        "I14",
        Trace().whole().scrape({**AT_REST, "poolgate_requests_total": 2.0}),
    ),
    "a loop that is held up": ("I15", lagging(0.2)),
    "a loop that is held up for longer than the machine": ("I15", lagging(0.4, machine=0.2)),
    "an error long after a fault": ("I16", after_a_fault(20, error())),
    "a stream that is cut long after a fault": ("I16", after_a_fault(20, cut_and_told())),
    "a pod without its share": ("I16", shares(100, 10)),
}  # fmt: skip


@pytest.mark.parametrize("trace", KEPT.values(), ids=KEPT)
def test_what_is_as_it_should_be_breaks_nothing(trace: Trace) -> None:
    assert broken(trace, bounds=BOUNDS) == []


@pytest.mark.parametrize(("name", "trace"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_is_found(name: str, trace: Trace) -> None:
    assert name in broken(trace, bounds=BOUNDS)


@pytest.mark.parametrize(("name", "trace"), BROKEN.values(), ids=BROKEN)
def test_it_is_found_by_its_rule_and_by_no_other_rule_alone(name: str, trace: Trace) -> None:
    (mine,) = [rule for rule in RULES if rule.name == name]
    assert broken(trace, bounds=BOUNDS, rules=[mine]) == [name]


def test_every_rule_is_broken_by_some_trace() -> None:
    assert {name for name, _ in BROKEN.values()} == {rule.name for rule in RULES}
    assert [rule.name for rule in RULES] == [f"I{number}" for number in range(1, 17)]
    assert all((rule.__doc__ or "").strip() for rule in RULES)


def test_without_pods_or_lines_to_hear_only_the_client_is_judged() -> None:
    blind = Bounds(lines=False, pods=False)
    fine = Trace().sends().client(*SEEN).ends()
    assert broken(fine, bounds=blind) == []
    lie = Trace().sends().client(ROLE, TEXT, DONE).ends()
    assert broken(lie, bounds=blind) == ["I2"]


def test_a_violation_names_moment_request_and_reason() -> None:
    checker = Checker()
    for event in Trace().sends("who").ends(How.UNANSWERED, "who").events:
        checker.hear(event)
    (found,) = checker.violations
    assert (found.rule, found.request_id) == ("I1", "who")
    assert found.at == pytest.approx(100.02)
    assert "not a byte" in str(found)


def test_what_is_over_is_forgotten() -> None:
    checker = Checker()
    for number in range(1000):
        trace = Trace().whole(f"r{number}")
        for event in trace.events:
            checker.hear(event._replace(at=event.at + number))
        assert checker.open_lives == 0
    assert checker.endings == {"complete": 1000}


def test_an_id_is_not_taken_twice() -> None:
    checker = Checker()
    for event in Trace().whole().events:
        checker.hear(event)
    with pytest.raises(ValueError, match="was sent before"):
        checker.hear(Trace().sends().events[0])
