"""The screen of `poolgate top`: it fits any terminal, shows the sick first, and reads nothing as anything but text."""

import json
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.api.status import status_of
from gateway.cli.figures import sparkline
from gateway.cli.top_screen import FIRST, NOTES_SHOWN, TABLES, page, shares
from tests.seeing import seen

HISTORY = [0, 3, 5, 1] * 7 + [2, 9]


def pod(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "pool": "chat",
        "state": state,
        "reason": "",
        "for_seconds": 200.0,
        "models": [{"name": "qwen3-8b", "claimed_by": None}],
        "in_flight": 14,
        "max_in_flight": 128,
        "load": {"in_flight": 14, "running": 12, "waiting": 2, "kv_usage": 0.43},
        "share": 0.515,
        "failed": 0,
        "ttft_ms": 76.1,
        "history": HISTORY,
    } | more


def tenant(name: str, requests: int = 9, limits: Sequence[tuple[int, int]] = ((431, 600),)) -> dict[str, Any]:
    told = [
        {"limit": "requests per minute", "of": f"key {name}", "used": used, "amount": amount} for used, amount in limits
    ]
    return {"tenant": name, "requests": requests, "tokens": 240_112, "failed": 0, "refused": 0, "limits": told}


def status(pods: Sequence[dict[str, Any]] = (), tenants: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
    """Of a gateway in traffic, with these pods."""
    pool: dict[str, Any] = {
        "ready": 2,
        "starting": 1,
        "draining": 0,
        "ejected": 1,
        "asleep": 0,
        "queue": 4,
        "panic": False,
    }
    pool |= {"models": ["qwen3-8b"], "in_flight": 27, "failed": 3, "ttft_ms": {"p50": 78.4, "p99": 702.0}}
    event = {"ts": "2026-11-30T02:31:40Z", "level": "error", "what": "pod_ejected", "subject": "chat/chat-1"}
    return {
        "version": "0.1.0",
        "replica": "poolgate-7c9f6d5b8-x2m4q",
        "ts": "2026-11-30T02:31:54Z",
        "uptime_seconds": 5383.0,
        "ready": True,
        "reason": "",
        "replicas": 3,
        "config": {"error": "", "waits_for_restart": []},
        "limits": {"mode": "redis", "reason": ""},
        "discovery": {"mode": "kubernetes", "listed": True, "asked": True, "stale_seconds": 0.0},
        "traffic": {
            "per_second": 20.567,
            "in_flight": 31,
            "queue": 4,
            "failed": 3,
            "refused": 12,
            "left": 5,
            "ttft_ms": {"p50": 81.2, "p99": 640.0},
            "tokens_per_second": 5120.4,
            "history": HISTORY,
        },
        "pools": {"chat": {**pool, "queue": 0, "history": HISTORY}},
        "pods": list(pods) or [pod("chat-0")],
        "refused": [],
        "models_without_pods": [],
        "tenants": list(tenants),
        "events": [{**event, "text": "several requests in a row failed there"}],
    } | more


def shown(told: dict[str, Any], width: int = 160, height: int | None = 50, fault: str = "", **console: Any) -> str:
    """The screen as it is printed."""
    out = StringIO()
    Console(file=out, width=width, height=height or 100, **console).print(page(told, width, height, fault))
    return out.getvalue()


def row(name: str, text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return re.sub(r"\s{2,}", "  ", line.strip())


# What it shows.


def test_the_head_tells_of_the_last_minute() -> None:
    head, minute, more = shown(status()).splitlines()[:3]
    assert head.startswith(
        "poolgate 0.1.0 · poolgate-7c9f6d5b8-x2m4q · ready · 3 replicas · up 1h 29m · limits in redis"
    )
    assert head.endswith("02:31:54 UTC")
    assert minute.startswith("20.6 req/s ▁")
    assert minute.endswith("TTFT 81 ms p99 640 ms  failed 3")
    assert more == "31 in flight  4 waiting  12 refused  5 left by their client  5,120 tokens/s"


def test_the_time_is_left_out_of_a_head_that_has_no_room_for_all_of_it() -> None:
    whole = shown(status(), width=200).splitlines()[0].rstrip()
    without = whole.partition(" · 02:31:54 UTC")[0]
    assert shown(status(), width=len(whole)).splitlines()[0].rstrip() == whole
    assert shown(status(), width=len(whole) - 1).splitlines()[0].rstrip() == without


def test_each_pod_has_its_state_reason_load_and_share() -> None:
    sick = pod("chat-1", "ejected", reason="half of its requests failed; back in 12 s", for_seconds=None, failed=3)
    text = shown(status([pod("chat-0"), sick]), width=200)
    history = sparkline(HISTORY, 20)
    assert row("chat-0", text) == f"chat-0  chat  ready  14  12  2  ███·····  43%  76 ms  52  0  {history}  3m 20s"
    assert row("chat-1", text).endswith(f"  52  3  {history}  half of its requests failed; back in 12 s")


def test_pods_that_are_not_well_come_first() -> None:
    states = ["asleep", "ready", "draining", "starting", "ejected", "of-a-later-version"]
    text = shown(status([pod(f"pod-{state}", state) for state in states]))
    found = re.findall(r"^pod-(\S+)", text, re.MULTILINE)
    assert found == ["ejected", "starting", "draining", "of-a-later-version", "ready", "asleep"]


def test_a_tenant_is_seen_with_the_limit_that_is_nearest() -> None:
    tenants = [tenant("calm", 1), tenant("busy", 900, [(3, 32), (600, 600)]), tenant("silent", 0, [])]
    text = shown(status(tenants=tenants))
    assert row("busy", text) == "busy  900  240,112  0  0  ████████ 600 of 600 requests per minute (key busy)"
    assert text.index("busy ") < text.index("calm ")
    assert "silent" not in text


def test_events_have_their_time_and_words() -> None:
    assert row("02:31:40", shown(status())) == "02:31:40  chat/chat-1  several requests in a row failed there"


def test_what_wants_an_eye_stands_at_the_top() -> None:
    told = status(
        config={"error": "poolgate.yaml:12: no such key", "waits_for_restart": ["server.port"]},
        limits={"mode": "local", "reason": "timeout"},
        models_without_pods=["qwen3-32b"],
    )
    assert shown(told).splitlines()[3:7] == [
        "refused: poolgate.yaml:12: no such key",
        "wait for a restart: server.port",
        "limits: Redis is slow or away (timeout)",
        "without a ready pod: qwen3-32b",
    ]


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (1, "overloaded: short of memory, what can wait turned away"),
        (2, "overloaded: short of memory, all new requests turned away"),
    ],
)
def test_a_gateway_with_too_much_to_do_says_so(level: int, words: str) -> None:
    told = status(overload={"level": level, "short_of": "memory", "for_seconds": 3.0, "shed": 9})
    assert words in shown(told).splitlines()


def test_a_screen_that_could_not_be_renewed_says_so() -> None:
    text = shown(status(), fault="not renewed for 12s: nothing answers at http://x")
    assert "· not renewed ·" in text.splitlines()[0]
    assert text.splitlines()[3] == "not renewed for 12s: nothing answers at http://x"


def test_a_gateway_that_is_not_ready_says_why() -> None:
    assert "not ready: draining" in shown(status(ready=False, reason="draining")).splitlines()[0]


def test_what_a_real_gateway_says_can_be_shown() -> None:
    told = json.loads(json.dumps(status_of(seen())))
    text = shown(told)
    assert "its readiness probe fails" in text
    assert row("chat-0", text).startswith("chat-0  chat  ready  3")


# It fits.


@pytest.mark.parametrize("height", range(1, 60, 3))
@pytest.mark.parametrize("width", [10, 40, 80, 132, 250])
def test_it_is_never_taller_nor_wider_than_the_terminal(width: int, height: int) -> None:
    pods = [pod(f"chat-{at}-東京", "ready" if at % 3 else "ejected", reason="because " * 20) for at in range(40)]
    told = status(pods, [tenant(f"t{at}") for at in range(30)], models_without_pods=[f"m{at}" for at in range(50)])
    told["events"] *= 20
    lines = shown(told, width, height).splitlines()
    assert len(lines) <= height
    console = Console(width=width)
    assert all(console.render_str(line).cell_len <= width for line in lines)


def test_what_does_not_fit_is_counted() -> None:
    told = status([pod(f"chat-{at:02}") for at in range(40)])
    text = shown(told, height=30)
    seen_rows = len(re.findall(r"^chat-\d\d ", text, re.MULTILINE))
    assert f"and {40 - seen_rows} more" in text
    assert seen_rows > 10


def test_on_a_narrow_terminal_the_reason_stays_and_other_columns_go() -> None:
    told = status([pod("chat-1", "ejected", reason="half of its requests failed", for_seconds=None)])
    text = shown(told, width=60)
    assert "half of its requests f" in text
    assert row("pod", text) == "pod  state  in flight  why"


def test_many_warnings_leave_room_for_the_pods() -> None:
    told = status(refused=[{"name": f"odd-{at}", "why": "it has no label"} for at in range(50)])
    tall, low = shown(told, height=50), shown(told, height=12)
    assert len(re.findall("odd-", tall)) == NOTES_SHOWN
    assert "(47 warnings) refused: odd-3" in tall
    assert "chat-0 " in low


@given(
    st.integers(0, 80),
    st.fixed_dictionaries({name: st.integers(0, 50) for name in TABLES}),
)
def test_tables_never_get_more_lines_than_there_are_nor_than_they_have(room: int, counts: dict[str, int]) -> None:
    found = shares(room, counts)
    assert sum(found.values()) <= room
    wants = {name: count + 2 if count else 0 for name, count in counts.items()}
    for name, share in found.items():
        assert share <= wants[name]
        # A table that is there shows a row.
        assert share == 0 or share >= 3
    if sum(wants.values()) <= room:
        assert found == wants
    first = next((name for name, _ in FIRST if counts[name]), None)
    assert first is None or room < 4 or found[first]


def test_without_a_height_all_is_told() -> None:
    told = status([pod(f"chat-{at:03}") for at in range(200)])
    assert len(re.findall(r"^chat-\d{3} ", shown(told, height=None), re.MULTILINE)) == 200


# It is text.


def test_what_pods_and_callers_say_is_neither_markup_nor_steers_the_terminal() -> None:
    said = "[bold]loud[/bold] \x1b[2J"
    told = status(
        [pod(said, "ejected", reason=said, for_seconds=None)],
        [tenant(said)],
        models_without_pods=[said],
        replica=said,
        config={"error": said, "waits_for_restart": [said]},
    )
    told["events"][0] |= {"subject": said, "text": said}
    text = shown(told, width=300, force_terminal=True, color_system="standard")
    assert text.count("[bold]loud[/bold] \N{REPLACEMENT CHARACTER}[2J") >= 8
    assert "\x1b[2J" not in text
