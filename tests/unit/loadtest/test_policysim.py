"""The simulated world around the policies: the same from the same seed, nothing lost, and what is known comes out."""

import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.balancing.affinity import LENGTHS, ends_of
from gateway.balancing.policy import POLICIES, Choice, Standing, View, Wish
from loadtest.policysim import cells, run
from loadtest.policysim.__main__ import compare_all, main
from loadtest.policysim.cells import Cell, Condition
from loadtest.policysim.engine import TOKENS_PER_BLOCK
from loadtest.policysim.figures import Figures, figures_of
from loadtest.policysim.judge import Result, auto_check
from loadtest.policysim.plot import svg
from loadtest.policysim.profiles import LARGE, MEASURED, Profile
from loadtest.policysim.replica import ROOM, Replica
from loadtest.policysim.report import from_json, markdown, on_page, times
from loadtest.policysim.workloads import WORKLOADS, Asked, Request, blind, busy_pods, drawn

SMALL = Cell("mixed", pods=4, replicas=2)


def asked(workload: str = "mixed", *, count: int = 300, pods: int = 4, load: float = 0.8, seed: int = 1) -> Asked:
    return drawn(WORKLOADS[workload], LARGE, seed=seed, count=count, pods=pods, speed=float(pods), load=load)


# Workloads.


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_seed_always_draws_the_same_and_another_one_something_else(workload: str) -> None:
    assert asked(workload) == asked(workload)
    assert asked(workload).requests != asked(workload, seed=2).requests


@pytest.mark.parametrize("profile", [LARGE, MEASURED], ids=lambda profile: profile.name)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_requests_are_in_order_and_within_what_the_pod_takes(workload: str, profile: Profile) -> None:
    every = drawn(WORKLOADS[workload], profile, seed=1, count=300, pods=4, speed=4.0, load=0.8).requests
    assert all(earlier.at <= later.at for earlier, later in itertools.pairwise(every))
    for number, request in enumerate(every):
        assert 2 <= request.prompt_tokens <= profile.max_prompt_tokens
        assert 1 <= request.answer_tokens <= profile.max_answer_tokens
        assert len(request.chain) == (request.prompt_tokens + request.answer_tokens) // TOKENS_PER_BLOCK
        assert request.wish.blocks == ends_of(request.chain[: request.prompt_tokens // TOKENS_PER_BLOCK])
        assert request.wish.key
        assert request.after < number


def test_a_turn_begins_with_the_turn_before_and_its_answer() -> None:
    requests = asked("sessions", count=600).requests
    turns = [(requests[request.after], request) for request in requests if request.after >= 0]
    assert len(turns) > 100
    for before, turn in turns:
        assert turn.wish.key == before.wish.key
        assert turn.chain[: len(before.chain)] == before.chain
        assert turn.prompt_tokens >= before.prompt_tokens


@pytest.mark.parametrize("workload", ["chats", "long", "mixed", "sessions", "system", "tenants"])
def test_load_is_the_work_that_comes_divided_by_what_the_pods_can_do(workload: str) -> None:
    drawn = asked(workload, count=2000, load=0.8)
    assert busy_pods(drawn, LARGE, 4) / 4 == pytest.approx(0.8, rel=0.05)


def test_only_where_a_workload_says_so_a_choice_decides_on_what_is_cached() -> None:
    for name, workload in WORKLOADS.items():
        drawn = asked(name, count=2000, pods=8)
        apart, pooled = blind(drawn, LARGE, 8), blind(drawn, LARGE, 1, kv_tokens=8 * LARGE.kv_tokens)
        assert (pooled.seconds < 0.7 * apart.seconds) == workload.shares, name


# Runs.


@pytest.mark.parametrize("policy", ["least", "p2c", "round_robin"])
def test_a_run_depends_on_nothing_but_its_seed(policy: str) -> None:
    drawn = asked()
    first = run.run(SMALL, POLICIES[policy], drawn, 1)
    assert run.run(SMALL, POLICIES[policy], drawn, 1) == first


class Watched:
    """A policy that remembers what it was shown."""

    def __init__(self, policy: str) -> None:
        self.standings: dict[int, Standing] = {}
        self.requests = 0
        self._policy = POLICIES[policy]

    def __call__(self, pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
        self.requests += 1
        self.standings |= {id(pod): pod for pod in pods}
        assert all(pod.in_flight >= 0 and pod.pending_tokens >= 0 and pod.others >= 0 for pod in pods)
        assert all(pod.in_flight + pod.others < pod.room for pod in pods)
        return self._policy(pods, wish, view)


@pytest.mark.parametrize("condition", list(Condition))
@pytest.mark.parametrize("workload", ["chats", "sessions"])
def test_every_request_is_answered_once_and_all_counts_return_to_zero(workload: str, condition: Condition) -> None:
    drawn, policy = asked(workload, load=1.5), Watched("least")
    done = run.run(replace(SMALL, condition=condition), policy, drawn, 1)
    assert len(done.first_token_seconds) == len(drawn.requests) == policy.requests
    assert all(seconds > 0 for seconds in done.first_token_seconds)
    assert len(policy.standings) == SMALL.pods * SMALL.replicas
    assert {(pod.in_flight, pod.pending_tokens) for pod in policy.standings.values()} == {(0, 0)}


def test_a_turn_comes_after_the_answer_to_the_turn_before() -> None:
    first = Request(0.0, 10_000, 500, (), Wish(10_000))
    second = first._replace(at=0.1, after=0)
    done = run.run(Cell("sessions", pods=1, replicas=1), POLICIES["least"], Asked((), [first, second]), 1)
    answered = done.first_token_seconds[0] + 499 * LARGE.time.seconds(1, 0, 0)
    assert done.arrived_seconds == pytest.approx(answered + run.PAUSE_SECONDS)


def test_what_went_before_is_in_the_caches() -> None:
    request = Request(0.0, 1000, 5, tuple(range(7)), Wish(1000, tuple(range(7))))
    cell = Cell("tenants", pods=1, replicas=1)
    cold = run.run(cell, POLICIES["least"], Asked((), [request]), 1)
    warm = run.run(cell, POLICIES["least"], Asked([request], [request]), 1)
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 7 * TOKENS_PER_BLOCK)
    assert warm.first_token_seconds[0] < cold.first_token_seconds[0]


def test_what_went_before_is_known_to_every_replica_for_every_pod() -> None:
    seen: dict[tuple[int, str], int] = {}

    def watching(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
        for pod in pods:
            seen.setdefault((id(view.cache), pod.uid), view.cache.cached(pod.uid, wish.blocks))
        return POLICIES["least"](pods, wish, view)

    drawn = asked("system", count=40)
    run.run(replace(SMALL, replicas=4), watching, drawn, 1)
    assert len(seen) == 4 * SMALL.pods
    assert min(seen.values()) >= LENGTHS[len(ends_of(range(23)))]  # the system prompt's


def test_round_robin_fills_a_slow_pod() -> None:
    slow = run.run(replace(SMALL, condition=Condition.SLOW), POLICIES["round_robin"], asked(count=1000), 1)
    filled, *others = slow.pod_seconds
    assert filled > 1.5 * max(others)


def test_a_pod_that_joins_is_given_little_at_first() -> None:
    weights: list[float] = []

    def watching(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
        weights.extend(pod.weight for pod in pods if pod.uid == "pod-3")
        return POLICIES["least"](pods, wish, view)

    drawn = asked(count=1500)
    run.run(replace(SMALL, replicas=1, condition=Condition.COLD), watching, drawn, 1)
    assert weights[0] == pytest.approx(0.1)
    assert weights == sorted(weights)
    assert weights[-1] > 0.9


class Stale:
    """The pod with the fewest requests at the last of the looks, of which there is one in so many choices."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._seen: dict[str, int] = {}

    def __call__(self, pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
        if view.turn % self._choices == 1 or self._choices == 1:
            self._seen = {pod.uid: pod.in_flight for pod in pods}
        return Choice(min(pods, key=lambda pod: self._seen.get(pod.uid, 0)), "stale")


def by_chance(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    return Choice(pods[int(view.chance() * len(pods))], "chance")


def test_the_least_loaded_by_stale_counts_draws_a_herd_and_is_worse_than_chance() -> None:
    cell = replace(SMALL, replicas=1)
    drawn = asked("chats", count=1500)
    fresh, stale, chance = (
        figures_of(run.run(cell, policy, drawn, 1)).mean for policy in (Stale(1), Stale(60), by_chance)
    )
    assert fresh < chance < stale
    assert stale > 1.5 * fresh


def test_replicas_that_know_of_each_other_by_readings_spread_what_comes_to_each() -> None:
    """Each replica alone sees an eighth of what a pod has."""

    def by_all(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
        return Choice(min(pods, key=lambda pod: (pod.in_flight + pod.others, view.chance())), "all")

    cell, drawn = replace(SMALL, replicas=8), asked(count=1500)
    read = figures_of(run.run(cell, by_all, drawn, 1))
    unread = figures_of(run.run(replace(cell, condition=Condition.UNREAD), by_all, drawn, 1))
    assert read.imbalance < unread.imbalance


def test_more_than_the_pods_can_do_is_called_unstable_and_less_is_not() -> None:
    for load, unstable in ((0.5, 0.0), (1.6, 1.0)):
        drawn = asked("mixed", count=2000, load=load)
        assert figures_of(run.run(SMALL, POLICIES["least"], drawn, 1)).unstable == unstable


# One replica's books.


def replica(policy: str = "least") -> Replica:
    made = Replica(POLICIES[policy], iter_chance())
    for number in range(2):
        made.join(f"pod-{number}", LARGE.kv_tokens, 0.0, new=False)
    return made


class iter_chance:  # noqa: N801
    """Chance that goes round and round."""

    def __init__(self) -> None:
        self._values: Iterator[float] = itertools.cycle((0.1, 0.6, 0.3, 0.9))

    def __call__(self) -> float:
        return next(self._values)


def test_a_request_counts_from_the_choice_to_its_end_and_its_tokens_to_the_first_one() -> None:
    gateway = replica()
    sent = gateway.send(0, Wish(700))
    assert sent is not None
    assert (sent.standing.in_flight, sent.standing.pending_tokens) == (1, 700)
    gateway.first_token(sent)
    assert (sent.standing.in_flight, sent.standing.pending_tokens) == (1, 0)
    gateway.ended(sent)
    assert sent.standing.in_flight == 0


def test_of_what_a_pod_counts_those_of_others_are_what_is_not_ours() -> None:
    gateway = replica()
    sent = gateway.send(0, Wish(1))
    assert sent is not None
    gateway.read(sent.standing.uid, 5, 1.0)
    assert sent.standing.others == 4
    gateway.read(sent.standing.uid, 0, 1.4)
    assert sent.standing.others == 0


def test_who_finds_no_room_waits_in_order() -> None:
    gateway = replica()
    sent = [gateway.send(number, Wish(1)) for number in range(2 * ROOM)]
    assert None not in sent
    assert gateway.send(1000, Wish(1)) is None
    assert gateway.send(1001, Wish(1)) is None
    assert gateway.next_sent() is None
    first = sent[0]
    assert first is not None
    gateway.ended(first)
    assert gateway.send(1002, Wish(1)) is None, "nobody overtakes those who wait"
    handed = gateway.next_sent()
    assert handed is not None
    assert handed.number == 1000
    assert gateway.next_sent() is None
    assert gateway.waiting == 2


# Cells, bars, report.


def test_no_seed_of_the_report_is_one_for_tuning() -> None:
    assert len(set(cells.TUNING_SEEDS)) >= 5
    assert len(set(cells.REPORT_SEEDS)) >= 5
    assert not set(cells.TUNING_SEEDS) & set(cells.REPORT_SEEDS)


def test_the_matrix_has_every_workload_load_and_condition_and_no_cell_twice() -> None:
    matrix = [*cells.full()]
    assert len(matrix) == len(set(matrix))
    assert {cell.workload for cell in matrix} == set(WORKLOADS)
    assert {cell.condition for cell in matrix} == set(Condition)
    assert {cell.load for cell in matrix} == set(cells.LOADS)
    assert {cell.pods for cell in matrix} == {2, 8, 32, 64}
    assert {cell.replicas for cell in matrix} == {1, 4}
    assert set(cells.quick()) <= {*matrix}


def figures(mean: float, unstable: float = 0.0) -> Figures:
    return Figures(mean=mean, p50=mean, p95=mean, p99=2 * mean, hits=0.5, imbalance=1.1, unstable=unstable)


@pytest.mark.parametrize(
    ("workload", "auto", "missed"),
    [
        ("chats", figures(1.04), ""),
        ("chats", figures(1.06), "6.0% behind p2c"),
        ("sessions", figures(1.0), "only 16.7% ahead of least"),
        ("sessions", figures(0.83), ""),
        ("chats", figures(1.0, unstable=0.6), "unstable, where least is stable"),
        ("chats", figures(1.0, unstable=0.4), ""),
    ],
)
def test_each_bar_is_judged(workload: str, auto: Figures, missed: str) -> None:
    result = Result(Cell(workload), {"least": figures(1.2), "p2c": figures(1.0), "auto": auto})
    assert [miss.what for miss in auto_check([result])] == ([missed] if missed else [])


def test_auto_may_be_unstable_where_least_is() -> None:
    both = Result(Cell("chats"), {"least": figures(1.0, unstable=1.0), "auto": figures(1.0, unstable=1.0)})
    assert auto_check([both]) == []


def test_the_best_of_a_row_is_bold_and_what_is_unstable_marked() -> None:
    table = markdown([Result(Cell("chats"), {"least": figures(1.2), "p2c": figures(1.0, unstable=1.0)})])
    assert "| chats | large | 8 | 4 | 0.8 | even | 1,200 | **1,000** ! |" in table


def test_the_plot_is_xml_with_a_bar_for_each_policy() -> None:
    drawing = svg([Result(Cell("chats"), {"least": figures(1.2), "p2c": figures(0.4)})], "a & b")
    root = ET.fromstring(drawing)
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("height") == "8"]
    assert [float(bar.get("width", 0)) for bar in bars] == sorted(
        (float(bar.get("width", 0)) for bar in bars), reverse=True
    )
    assert len(bars) == 2


def test_each_cell_gets_its_own_runs_however_many_processes_there_are() -> None:
    some = [replace(SMALL, workload="chats", pods=1), replace(SMALL, workload="system", pods=1)]
    apart = [result for cell in some for result in compare_all([cell], (1, 2), ["least"], processes=1)]
    assert compare_all(some, (1, 2), ["least"], processes=2) == apart


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    names = ("cells.json", "cells.md", "cells.svg")
    to_json, to_markdown, to_svg = (tmp_path / name for name in names)
    files = ["--json", str(to_json), "--markdown", str(to_markdown), "--svg", str(to_svg)]
    only = ["--quick", "--cells", "system,", "--policy", "least", "--processes", "1"]
    assert main([*only, *files]) == 0
    told = json.loads(to_json.read_text())
    assert told["seeds"] == list(cells.TUNING_SEEDS[:2])
    assert [cell["workload"] for cell in told["cells"]] == ["system"]
    assert to_markdown.read_text().startswith("Mean time to first token")
    assert to_svg.read_text().startswith("<svg")


DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_shows_the_figures_and_says_which_bars_are_missed() -> None:
    told = json.loads((DOCS / "balancing-simulation.json").read_text("utf-8"))
    page = (DOCS / "balancing-simulation.md").read_text("utf-8")
    results = from_json(told)
    assert on_page(page, times(results)) == page
    assert tuple(told["seeds"]) == cells.REPORT_SEEDS
    assert [result.cell for result in results] == [*cells.full()]
    assert set(results[0].policies) == set(POLICIES)
    misses = auto_check(results)
    assert [miss["what"] for miss in told["misses"]] == [miss.what for miss in misses]
    assert f"{len(misses)} of {len(results)} cells" in page
