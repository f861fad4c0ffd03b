"""The bench of discovery compares like with like, hides no wait, and says what did not come whole."""

import asyncio
import time
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.reading import load_config
from loadtest.bench import discovery
from loadtest.bench.backend import serving
from loadtest.bench.client import NotWhole, RequestLoad
from loadtest.bench.discovery import (
    FEW,
    FULL,
    LINES,
    Beat,
    Line,
    PacedLoop,
    beside,
    config_of,
    lag_in,
    main,
    notes,
    table,
    variants_of,
    without,
)
from loadtest.bench.processes import BenchError
from loadtest.bench.report import Round
from loadtest.bench.wire import COMPLETION, chat_body, chat_request, json_answer
from tests.apiserver.__main__ import fill
from tests.apiserver.cluster import Cluster

VARIANTS = variants_of(1000)
VALUES = {
    "start": {"seconds": 1.0, "cpu_seconds": 0.5},
    "idle": {"cpu_ms": 2.0, "rss_mib": 50.0},
    "requests": {"cpu_us": 40.0, "alone_us": 39.0, "per_second": 20_000.0},
    "paced": {"p50_ms": 0.2, "p99_ms": 1.0, "longest_ms": 3.0, "past_p99_ms": 0.1, "lag_ms": 1.0},
    "busy": {"cpu_ms": 90.0, "believed": 1.0},
}


def a_round(part: str, number: int, variant: str, waited: float = 0.0, **values: float) -> Round:
    return Round(part, number, variant, VALUES[part] | values, waited, True)


def all_rounds() -> list[Round]:
    return [a_round(part, number, variant.name) for number in (1, 2) for variant in VARIANTS for part in VALUES]


# --- what is measured ---------------------------------------------------------------------------------------


@given(st.integers(FEW + 1, 5000))
def test_the_pods_with_the_requests_never_flip(pods: int) -> None:
    static, kubernetes, *rest = variants_of(pods)
    assert (static.pools, static.kubernetes) == ((("few", FEW),), False)
    assert all(variant.pods == pods and variant.kubernetes for variant in (kubernetes, *rest))
    for variant in rest:
        assert variant.busy or 0 < variant.churn <= variant.pools[-1][1]


def test_the_pods_of_the_file_are_those_that_have_the_requests_in_the_cluster(tmp_path: Path) -> None:
    network = IPv4Network(discovery.NETWORK)
    few, _ = fill(Cluster(), VARIANTS[1].pools, "vllm", network, 7000)
    file = tmp_path / "poolgate.yaml"
    (tmp_path / "keys.yaml").touch()
    file.write_text(yaml.safe_dump(config_of(VARIANTS[0], 7000, tmp_path / "keys.yaml")))
    config = load_config(file, {})
    assert (config.server.drain_seconds, config.limit_rules().of_keys) == (0, ())
    listed = config.static_pods()
    assert [(pod.host, pod.port) for pod in listed] == [(pod.object["status"]["podIP"], 7000) for pod in few]


def test_the_cluster_is_watched_and_loopback_pods_are_let_in(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(yaml.safe_dump(config_of(VARIANTS[1], 7000, tmp_path / "keys.yaml")))
    found = load_config(file, {}).discovery
    assert (found.mode, found.namespaces) == ("kubernetes", ("vllm",))
    assert any(ip_address("127.1.3.232") in network for network in found.pod_networks)


# --- arithmetic ---------------------------------------------------------------------------------------------


def test_what_the_gateway_does_anyway_is_taken_off_a_requests_time() -> None:
    assert without(cpu_us=52.0, idle_ms=40.0, per_second=20_000.0) == 50.0


@given(st.floats(1, 1000), st.floats(0, 900), st.floats(100, 50_000))
def test_the_parts_of_a_second_add_up(alone_us: float, idle_ms: float, per_second: float) -> None:
    spent_us_in_a_second = alone_us * per_second + idle_ms * 1000
    assert without(spent_us_in_a_second / per_second, idle_ms, per_second) == pytest.approx(alone_us, abs=1e-6)


IDLE, RATIO = Line("", "idle", "cpu_ms", ".1f", "-"), Line("", "requests", "cpu_us", ".1f", "/")


def test_variants_are_compared_round_by_round() -> None:
    # A slow minute, for both.
    rounds = [a_round("requests", 1, "static", cpu_us=40.0), a_round("requests", 1, "kubernetes", cpu_us=44.0)]
    rounds += [a_round("requests", 2, "static", cpu_us=80.0), a_round("requests", 2, "kubernetes", cpu_us=84.0)]
    rounds += [a_round("requests", 3, "static", cpu_us=40.0), a_round("requests", 3, "kubernetes", cpu_us=48.0)]
    found = beside(rounds, RATIO)
    assert found is not None
    assert (found.low, found.median, found.high, found.trusted) == (1.05, 1.1, 1.2, True)


def test_of_two_rounds_the_middle_is_between_them() -> None:
    rounds = [a_round("idle", number, "static", cpu_ms=2.0) for number in (1, 2)]
    rounds += [a_round("idle", number, "kubernetes", cpu_ms=10.0 * number) for number in (1, 2)]
    found = beside(rounds, IDLE)
    assert found is not None
    assert (found.low, found.median, found.high) == (8.0, 13.0, 18.0)


def test_a_round_that_waited_for_its_core_is_compared_only_if_there_is_no_other() -> None:
    rounds = [a_round("idle", number, "static") for number in (1, 2)]
    rounds += [a_round("idle", 1, "kubernetes", waited=0.5, cpu_ms=90.0), a_round("idle", 2, "kubernetes", cpu_ms=42.0)]
    found = beside(rounds, IDLE)
    assert found is not None
    assert (found.median, found.rounds, found.trusted) == (40.0, 1, True)
    doubtful = beside(rounds[:3], IDLE)
    assert doubtful is not None
    assert (doubtful.median, doubtful.trusted) == (88.0, False)


def test_what_has_no_counterpart_is_not_compared() -> None:
    failed = Round("idle", 1, "static", {}, 0.0, True, failed="cut")
    assert beside([failed, a_round("idle", 1, "kubernetes")], IDLE) is None
    assert beside([a_round("idle", 2, "static"), a_round("idle", 1, "kubernetes")], IDLE) is None


# --- the tables ---------------------------------------------------------------------------------------------


def test_all_lines_of_a_table_have_the_same_width_and_every_figure_is_shown() -> None:
    first, second = table(all_rounds(), VARIANTS).split("\n\n")
    for part in (first, second):
        assert len({line.count("|") for line in part.splitlines()}) == 1
    assert len(first.splitlines()) == 2 + len(LINES) + 1
    assert "| idle: CPU ms a second | 2.0 [2.0–2.0] | 2.0 [2.0–2.0] | +0.0 [0.0–0.0] |" in first
    assert "× 1.000 [1.000–1.000]" in first
    assert "| – |" not in second
    assert "100 flip each second | 997 flip each second" in second


def test_what_was_not_measured_is_shown_as_a_dash() -> None:
    rounds = [a_round("start", 1, "static")]
    assert "| idle: memory (RSS), MiB | – | – | – |" in table(rounds, VARIANTS)


def test_the_notes_name_a_round_that_failed_and_how_many_pods_were_believed() -> None:
    rounds = [*all_rounds(), Round("paced", 3, "all flip", {}, 0.0, True, failed="status 503")]
    said = "\n".join(notes([*rounds, a_round("busy", 3, "all busy", believed=0.5)], VARIANTS))
    assert "all flip, paced, round 3: failed: status 503" in said
    assert "50%" in said
    assert "every 10 s" in said


def test_the_window_at_rest_holds_whole_intervals_of_discovery() -> None:
    assert FULL.idle % 10 == 0


# --- the load -----------------------------------------------------------------------------------------------


def test_the_loops_lag_is_found_in_the_exposition() -> None:
    assert lag_in(b"# TYPE poolgate_loop_lag_seconds gauge\npoolgate_loop_lag_seconds 0.0125\nother 1.0\n") == 0.0125
    with pytest.raises(NotWhole, match="poolgate_loop_lag_seconds"):
        lag_in(b"poolgate_loop_lag_seconds_more 1\n")


async def test_requests_go_at_their_pace_and_each_answer_is_timed() -> None:
    async with serving(1, 1000) as (port,):
        load, took, began = RequestLoad(), list[int](), time.monotonic()
        await Beat(connections=2, per_second=50).begin(load, port, "k", took)
        async with asyncio.timeout(60):
            while load.answered < 8:
                await load.watch(0.1)
        load.stop()
        await load.ended(60)
        lasted = time.monotonic() - began
    assert len(took) == load.answered
    assert 8 <= load.answered <= 2 * (50 * lasted + 2)  # a closed loop would have had thousands
    assert all(0 < each < 1e6 * lasted for each in took)


async def test_a_request_that_an_answer_kept_waiting_is_timed_from_its_beat() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            await held.wait()
            writer.write(json_answer(COMPLETION))
        writer.close()

    held = asyncio.Event()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load, took = RequestLoad(), list[int]()
        loop = asyncio.get_running_loop()
        request = chat_request("127.0.0.1", port, "k", chat_body(400))
        await loop.create_connection(lambda: PacedLoop(load, request, loop.time(), 0.01, took), "127.0.0.1", port)
        loop.call_later(0.1, held.set)
        while len(took) < 3:
            await asyncio.sleep(0.001)
        load.stop()
        await load.ended(60)
    assert took[0] > 90_000
    assert took[1] > 75_000  # sent at once, but due 10 ms after the first
    assert took[2] > 65_000


async def test_an_answer_that_is_an_error_fails_the_load() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(json_answer(b"{}", b"503 Service Unavailable"))
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        load = RequestLoad()
        await Beat(connections=1, per_second=50).begin(load, server.sockets[0].getsockname()[1], "k", [])
        with pytest.raises(NotWhole, match="status 503"):
            await load.ended(60)


# --- the command --------------------------------------------------------------------------------------------


def test_outside_of_a_checkout_it_says_that_there_is_no_api_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "REPOSITORY", tmp_path)
    lab = discovery.Lab(tmp_path, 0, 0, 1, 7000, "k", FULL)
    with pytest.raises(BenchError, match="checkout"), discovery.api_server(VARIANTS[1], lab, tmp_path / "kube"):
        pytest.fail("it started")


@pytest.mark.parametrize("pods", ["3", "60000"])
def test_a_number_of_pods_that_cannot_be_is_refused(pods: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--pods", pods])
    assert ended.value.code == 2
    assert f"--pods {pods}" in capsys.readouterr().err
