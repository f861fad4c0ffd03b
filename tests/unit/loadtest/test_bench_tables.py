"""One table per scenario, a row per target, and no bar is called met that was not measured."""

import math

import pytest

from loadtest.bench.report import Round
from loadtest.bench.scenarios import FULL, QUICK
from loadtest.bench.tables import BARS, TABLES, Bar, Column, figure, tables, verdict
from loadtest.bench.targets import TARGETS


def a_round(target: str, number: int, cpu_us: float, scenario: str = "chunks", /, **values: float) -> Round:
    waited = values.pop("waited", 0.0)
    return Round(scenario, number, target, {"cpu_us": cpu_us} | values, waited, True)


def failed(target: str, number: int) -> Round:
    return Round("chunks", number, target, {}, 0.0, True, failed="999 of 1000 streams had begun")


TIMES = Bar("chunks", "cpu_us", 1.3, "CPU per chunk ≤ 1.3 × nginx", "nginx")
BELOW = Bar("chunks", "cpu_us", 1.0, "CPU per chunk < envoy", "envoy", below=True)
MORE = Bar("chunks", "transit_p99_us", 3000, "p99 ≤ nginx's and 3 ms", "nginx", "-", form=",.0f")
ALONE = Bar("chunks", "busy", 0.55, "keeps up on 55 % of a core", form=".0%")
WHOLE = Bar("chunks", "cpu_us", math.inf, "without an error", form=".1f")


@pytest.mark.parametrize(
    ("bar", "rounds", "said"),
    [
        (TIMES, [a_round("nginx", 1, 20.0), a_round("gateway", 1, 26.0)], "1.30, met"),
        (TIMES, [a_round("nginx", 1, 20.0), a_round("gateway", 1, 26.4)], "1.32, **missed**"),
        (TIMES, [a_round("gateway", 1, 26.0)], "not measured"),
        (TIMES, [a_round("nginx", 1, 20.0), a_round("gateway", 2, 20.0)], "not measured"),
        (TIMES, [a_round("nginx", 1, 20.0, waited=0.5), a_round("gateway", 1, 2.0)], "not judged (no quiet round)"),
        (TIMES, [], "not measured"),
        (BELOW, [a_round("envoy", 1, 30.0), a_round("gateway", 1, 29.7)], "0.99, met"),
        (BELOW, [a_round("envoy", 1, 30.0), a_round("gateway", 1, 30.0)], "1.00, **missed**"),
        (ALONE, [a_round("gateway", 1, 20.0, busy=0.55)], "55%, met"),
        (ALONE, [a_round("gateway", 1, 20.0, busy=0.56)], "56%, **missed**"),
        (WHOLE, [a_round("gateway", 1, 20.0)], "20.0, met"),
        (WHOLE, [a_round("gateway", 1, 20.0), failed("gateway", 2)], "**missed** (1 of 2 rounds failed)"),
        (WHOLE, [failed("nginx", 1)], "not measured"),
    ],
)
def test_a_bar_is_said_to_be_met_or_missed_plainly(bar: Bar, rounds: list[Round], said: str) -> None:
    assert verdict(bar, rounds) == said


def test_a_bar_may_allow_so_much_more_than_another_has() -> None:
    rounds = [a_round("nginx", 1, 1.0, transit_p99_us=500), a_round("gateway", 1, 1.0, transit_p99_us=3500)]
    assert verdict(MORE, rounds) == "3,000, met"
    rounds = [a_round("nginx", 1, 1.0, transit_p99_us=500), a_round("gateway", 1, 1.0, transit_p99_us=3501)]
    assert verdict(MORE, rounds) == "3,001, **missed**"


def test_who_falls_behind_with_a_whole_core_has_missed_and_who_had_none_is_not_judged() -> None:
    assert verdict(ALONE, [a_round("gateway", 1, 20.0, busy=0.99, on_pace=0.5)]) == "**missed** (it did not keep up)"
    starved = a_round("gateway", 1, 20.0, busy=0.5, on_pace=0.5, waited=0.4)
    assert verdict(ALONE, [starved]) == "not judged (no quiet round)"
    slow_pods = a_round("gateway", 1, 20.0, busy=0.5, on_pace=0.9)
    assert verdict(ALONE, [slow_pods]) == "not judged (no quiet round)"


def test_each_scenario_has_a_table_with_a_row_per_target_and_its_bars_below() -> None:
    chunks = {"per_second": 5000.0, "busy": 0.2, "chunks_per_read": 1.0, "transit_p50_us": 9.0, "transit_p99_us": 99.0}
    requests = {"per_second": 9000.0, "busy": 0.99}
    rounds = [
        a_round("nginx", 1, 20.0, **chunks),
        a_round("gateway", 1, 30.0, **chunks),
        a_round("litellm", 1, 900.0, **chunks),
        a_round("gateway", 1, 50.0, "requests", **requests),
    ]
    written = tables(rounds, ["nginx", "gateway", "litellm", "direct"])
    blocks = written.split("\n\n")
    assert [block.partition(":")[0] for block in blocks if block.startswith("**")] == ["**requests**", "**chunks**"]
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    of_chunks = blocks[-2].splitlines()
    assert of_chunks[0].startswith("| chunks | CPU µs per chunk | ÷ nginx | gateway ÷ it | chunks/s delivered |")
    assert [line.split(" | ")[:4] for line in of_chunks[2:]] == [
        ["| nginx", "20.0", "", "1.50"],
        ["| gateway", "30.0", "1.50", ""],
        ["| litellm", "900.0", "45.00", "0.0333"],
    ]
    assert "- bar: CPU per chunk ≤ 1.2 × nginx: 1.50, **missed**" in blocks[-1].splitlines()
    assert "- bar: CPU per chunk < envoy: not measured" in blocks[-1].splitlines()


def test_a_rate_is_a_targets_own_only_if_its_core_was_full() -> None:
    held = Column("requests/s held", "per_second", ",.0f", held=True)
    rounds = [
        a_round("nginx", 1, 20.0, "requests", per_second=40_000.0, busy=0.9),
        a_round("litellm", 1, 9000.0, "requests", per_second=110.0, busy=0.98),
        failed("envoy", 1),
    ]
    assert [figure(held, rounds, name) for name in ("nginx", "litellm", "envoy")] == ["≥ 40,000", "110", "–"]


def test_what_a_proxy_adds_is_what_it_takes_more_than_none() -> None:
    added = Column("added to p50, µs", "ttft_p50_us", ",.0f", added=True)
    rounds = [
        a_round("direct", 1, 1.0, "ttft", ttft_p50_us=300.0),
        a_round("gateway", 1, 1.0, "ttft", ttft_p50_us=520.0),
        a_round("direct", 2, 1.0, "ttft", ttft_p50_us=400.0),
        a_round("gateway", 2, 1.0, "ttft", ttft_p50_us=640.0),
    ]
    assert figure(added, rounds, "gateway") == "230 [220–240]"
    assert figure(added, rounds, "direct") == "–"


def test_a_target_that_could_not_be_measured_has_an_empty_row() -> None:
    written = tables([failed("envoy", 1)], ["envoy"])
    assert "| envoy | – | – | – | – |" in written


def test_every_scenario_has_its_table_and_every_bar_a_scenario_and_a_target_that_exist() -> None:
    scenarios = [table.scenario for table in TABLES]
    assert len({*scenarios}) == len(scenarios)
    assert {scenario.name for scenario in FULL} == {scenario.name for scenario in QUICK} <= {*scenarios}
    assert {bar.scenario for bar in BARS} <= {*scenarios}
    assert {bar.other for bar in BARS} - {None} <= TARGETS.keys()
