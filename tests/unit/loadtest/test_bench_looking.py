"""The bench of looking fills a gateway with series as callers would, and counts what a scrape of them takes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from loadtest.bench.__main__ import SCENARIOS, chosen, main
from loadtest.bench.client import NotWhole
from loadtest.bench.looking import FULL, LINES, LOOKED, QUICK, Asker, Looked, Scrapes, alias, notes, series_in, table
from loadtest.bench.report import Round
from loadtest.bench.scenarios import Bench
from loadtest.bench.targets import Site, gateway_config, new_key, pods
from loadtest.bench.wire import MODEL

VALUES = {"series": 1091.0, "kib": 90.7, "scrape_ms": 7.25, "share": 0.00048, "kept_ms": 0.2}
VALUES |= {"wait_ms": 9.0, "held_ms": 5.0, "quiet_ms": 0.5, "pages_1": 0.01, "pages_16": 0.02}


# --- what is chosen -----------------------------------------------------------------------------------------


def test_looking_is_measured_with_all_else_and_alone() -> None:
    assert [scenario.name for scenario in chosen(None, None).looked] == ["metrics 12", "metrics 120"]
    alone = chosen(["metrics"], None, quick=True)
    assert (alone.scenarios, alone.limited, list(alone.looked)) == ([], [], list(QUICK))
    assert [target.name for target in alone.targets] == ["gateway"]


def test_every_scenario_can_be_asked_for_by_name() -> None:
    everything = chosen(None, None)
    found = (*everything.scenarios, *everything.limited, *everything.looked)
    assert {scenario.name.split()[0] for scenario in found} == set(SCENARIOS)


def test_who_asks_for_other_targets_has_nothing_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(None, ["nginx"]).looked == []
    with pytest.raises(SystemExit) as ended:
        main(["--scenario", "metrics", "--target", "nginx"])
    assert ended.value.code == 2
    assert "limits and metrics are measured with the gateway" in capsys.readouterr().err


def test_the_gateway_has_a_name_for_each_model_that_is_asked_for() -> None:
    models = max(scenario.models for scenario in (*FULL, *QUICK))
    (target,) = LOOKED
    assert target.models >= models
    names = [alias(number) for number in range(target.models)]
    assert len(set(names)) == target.models
    config = gateway_config((9101,), Path("keys.yaml"), models=names)
    assert config["models"] == {name: {"to": [{"model": MODEL}]} for name in names}


def test_who_has_fewer_models_is_measured_first_since_series_stay() -> None:
    assert [scenario.models for scenario in FULL] == sorted(scenario.models for scenario in FULL)


# --- a whole round ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The figures of a short round."""
    folder, core, key = tmp_path_factory.mktemp("looking"), min(os.sched_getaffinity(0)), new_key()
    with (
        pods(1, grid_us=1000, core=core, folder=folder) as (pid, ports),
        Looked(3).running(Site(folder, core, ports, (pid,), key)) as running,
    ):
        scenario = Scrapes("metrics 3", 1, models=3, idle_seconds=0.3, scrapes=1, page_seconds=0.5)
        return uvloop.run(scenario.measure(running, Bench(key, (pid,), ports))).values


def test_each_model_has_the_series_of_streams_and_of_answers(measured: dict[str, float]) -> None:
    assert 3 * 80 < measured["series"] < 3 * 120 + 150


def test_a_scrape_costs_something_and_one_that_shares_a_text_less(measured: dict[str, float]) -> None:
    assert measured["scrape_ms"] > 0
    assert measured["wait_ms"] > 0
    assert measured["share"] == pytest.approx(measured["scrape_ms"] / 15_000)


def test_every_figure_has_its_line(measured: dict[str, float]) -> None:
    assert {line.key for line in LINES} == measured.keys() == VALUES.keys()


# --- the questions ------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """A port that gives these answers, one after another."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(60):
            await ended.wait()


async def test_a_connection_is_asked_again_and_again() -> None:
    async with answering(*(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % n for n in range(3))) as port:
        asker = await Asker.to(port, "/metrics")
        assert [await asker.ask() for _ in range(3)] == [b"00", b"01", b"02"]
        await asker.close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"]
)
async def test_what_is_no_whole_answer_fails_the_round(answer: bytes) -> None:
    async with answering(answer) as port:
        asker = await Asker.to(port, "/metrics")
        with pytest.raises(NotWhole):
            await asker.ask()
        await asker.close()


def test_series_are_samples_and_no_comments() -> None:
    assert series_in(b'# HELP a b\n# TYPE a counter\na_total 1.0\na_total{x="#"} 2.0\n\n') == 2


# --- the report ---------------------------------------------------------------------------------------------


def a_round(scenario: str, number: int, waited: float = 0.0, **values: float) -> Round:
    return Round(scenario, number, "looked at", VALUES | values, waited, True)


def test_the_table_has_a_column_for_each_number_of_models() -> None:
    rounds = [a_round("metrics 12", n, scrape_ms=6.0 + n) for n in (1, 2, 3)]
    shown = table([*rounds, a_round("metrics 120", 1, series=9903.0)])
    assert "|  | 12 models | 120 models |" in shown
    assert "| CPU ms of a scrape | 8.0 [7.0–9.0] | 7.2 |" in shown or "| 8.0 [7.0–9.0] | 7.3 |" in shown
    assert "| series | 1,091 [1,091–1,091] | 9,903 |" in shown
    assert "0.048%" in shown
    assert len(shown.splitlines()) == 2 + len(LINES)


def test_a_round_without_a_core_of_its_own_is_marked_and_named() -> None:
    rounds = [a_round("metrics 12", 1, waited=0.5)]
    assert "| 7.2 ? |" in table(rounds)
    assert "waited 50% for a core" in "\n".join(notes(rounds))


def test_a_round_that_failed_is_a_dash() -> None:
    rounds = [Round("metrics 12", 1, "looked at", {}, 0.0, True, failed="status 503")]
    assert "| series | – |" in table(rounds)
    assert "failed: status 503" in "\n".join(notes(rounds))
