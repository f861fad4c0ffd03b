"""The bench of the choice measures what the gateway does, under a load that stays the same, and says it plainly."""

import json
import statistics
from collections import deque
from random import Random

import pytest

from gateway.balancing.affinity import LENGTHS, blocks_of
from gateway.balancing.balancer import Balancer, Lease
from gateway.balancing.policy import POLICIES, Wish
from gateway.core.call import Trail
from gateway.core.caller import Tenant
from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Pod, PodLoad, PodState, Policy, Pool, Route
from gateway.pipeline.exchange import Head
from gateway.pipeline.intake import QUOTED_ANSWER, call_of, look
from gateway.pipeline.operations import CHAT
from gateway.pipeline.reception import Visit
from gateway.pipeline.wish import wish_of
from gateway.upstream.usage import BYTES_PER_TOKEN
from loadtest.bench import choice
from loadtest.bench.choice import (
    CASES,
    PODS,
    PROMPTS,
    READING,
    RUNNING,
    BusyPods,
    Case,
    Lane,
    Wishes,
    main,
    measured,
    named,
    notes,
    over,
    table,
)
from loadtest.bench.report import Round

LONG, SHORT = "once upon a time " * 100, "hello"
NAMES = {case.name: case for case in CASES}


def asked(policy: Policy, *turns: str) -> tuple[Wish, bytes]:
    """What the gateway would choose a pod for this conversation by, and the conversation's bytes."""
    ready = tuple(Pod(f"u{number}", f"pod-{number}", "p", "h", 1, PodState.READY) for number in range(2))
    visit = Visit(Head(b"POST", b"/", {}, frozenset(), 0.0), Trail("id", 0.0))
    visit.operation, visit.tenant = CHAT, Tenant("key", "team")
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    seen = look(json.dumps({"model": "m", "messages": messages}).encode(), CHAT)
    route = Route("m", Pool("p", policy=policy), ready)
    wish = wish_of(route, call_of(seen, CHAT, visit.tenant), seen, visit)
    return wish, json.dumps(messages).encode()


# --- what is measured ---------------------------------------------------------------------------------------


def test_every_policy_is_measured_over_every_number_of_pods() -> None:
    assert {case.policy for case in CASES} == set(POLICIES)
    assert PODS == (8, 64, 512)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wish_holds_what_the_gateway_reads_for_that_policy(case: Case) -> None:
    policy: Policy = case.policy  # type: ignore[assignment]
    real, _ = asked(policy, LONG if case.blocks or case.policy != "auto" else SHORT)
    (wish,) = Wishes(case, 8, Random(1)).take(1)
    assert (bool(wish.blocks), bool(wish.key)) == (bool(real.blocks), bool(real.key))
    assert LENGTHS[len(wish.blocks)] == case.blocks
    assert bool(wish.tokens) == bool(real.tokens)


def test_prompts_are_as_long_as_their_titles_say_and_estimated_as_the_gateway_does() -> None:
    for title, blocks in PROMPTS.items():
        size = int(title.split()[0]) * 1024
        assert LENGTHS[len(blocks_of(b"x" * size, ("m",)))] == blocks
        (wish,) = Wishes(NAMES[f"auto, {title}"], 8, Random(1)).take(1)
        assert wish.tokens == size // BYTES_PER_TOKEN


def test_a_prompt_repeats_a_conversation_but_for_its_end() -> None:
    wishes = Wishes(NAMES["auto, 48 KB"], 8, Random(1)).take(200)
    old = LENGTHS.index(72)
    by_key: dict[int, list[Wish]] = {}
    for wish in wishes:
        by_key.setdefault(wish.key, []).append(wish)
    assert len(by_key) == choice.CONVERSATIONS * 8
    for same in by_key.values():
        assert len({wish.blocks[:old] for wish in same}) == 1
        assert len({wish.blocks[old:] for wish in same}) == len(same)
    # No two conversations begin alike.
    assert len({wish.blocks[0] for wish in wishes}) == len(by_key)


def test_a_prompt_is_read_as_the_gateway_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.ANSWER == QUOTED_ANSWER
    monkeypatch.setattr(choice, "SEED", ("m", b""))
    for turns in ((LONG,), (LONG * 40,), (LONG, SHORT), (LONG, SHORT, "and then " * 100, SHORT)):
        wish, prompt = asked("auto", *turns)
        assert named(prompt) == (wish.blocks, wish.key)


# --- the pods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [128, 8])
@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_choice_is_made_and_counted_as_the_balancer_does(case: Case, count: int, room: int) -> None:
    chance, wishes = Random(1), Wishes(case, count, Random(2))
    busy = BusyPods(case.policy, count, chance)
    policy: Policy = case.policy  # type: ignore[assignment]
    pool = Pool("p", policy=policy, max_in_flight_per_pod=room)
    pods = tuple(Pod(each.uid, each.name, "p", "h", 1, PodState.READY) for each in busy.standings)
    route = Route("m", pool, pods)
    same = Random()
    same.setstate(chance.getstate())
    balancer = Balancer(
        # Who is there before the fleet is known whole is warm.
        Cell(Fleet(pods, {"m": route}, listed=True)),
        clock=lambda: 0.0,
        chance=same.random,
        ejected=lambda pool, reason: pytest.fail("nothing failed"),
    )
    balancer.update()
    for each in busy.standings:
        each.room = room
        balancer.load_read(each.uid, PodLoad(in_flight=each.others), 1.0)
    running, unanswered = deque[Lease](), deque[Lease]()
    for wish in wishes.take(40 * count):
        ours = busy.choose(wish)
        lease = balancer.lease_nowait("m", wish)
        assert lease is not None
        theirs = lease.choice
        assert (ours.standing.uid, *ours[1:4], ours.costs) == (theirs.standing.uid, *theirs[1:4], theirs.costs)
        running.append(lease)
        unanswered.append(lease)
        if len(running) > RUNNING * count:
            running.popleft().close()
        if len(unanswered) > RUNNING * count // choice.UNANSWERED:
            unanswered.popleft().began(0.0)
    for each in busy.standings:
        seat = balancer.seat_of(each.uid)
        assert seat is not None
        assert (each.in_flight, each.pending_tokens) == (seat.in_flight, seat.pending_tokens)


def test_some_pods_have_requests_of_others_and_all_have_the_gateways_default_room() -> None:
    standings = BusyPods("auto", 64, Random(1)).standings
    assert len({each.others for each in standings}) > 2
    assert {each.room for each in standings} == {Pool("p").max_in_flight_per_pod}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_load_stays_the_same_however_long_it_is_measured(case: Case) -> None:
    busy, wishes = BusyPods(case.policy, 8, Random(1)), Wishes(case, 8, Random(1))
    for wish in wishes.take(1000):
        busy.choose(wish)
        assert sum(each.in_flight for each in busy.standings) <= RUNNING * 8
        assert min(min(each.in_flight, each.pending_tokens) for each in busy.standings) >= 0
    assert sum(each.in_flight for each in busy.standings) == RUNNING * 8


def test_a_long_prompts_conversation_is_known_on_a_few_pods() -> None:
    busy, wishes = BusyPods("auto", 64, Random(1)), Wishes(NAMES["auto, 48 KB"], 64, Random(2))
    for wish in wishes.take(choice.WARM_UP * 64):
        busy.choose(wish)
    known, cached = [], []
    for wish in wishes.take(200):
        known.append(sum(busy.cache.cached(each.uid, wish.blocks) > 0 for each in busy.standings))
        cached.append(busy.choose(wish).cached_tokens / wish.tokens)
    assert 1 <= statistics.mean(known) < 6
    assert statistics.mean(cached) > 0.6


# --- the measuring ------------------------------------------------------------------------------------------


def test_a_lanes_figure_is_the_cpu_time_of_one_call_and_its_inputs_are_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def clock() -> int:
        told.append("clock")
        return 1000 * len(told)

    def inputs() -> list[str]:
        told.append("inputs")
        return ["a", "b"]

    monkeypatch.setattr("time.thread_time_ns", clock)
    # From the second of five steps to the last, for two calls.
    assert Lane("", "", told.append, inputs).cpu_us() == 3 / 2
    assert told == ["inputs", "clock", "a", "b", "clock"]


def test_all_lanes_take_turns_and_the_order_turns_with_each_round() -> None:
    rounds = measured(3, pods=(2, 3))
    turns = [[(r.scenario, r.target) for r in rounds if r.number == number] for number in (1, 2, 3)]
    assert turns[0] == turns[1][::-1] == turns[2]
    assert len(set(turns[0])) == len(turns[0]) == 2 * len(CASES) + len(PROMPTS)
    assert all(r.values["cpu_us"] > 0 for r in rounds)


# --- the page -----------------------------------------------------------------------------------------------


def rounds_of(*each: float) -> list[Round]:
    columns = [("8 pods", case.name) for case in CASES] + [("64 pods", case.name) for case in CASES]
    return [
        Round(column, number, row, {"cpu_us": value}, 0.0, True)
        for column, row in [*columns, *((READING, title) for title in PROMPTS)]
        for number, value in enumerate(each, 1)
    ]


def test_a_cell_is_the_median_and_the_quartiles_so_that_one_bad_round_is_not_seen() -> None:
    found = over(rounds_of(6.0, 5.0, 7.0, 900.0, 4.0), "8 pods", "least, any")
    assert (found.low, found.median, found.high, found.rounds) == (5.0, 6.0, 7.0, 5)
    assert over(rounds_of(6.0), "8 pods", "least, any").median == 6.0


def test_each_figure_stands_beside_its_part_of_a_request() -> None:
    rounds = [r for r in rounds_of(10.0, 20.0, 30.0) if (r.scenario, r.target) != ("64 pods", "least, any")]
    rounds += [Round("64 pods", number, "least, any", {"cpu_us": 80.0}, 0.0, True) for number in (1, 2, 3)]
    first, second = table(rounds, request_us=50.0).split("\n\n")
    assert "| policy | prompt | 8 pods | 64 pods |" in first
    assert "| `least` | any | 20.0 [15.0–25.0]: 40% | 80.0 [80.0–80.0]: 160% |" in first
    assert len(first.splitlines()) == 2 + len(CASES)
    assert "| 48 KB | 20.0 [15.0–25.0]: 40% |" in second
    for part in (first, second):
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_the_notes_name_the_request_that_the_parts_are_of() -> None:
    assert "60 rounds" in notes(60, 47.5)[0]
    assert "47.5 µs" in notes(60, 47.5)[0]


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--request-us", "0"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "more than 0" in capsys.readouterr().err
