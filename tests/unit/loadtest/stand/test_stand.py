"""What a stand is made of: configurations that the gateway takes, cores, ports, and what is read of others."""

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from socket import create_server, socket

import pytest

from gateway.config.keys import load_keys
from gateway.config.reading import ConfigFile
from loadtest.bench.processes import BenchError
from loadtest.bench.targets import new_key
from loadtest.load.plan import FAULTS, Fault
from loadtest.load.reading import load, names
from loadtest.stand.cluster import cluster_of
from loadtest.stand.cores import Cores
from loadtest.stand.faults import MAKERS, befall
from loadtest.stand.gateways import GatewayProcess
from loadtest.stand.looking import asked, series_in, total
from loadtest.stand.pods import Load, Pod
from loadtest.stand.ports import lasting_ports
from loadtest.stand.redis import RedisProcess
from loadtest.stand.stand import SimulatedStand, laid_over, pods_of, write_config
from loadtest.stand.watching import Watched
from tests.fakes import answer

CORE = frozenset({0})


@pytest.mark.parametrize("name", names())
def test_the_gateway_takes_each_scenarios_configuration_and_keys(name: str, tmp_path: Path) -> None:
    plan = load(name).stand
    keys = {caller: new_key() for caller in plan.keys}
    redis_port, *ports = range(18_000, 18_001 + sum(each.count for each in plan.pods))
    pods = pods_of(plan, ports, CORE, tmp_path)
    redis = RedisProcess(redis_port, CORE, tmp_path) if plan.redis else None
    file = write_config(plan, keys, pods, redis, tmp_path, replaced=True)
    config = ConfigFile(file, {}).load()
    assert config.auth.keys_file is not None
    entries = load_keys(Path(config.auth.keys_file))
    assert {entry.tenant.team for entry in entries} == set(plan.keys)
    assert all(entry.tenant.debug for entry in entries)


def test_every_fault_that_a_scenario_may_name_can_be_made() -> None:
    assert set(MAKERS) == set(FAULTS)


async def test_a_fault_that_cannot_be_made_ends_the_run() -> None:
    stand = SimulatedStand({}, [], [], None, None, lambda: pytest.fail("none is wanted"), [])
    fault = Fault(at=0.0, what="stop_redis", seconds=1.0)
    with pytest.raises(BenchError, match="redis: true"):
        await befall(stand, [fault, replace(fault, at=1000.0)], Watched(), time.monotonic())


class BusyGateway(GatewayProcess):
    """Answers when it gets to it."""

    def __init__(self, answers: list[dict[str, float] | None], *, runs: bool = True) -> None:
        self.name = "gateway-0"
        self._answers = answers
        self._runs = runs

    @property
    def pids(self) -> tuple[int, ...]:
        return (1,) if self._runs else ()

    async def scrape(self) -> dict[str, float]:
        told = self._answers.pop(0)
        if told is None:
            raise ConnectionError("no answer")
        return told


class NoRedis(RedisProcess):
    def __init__(self) -> None:
        pass

    async def start(self) -> None:
        pass

    async def kill(self) -> None:
        pass


IN_REDIS = {'poolgate_limit_mode{mode="redis"}': 1.0, 'poolgate_pods{state="ready"}': 0.0}
BY_ITSELF = {'poolgate_limit_mode{mode="redis"}': 0.0, 'poolgate_pods{state="ready"}': 0.0}


def before_redis(gateway: GatewayProcess) -> SimulatedStand:
    return SimulatedStand({}, [], [gateway], NoRedis(), None, lambda: pytest.fail("none is wanted"), [])


async def test_a_gateway_too_busy_to_tell_is_asked_again() -> None:
    answers: list[dict[str, float] | None] = [None, BY_ITSELF, None, IN_REDIS]
    gateway = BusyGateway(answers)
    await before_redis(gateway).knows_its_pods(gateway)
    assert answers == []
    answers[:] = [None, BY_ITSELF, None, IN_REDIS]
    seen = Watched()
    await befall(before_redis(gateway), [Fault(at=0.0, what="stop_redis", seconds=0.0)], seen, time.monotonic())
    assert (answers, seen.mode_back_at) == ([], 0.0)


async def test_a_gateway_that_is_gone_is_not_waited_for() -> None:
    stand = before_redis(BusyGateway([None], runs=False))
    with pytest.raises(BenchError, match="stop_redis could not be made: no answer"):
        await befall(stand, [Fault(at=0.0, what="stop_redis", seconds=0.0)], Watched(), time.monotonic())


def test_settings_are_laid_over_key_by_key_and_lists_are_replaced() -> None:
    settings = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert laid_over(settings, {"a": {"c": {"f": 3}}, "e": [3]}) == {"a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [3]}
    assert settings == {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}


def test_gateways_and_generator_are_apart_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2})
    pinned, free = Cores.of_this_host(), Cores.of_this_host(pinned=False)
    assert (set(pinned.gateways), set(pinned.apparatus), pinned.apart) == ({1}, {2, 3}, True)
    assert (set(free.gateways), set(free.apparatus), free.apart) == ({1, 2, 3}, {1, 2, 3}, False)
    assert "No process was pinned" in free.words
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert not Cores.of_this_host().apart


def test_lasting_ports_are_none_that_the_kernel_gives_to_outgoing_connections_and_none_stands_twice() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with lasting_ports(400) as ports:
        assert all(1024 < port < max(lowest, 19_000) for port in ports)
        assert len(set(ports)) == 400


def test_a_lasting_port_is_free_to_its_server_and_to_nobody_else() -> None:
    with lasting_ports(1) as (port,), socket() as other:
        for _ in range(2):  # its server comes, goes and comes back
            with pytest.raises(ConnectionRefusedError), socket() as caller:
                caller.connect(("127.0.0.1", port))
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with create_server(("127.0.0.1", port)), socket() as caller:
                caller.connect(("127.0.0.1", port))


def test_too_few_free_ports_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_socket: socket, _address: object) -> None:
        raise OSError

    monkeypatch.setattr(socket, "bind", taken)
    with pytest.raises(BenchError, match="0 of 2 ports are free"), lasting_ports(2):
        pass


def test_series_are_read_with_their_labels_and_summed_by_some() -> None:
    series = series_in('# HELP x\nx{a="1",b="2"} 3\nx{a="1",b="3"} 4.5\nxy 1\n')
    assert total(series, "x") == 7.5
    assert total(series, "x", 'a="1"', 'b="3"') == 4.5
    assert total(series, "y") == 0


@pytest.mark.parametrize(
    "told",
    [
        answer(b"hello"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
    ],
)
async def test_what_is_asked_is_read_whole_however_it_is_framed(told: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(told)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asked(port, "/") == (200, b"hello")
    with pytest.raises(OSError, match=r"."):
        await asked(port, "/")


async def test_outside_a_checkout_a_cluster_says_where_it_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tests.apiserver.server", None)
    with pytest.raises(BenchError, match="checkout"):
        async with cluster_of([], 1, tmp_path):
            pass


async def test_a_pod_that_does_not_start_says_why(tmp_path: Path) -> None:
    with lasting_ports(1) as (port,):
        pod = Pod("chat-0", "chat", port, ("--no-such-flag",), frozenset(os.sched_getaffinity(0)), tmp_path)
        try:
            with pytest.raises(BenchError, match="no-such-flag"):
                await pod.start()
        finally:
            pod.close()


async def test_a_pod_comes_back_where_it_was_and_can_be_slowed(tmp_path: Path) -> None:
    flags = ("--model=m", "--task=generate", "--step-ms=1")
    with lasting_ports(1) as (port,):
        pod = Pod("chat-0", "chat", port, flags, frozenset(os.sched_getaffinity(0)), tmp_path)
        try:
            await pod.start()
            assert await pod.load() == Load(in_flight=0, aborts=0)
            await pod.set_slowness(4)
            with pytest.raises(BenchError, match="factor"):
                await pod.set_slowness(-1)
            await pod.kill()
            assert await pod.load() is None
            await pod.start()
            assert (pod.port, await pod.load() is not None) == (port, True)
            assert await pod.end(10)
        finally:
            pod.close()
