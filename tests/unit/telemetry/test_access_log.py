"""One line for each request, with the contract's fields and nothing else; and nobody waits for whoever reads them."""

import io
import json
import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import Tenant
from gateway.telemetry.access_log import MAX_BATCH_LINES, MAX_FIELD_CHARACTERS, MAX_WAITING_BATCHES, AccessLog
from tests.turns import Ticks
from tests.unit.telemetry.trails import refused, trail

# As the contract has them; `code` is the error's.
FIELDS = {
    "ts",
    "level",
    "request_id",
    "tenant",
    "key_id",
    "operation",
    "model",
    "pool",
    "pod",
    "status",
    "outcome",
    "stream",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "usage_source",
    "queue_ms",
    "ttft_ms",
    "duration_ms",
    "overhead_ms",
    "attempts",
    "decision",
    "finish",
    "code",
}
WALL = 1_795_460_361.25


def written(*trails: Trail, out: io.BytesIO | None = None) -> list[bytes]:
    """The lines of these requests."""
    out = out or io.BytesIO()
    log = AccessLog(out)
    for each in trails:
        log.write(each, WALL)
    log.close()
    assert log.dropped == 0
    return out.getvalue().splitlines(keepends=True)


def line(ended: Trail) -> dict[str, Any]:
    (raw,) = written(ended)
    assert raw.endswith(b"}\n")
    told: dict[str, Any] = json.loads(raw)
    return told


def test_a_line_has_the_contracts_fields() -> None:
    assert line(trail()) == {
        "ts": "2026-11-23T18:59:21.250Z",
        "level": "info",
        "request_id": "id-1",
        "tenant": "acme",
        "key_id": "k1",
        "operation": "chat",
        "model": "org/m",
        "pool": "chat",
        "pod": "chat-0",
        "status": 200,
        "outcome": "completed",
        "code": "",
        "stream": True,
        "prompt_tokens": 34,
        "completion_tokens": 10,
        "cached_tokens": 16,
        "usage_source": "reported",
        "queue_ms": 0,
        "ttft_ms": 100.0,
        "duration_ms": 190.0,
        "overhead_ms": 3.0,
        "attempts": 1,
        "decision": "least",
        "finish": "stop",
    }
    assert set(line(trail())) == set(line(refused())) == FIELDS


def test_what_never_happened_is_null() -> None:
    told = line(refused())
    for name in ("tenant", "key_id", "prompt_tokens", "completion_tokens", "cached_tokens", "usage_source", "ttft_ms"):
        assert told[name] is None
    assert told["overhead_ms"] is None
    assert (told["operation"], told["status"], told["code"], told["duration_ms"]) == (
        "other",
        401,
        "invalid_api_key",
        0.5,
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_only_our_own_faults_are_errors(outcome: Outcome) -> None:
    told = line(trail(outcome=outcome))
    assert (told["outcome"], told["level"]) == (outcome.value, "error" if outcome is Outcome.INTERNAL else "info")


def test_estimated_tokens_are_called_so() -> None:
    assert line(trail(usage=Usage(1, 2, estimated=True)))["usage_source"] == "estimated"


def test_the_time_between_several_attempts_is_not_called_ours() -> None:
    assert line(trail(attempts=2))["overhead_ms"] is None


def test_the_wait_for_a_pod_is_told_in_milliseconds() -> None:
    assert line(trail(queue_seconds=0.1234567))["queue_ms"] == 123.457


def test_an_answer_that_is_not_a_stream_has_no_first_token() -> None:
    assert line(trail(stream=False))["ttft_ms"] is None


def test_requests_that_differ_in_one_thing_do_not_share_it() -> None:
    other = Tenant(key_id="k2", team="other")
    variants: list[dict[str, Any]] = [
        {"tenant": other},
        {"tenant": None},
        {"operation": "completions"},
        {"model": "m2"},
        {"pool": "p2"},
        {"pod": "p2-1"},
        {"status": 502},
        {"outcome": Outcome.TRUNCATED},
        {"code": "upstream_truncated"},
        {"stream": False},
        {"usage": Usage(5, 6, 7)},
        {"usage": Usage(34, 10, 16, estimated=True)},
        {"usage": None},
        {"attempts": 2},
        {"decision": "p2c"},
        {"finish": "length"},
        {"ended_at": 1001.0},
        {"first_content_at": None},
        {"queue_seconds": 0.05},
    ]
    trails = [trail(**more) for more in variants]
    together = [json.loads(raw) for raw in written(trail(), *trails, trail())]
    apart = [line(each) for each in (trail(), *trails, trail())]
    assert together == apart
    assert together[0] == together[-1]
    assert all(told != together[0] for told in together[1:-1])


def test_two_keys_of_one_team_are_told_apart() -> None:
    tenants = [Tenant(key_id=f"k{number}", team="acme") for number in range(3)]
    assert [json.loads(raw)["key_id"] for raw in written(*(trail(tenant=each) for each in tenants))] == [
        "k0",
        "k1",
        "k2",
    ]


def test_the_second_and_the_millisecond_are_the_requests_own() -> None:
    out = io.BytesIO()
    log = AccessLog(out)
    for wall in (WALL, WALL + 0.7, WALL + 0.7499, WALL + 0.75, WALL - 1, 0.0, 1.9999):
        log.write(trail(), wall)
    log.close()
    assert [json.loads(raw)["ts"] for raw in out.getvalue().splitlines()] == [
        "2026-11-23T18:59:21.250Z",
        "2026-11-23T18:59:21.950Z",
        "2026-11-23T18:59:21.999Z",
        "2026-11-23T18:59:22.000Z",
        "2026-11-23T18:59:20.250Z",
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:01.999Z",
    ]


@settings(max_examples=100)
@given(st.text(st.characters(codec=None), max_size=300), st.text(st.characters(codec=None), max_size=20))
def test_a_line_is_one_line_of_json_whatever_a_caller_or_a_pod_calls_things(model: str, finish: str) -> None:
    (raw,) = written(trail(model=model, finish=finish))
    assert raw.count(b"\n") == 1
    told = json.loads(raw)
    assert set(told) == FIELDS
    wanted = model[:MAX_FIELD_CHARACTERS].encode("utf-8", "replace").decode()
    assert told["model"] == wanted
    assert told["finish"] == finish.encode("utf-8", "replace").decode()


def test_a_long_name_is_cut() -> None:
    assert len(line(trail(model="x" * 100_000))["model"]) == MAX_FIELD_CHARACTERS


def test_names_that_callers_make_up_are_not_kept() -> None:
    log = AccessLog(io.BytesIO())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            log.write(refused(model=f"{number}" + "x" * 100_000), WALL)
        log.sync()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        log.close()
    assert after - before < 5_000_000


def test_many_kinds_of_lines_do_not_gather() -> None:
    log = AccessLog(io.BytesIO())
    tracemalloc.start()
    try:
        sizes = []
        for round_ in range(4):
            for number in range(4000):
                log.write(refused(model=f"m-{round_}-{number}"), WALL)
            log.sync()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        log.close()
    assert sizes[-1] < sizes[0] + 5_000_000


# On a terminal.


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_line_for_eyes() -> None:
    (raw,) = written(trail(), out=Terminal())
    told = raw.decode()
    for word in (
        "18:59:21.250",
        "200",
        "completed",
        "chat",
        "org/m",
        "chat-0",
        "190.0 ms",
        "ttft 100.0 ms",
        "34+10",
        "id-1",
    ):
        assert word in told
    assert not told.startswith("{")
    assert "waited" not in told
    (raw,) = written(trail(queue_seconds=0.12), out=Terminal())
    assert "waited 120.0 ms" in raw.decode()
    (raw,) = written(refused(), out=Terminal())
    assert "invalid_api_key" in raw.decode()


@pytest.mark.parametrize("model", ["\x1b[2J", "a\nb", "a\rb", "\x07", "\x9b31m", "é\u202e"])
def test_nothing_a_caller_names_can_steer_a_terminal(model: str) -> None:
    (plain,) = written(trail(model="m"), out=Terminal())
    (raw,) = written(trail(model=model), out=Terminal())
    told = raw.decode()
    assert told.count("\n") == 1
    assert told.count("\x1b") == plain.decode().count("\x1b")
    for character in model:
        if not character.isascii() or not character.isprintable():
            assert told.count(character) == plain.decode().count(character)


# A reader that does not read.


class Stuck(io.BytesIO):
    """A full pipe, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go = threading.Event()

    def write(self, data: Any, /) -> int:
        self.entered.set()
        assert self.go.wait(60)
        return super().write(data)


def test_a_full_pipe_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    out = Stuck()
    log = AccessLog(out)
    log.write(trail(), WALL)
    log.flush()
    assert out.entered.wait(30)
    extra = 20
    with Ticks() as ticks:
        for _ in range(MAX_WAITING_BATCHES + extra):
            log.write(trail(), WALL)
            log.flush()
    assert ticks.seconds < 1
    assert log.dropped == extra
    out.go.set()
    give_up_at = time.monotonic() + 60
    while len(out.getvalue().splitlines()) < 1 + MAX_WAITING_BATCHES and time.monotonic() < give_up_at:
        # Its end waits for no more than a second or two.
        time.sleep(0.001)
    log.close()
    assert len(out.getvalue().splitlines()) == 1 + MAX_WAITING_BATCHES


def test_lines_that_nobody_flushes_are_bounded() -> None:
    out = io.BytesIO()
    log = AccessLog(out)
    for _ in range(MAX_BATCH_LINES + 5):
        log.write(trail(), WALL)
    assert log.dropped == 5
    log.close()
    assert len(out.getvalue().splitlines()) == MAX_BATCH_LINES


class Broken(io.BytesIO):
    def write(self, data: Any, /) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_costs_the_lines_and_nothing_else() -> None:
    log = AccessLog(Broken())
    for _ in range(3):
        log.write(trail(), WALL)
        log.write(trail(), WALL)
        log.sync()
    assert log.dropped == 6
    log.close()


def test_closing_writes_what_is_left_and_ends_the_writer() -> None:
    before = threading.active_count()
    out = io.BytesIO()
    log = AccessLog(out)
    assert threading.active_count() == before + 1
    log.write(trail(), WALL)
    log.close()
    assert out.getvalue()
    assert threading.active_count() == before


@pytest.mark.parametrize("sign", ["\n", "\x1b[31m", "\u2028", "\u2029", "\x85", "\x7f", "\u202e", "\U000e0001"])
def test_what_a_caller_names_a_model_cannot_end_its_line_nor_colour_a_terminal(sign: str) -> None:
    name = f'm{sign}{{"status":200}}'
    (raw,) = written(trail(model=name))
    text = raw.decode().removesuffix("\n")
    assert text.isprintable()
    assert len(text.splitlines()) == 1
    assert json.loads(text)["model"] == name
