"""What a call of the limits costs Redis is measured at a real server, with the gateway's own script."""

from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from loadtest.bench.limits import HOST, redis_server
from loadtest.scale.counting import KEEP_US, Server, buckets_of, measured, memory_bytes, slope
from loadtest.scale.figures import Figures


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path) as started:
        client: Any = Client(host=HOST, port=started.port)
        script = client.script_load(files("gateway.limits").joinpath("take.lua").read_bytes())
        yield Server(client, started.pid, script)
        client.close()


def test_it_measures_all_that_the_figures_have_of_redis(server: Server) -> None:
    told = measured(server, rounds=1, calls=40)
    assert set(told) == {field.name for field in fields(Figures) if field.name.startswith("redis_")}
    assert all(value > 0 for value in told.values())


def test_what_runs_is_a_field_for_each_replica_and_costs_memory_for_each(server: Server) -> None:
    one, many = memory_bytes(server, 1), memory_bytes(server, 64)
    assert many > one + 64 * 16  # at least the replicas' names
    count = buckets_of(2_000_064)[2]
    assert server.client.hlen(b"poolgate:{limits}:" + count.key) == 64
    assert server.client.pttl(b"poolgate:{limits}:" + count.key) == pytest.approx(KEEP_US / 1e3, rel=0.1)


def test_a_slope_is_what_one_more_costs() -> None:
    assert slope({1: 10.0, 8: 100.0, 11: 40.0}) == pytest.approx(3.0)
