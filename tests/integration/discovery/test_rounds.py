"""What pods tell of themselves, asked again and again: their models, adapters that come and go, sleep, load."""

import json
from typing import Any

import pytest

from gateway.core.fleet import Pool
from loadtest.simulator import PodSettings, SimulatedPod
from tests.apiserver.server import ApiServer
from tests.discovering import SOON, OddPod, appear, discovered, eventually
from tests.fakes import MODELS
from tests.raw import ask, request

SETTINGS = PodSettings(model="m", dev_mode=True, runtime_lora_updating=True, server_load_tracking=True)


async def post(pod: SimulatedPod, path: str, body: dict[str, Any] | None = None) -> None:
    """As its operator would."""
    came = await ask(pod.port, request(body or {}, path=path))
    assert came.status == 200, came.body


async def test_an_adapter_that_is_loaded_is_served_and_one_that_is_unloaded_is_not() -> None:
    async with ApiServer() as server, SimulatedPod(SETTINGS) as one, SimulatedPod(SETTINGS) as two:
        appear(server, "a", one)
        appear(server, "b", two)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"a", "b"})
            assert "sql" not in seen.fleet.value.routes
            await post(one, "/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "/adapters/sql"})
            await seen.until(lambda: seen.serving("sql") == {"a"}, SOON)
            assert seen.fleet.value.cards["sql"]["parent"] == "m"
            await post(two, "/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "/adapters/sql"})
            await seen.until(lambda: seen.serving("sql") == {"a", "b"}, SOON)
            await post(one, "/v1/unload_lora_adapter", {"lora_name": "sql"})
            await seen.until(lambda: seen.serving("sql") == {"b"}, SOON)
            await post(two, "/v1/unload_lora_adapter", {"lora_name": "sql"})
            await seen.until(lambda: not seen.serving("sql"), SOON)
            # Known still: 503, not 404. And the model itself was served all the time.
            assert "sql" in seen.fleet.value.routes
            assert "sql" not in seen.fleet.value.cards
            assert seen.serving("m") == {"a", "b"}


async def test_a_pod_that_sleeps_is_out_and_one_that_wakes_is_in() -> None:
    async with ApiServer() as server, SimulatedPod(SETTINGS) as one, SimulatedPod(SETTINGS) as two:
        appear(server, "a", one)
        appear(server, "b", two)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"a", "b"})
            await post(two, "/sleep?level=1")
            await seen.until(lambda: seen.serving("m") == {"a"}, SOON)
            assert (seen.pod("b").state, seen.pod("b").reason) == ("asleep", "asleep (weights_offloaded)")
            await post(two, "/sleep?level=2")
            await seen.until(lambda: seen.pod("b").reason == "asleep (discard_all)", SOON)
            await post(two, "/wake_up")
            await seen.until(lambda: seen.serving("m") == {"a", "b"}, SOON)


async def test_a_pod_that_wakes_in_part_stays_out() -> None:
    async with ApiServer() as server, SimulatedPod(SETTINGS) as one:
        appear(server, "a", one)
        async with discovered(server) as seen:
            await post(one, "/sleep?level=1")
            await seen.until(lambda: not seen.serving("m"), SOON)
            await post(one, "/wake_up?tags=weights")
            asked = len(one.requests)
            await eventually(lambda: len(one.requests) >= asked + 4)
            assert not seen.serving("m")
            await post(one, "/wake_up?tags=kv_cache")
            await seen.until(lambda: seen.serving("m") == {"a"}, SOON)


async def test_a_pod_that_sleeps_when_it_comes_is_never_in_before() -> None:
    async with ApiServer() as server, SimulatedPod(SETTINGS) as one:
        one.sleep(1)
        appear(server, "a", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.pod("a").state == "asleep")
            assert not seen.serving("m")
            assert [record.path for record in one.requests][:2] == ["/metrics", "/v1/models"]


async def test_a_model_that_a_pod_no_longer_lists_is_taken_from_it_alone() -> None:
    both = b'{"data":[{"id":"m"},{"id":"n"}]}'
    async with ApiServer() as server, OddPod().list_models(both) as one, OddPod().list_models(both) as two:
        appear(server, "a", one)
        appear(server, "b", two)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("n") == {"a", "b"})
            two.list_models(MODELS)
            await seen.until(lambda: seen.serving("n") == {"a"}, SOON)
            assert seen.serving("m") == {"a", "b"}


@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"401 Unauthorized"])
async def test_a_pod_that_stops_telling_its_models_keeps_them(status: bytes) -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one:
        appear(server, "a", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"a"})
            one.list_models(b"", status)
            asked = one.asked.count("/v1/models")
            await eventually(lambda: one.asked.count("/v1/models") >= asked + 3)
            assert seen.serving("m") == {"a"}


async def test_the_pod_of_a_name_inherits_nothing_of_the_one_before() -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one:
        pod = appear(server, "chat-0", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"chat-0"})
            before = seen.pod("chat-0").uid
            await eventually(lambda: seen.rounds.load_of(before).gauges is not None)
            del one.answers["/v1/models"]
            pod.replace()
            pod.become_ready("127.0.0.1")
            await seen.until(lambda: seen.pod("chat-0").uid != before, SOON)
            assert (seen.pod("chat-0").models, seen.pod("chat-0").state) == ((), "starting")
            assert not seen.serving("m")
            await eventually(lambda: seen.rounds.load_of(before).gauges is None)


async def test_an_address_that_another_pod_takes_over_is_asked_anew() -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one:
        old = appear(server, "old", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"old"})
            one.list_models(b'{"data":[{"id":"n"}]}')
            await server.kill()
            # Nobody hears that the one went and the other came.
            old.vanish()
            appear(server, "new", one)
            await server.restart()
            await seen.until(lambda: seen.serving("n") == {"new"})
            assert not seen.serving("m")


async def test_a_pod_behind_several_ports_is_as_many_servers() -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one, OddPod() as two:
        two.list_models(b'{"data":[{"id":"n"}]}')
        both = {"poolgate.dev/port": f"{one.port},{two.port}"}
        pod = appear(server, "a", ip="127.0.0.1", annotations=both)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("n") == {f"a:{two.port}"})
            assert seen.serving("m") == {f"a:{one.port}"}
            pod.become_unready()
            await seen.until(lambda: not seen.serving("m") and not seen.serving("n"), SOON)


async def test_an_annotation_that_narrows_the_models_takes_effect_at_once() -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one:
        pod = appear(server, "a", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"a"})
            pod.annotate({"poolgate.dev/models": "other"})
            await seen.until(lambda: not seen.serving("m"), SOON)
            assert seen.pod("a").reason == "it lists no model that it may serve"
            pod.annotate({"poolgate.dev/models": None})
            await seen.until(lambda: seen.serving("m") == {"a"}, SOON)


async def test_a_pod_that_changes_its_pool_takes_its_models_along() -> None:
    async with ApiServer() as server, OddPod().list_models(MODELS) as one:
        pod = appear(server, "a", one)
        pools = {"chat": Pool("chat"), "other": Pool("other", ("n*",))}
        async with discovered(server, pools=pools) as seen:
            await seen.until(lambda: seen.serving("m") == {"a"})
            assert seen.fleet.value.routes["m"].pool.name == "chat"
            pod.relabel(**{"poolgate.dev/pool": "third"})
            await seen.until(lambda: seen.fleet.value.routes["m"].pool.name == "third", SOON)
            pod.relabel(**{"poolgate.dev/pool": "other"})
            await seen.until(lambda: not seen.serving("m"), SOON)


async def test_what_a_pod_says_of_its_load_is_known_and_grows_old() -> None:
    async with ApiServer() as server, SimulatedPod(SETTINGS) as one:
        appear(server, "a", one)
        async with discovered(server) as seen:
            await seen.until(lambda: seen.serving("m") == {"a"})
            uid = seen.pod("a").uid
            await eventually(lambda: seen.rounds.load_of(uid).gauges is not None)
            gauges = seen.rounds.load_of(uid).gauges
            assert gauges is not None
            assert (gauges.running, gauges.waiting) == (0, 0)
            one.die()
            await eventually(lambda: seen.rounds.load_of(uid).gauges is None)
            # It is the requests that find out that it is dead, and Kubernetes.
            assert seen.serving("m") == {"a"}


async def test_a_pod_is_asked_for_its_models_with_a_bounded_body() -> None:
    body = json.dumps({"data": [{"id": "m", "blob": "x" * (2 << 20)}]}).encode()
    async with ApiServer() as server, OddPod().list_models(body) as one:
        appear(server, "a", one)
        async with discovered(server) as seen:
            await seen.until(lambda: "/v1/models" in seen.pod("a").reason)
            assert not seen.serving("m")
