"""The table of pods: what an operator sees of a status, and that nothing in it is read as anything but text."""

import json
import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from gateway.api.status import status_of
from gateway.cli.pods_table import notes, page
from gateway.core.fleet import Fleet, Model, PodHealth, PodState, RefusedPod
from tests.seeing import FLEET, NOW, pod, seen


def told(**more: Any) -> dict[str, Any]:
    """A status as it comes out of JSON."""
    status = json.loads(json.dumps(status_of(seen(**more))))
    assert isinstance(status, dict)
    return status


def shown(status: dict[str, Any], fault: str = "", *, width: int = 200, colours: bool = False) -> str:
    """The page as it is printed."""
    out = StringIO()
    Console(file=out, width=width, force_terminal=colours, color_system="standard" if colours else None).print(
        page(status, width, fault)
    )
    return out.getvalue()


def row(name: str, text: str) -> list[str]:
    """A pod's first line, its cells parted by two blanks or more."""
    (line,) = [line for line in text.splitlines() if re.search(rf"\b{name}\b", line)]
    return re.split(r"\s{2,}", line.strip())


def heads(text: str) -> list[str]:
    """What the columns are called."""
    (head,) = [line for line in text.splitlines() if line.strip().startswith(("pool ", "pod ")) and "state" in line]
    return re.split(r"\s{2,}", head.strip())


def test_every_pod_is_a_row() -> None:
    text = shown(told())
    columns = "pool pod state for in_flight running waiting KV_% TTFT failed models why"
    assert heads(text) == [column.replace("_", " ") for column in columns.split()]
    assert row("chat-0", text) == (["chat", "chat-0", "ready", "3m 20s", "3", "4", "2", "88", "-", "0", "qwen3-8b"])
    assert row("chat-1", text) == (
        ["chat", "chat-1", "starting", "8s", "3", "-", "-", "-", "-", "0", "its readiness probe fails"]
    )
    assert row("chat-2", text)[2:4] == ["draining", "2h 5m"]
    assert row("chat-2", text)[-1] == "it is terminating"
    assert row("chat-3", text)[2:4] == ["asleep", "3d 3h"]
    assert row("chat-3", text)[-1] == "it sleeps"


def test_pods_that_are_not_well_come_first() -> None:
    names = re.findall(r"\b(?:chat|lora)-\d\b", shown(told()))
    assert names == ["chat-1", "chat-2", "chat-0", "lora-0", "chat-3"]


def test_an_ejected_pod_is_seen_with_why_and_when_it_is_back() -> None:
    health = PodHealth("ejected", "consecutive", 12.0, 0.1, NOW - 8.0)
    status = told(health_of=lambda uid: health if "chat-0" in uid else PodHealth())
    assert row("chat-0", shown(status))[2:4] == ["ejected", "8s"]
    assert row("chat-0", shown(status))[-1] == "several requests in a row failed there; back in 12 s"
    assert "\x1b[31mejected" in shown(status, colours=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_on_a_narrow_terminal_names_states_and_reasons_stay_whole(width: int) -> None:
    health = PodHealth("ejected", "consecutive", 12.0, 0.1, NOW - 8.0)
    text = shown(told(health_of=lambda uid: health if "chat-0" in uid else PodHealth()), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert heads(text)[-1] == "why"
    assert {"pod", "state", "for"} <= set(heads(text))
    assert row("chat-0", text)[:5].count("ejected") == 1
    assert " ".join(text.split()).count("chat-0") == 1
    # The first row, folded beside blanks only.
    told_of = " ".join(text.split())
    assert "several requests in a row failed there; back in 12 s chat-1" in told_of.replace("s chat chat-1", "s chat-1")


def test_what_has_no_room_is_left_out_the_least_important_first() -> None:
    whole = heads(shown(told()))
    narrow = heads(shown(told(), width=80))
    assert narrow == [head for head in whole if head in narrow]
    assert "models" not in narrow
    assert "in flight" in narrow


def test_a_model_that_another_pool_has_claimed_is_told_at_any_width() -> None:
    assert row("lora-0", shown(told()))[-2:] == ["qwen3-8b, base", "qwen3-8b (claimed by pool chat)"]
    assert "claimed by" in shown(told(), width=80)
    assert "\x1b[33mqwen3-8b (claimed by pool chat)" in shown(told(), colours=True)


def test_a_claimed_model_stands_behind_the_pods_own_reason() -> None:
    claimed = pod("lora-0", "lora", models=(Model("qwen3-8b"),), state=PodState.DRAINING, reason="it is terminating")
    assert "it is terminating; qwen3-8b (claimed by pool chat)" in shown(
        told(fleet=replace(FLEET, pods=(claimed, *FLEET.pods[1:])))
    )


def test_many_models_are_cut_short_but_claimed_ones_are_seen() -> None:
    models = (*(Model(f"adapter-{number}") for number in range(8)), Model("qwen3-8b"))
    text = shown(told(fleet=replace(FLEET, pods=(pod("lora-0", "lora", models=models),))))
    assert "qwen3-8b (claimed by pool chat)" in text
    assert [name in text for name in ("adapter-0", "adapter-4", "adapter-5")] == [True, True, False]
    assert "and 4 more" in text


def test_what_pods_say_is_neither_markup_nor_steers_the_terminal() -> None:
    said = "[bold]loud[/bold] :warning: \x1b[2J[/nothing]"
    odd = pod("chat-0", state=PodState.STARTING, reason=said, models=(Model("[red]m[/red]"),))
    fleet = replace(FLEET, pods=(odd,), refused=(RefusedPod("[link=x]stray", "no_pool", "[/] \x1b]0;title\x07"),))
    text = shown(told(fleet=fleet), colours=True)
    assert "[bold]loud[/bold] :warning: \N{REPLACEMENT CHARACTER}[2J[/nothing]" in text
    assert "[red]m[/red]" in text
    assert "refused: [link=x]stray: [/] \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}" in text
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text


def test_a_state_has_its_colour_and_one_that_is_not_known_has_none() -> None:
    status = told()
    status["pods"][1]["state"] = "of-a-later-version"
    text = shown(status, colours=True)
    assert "\x1b[32mready" in text
    assert "of-a-later-version" in text


def test_all_is_well_and_nothing_is_noted() -> None:
    assert notes(told(fleet=replace(FLEET, refused=()))) == []


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ({}, ["refused: stray: it has no label poolgate.dev/pool"]),
        ({"fleet": Fleet()}, ["no list of pods has come yet"]),
        ({"fleet": Fleet(listed=True, asked=True)}, ["no pods"]),
        ({"fleet": Fleet(listed=True)}, ["the gateway is not ready: asking pods for their models", "no pods"]),
        (
            {"fleet": replace(FLEET, refused=()), "stale_seconds": 75.0},
            ["discovery has heard nothing for 1m 15s: pods are as last seen"],
        ),
        ({"fleet": replace(FLEET, refused=()), "draining": True}, ["the gateway is not ready: draining"]),
        (
            {"fleet": replace(FLEET, refused=()), "waiting": lambda: [("chat", 5), ("lora", 0), ("llama", 1)]},
            ["pool chat: 5 requests wait for a pod", "pool llama: 1 request waits for a pod"],
        ),
        (
            {"fleet": replace(FLEET, refused=()), "panics": lambda: [("chat", True), ("lora", False)]},
            ["pool chat: too few pods are well, so ejected ones get requests as well"],
        ),
    ],
)
def test_what_wants_an_eye_stands_first(more: dict[str, Any], lines: list[str]) -> None:
    status = told(**more)
    assert notes(status) == lines
    assert [line.rstrip() for line in shown(status).splitlines()][: len(lines)] == lines


@pytest.mark.parametrize(("attempts", "failed", "noted"), [(5, 5, True), (6, 3, True), (7, 3, False), (2, 2, False)])
def test_a_pool_whose_last_pod_is_dead_is_noted_though_the_pod_is_ready(
    attempts: int, failed: int, noted: bool
) -> None:
    status = told(fleet=replace(FLEET, refused=()))
    status["pods"] = [each | {"attempts": 0, "failed": 0} for each in status["pods"]]
    lora = next(each for each in status["pods"] if each["pool"] == "lora")
    lora.update(attempts=attempts, failed=failed)
    words = "pool lora: most requests fail at its pods, which are listed as ready and may be dead"
    assert notes(status) == ([words] if noted else [])


def test_a_table_that_could_not_be_renewed_says_so() -> None:
    fault = "not renewed for 3s: nothing answers"
    assert notes(told(), fault)[0] == fault
    assert fault in shown(told(), fault)
