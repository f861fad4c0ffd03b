"""A whole gateway on a cluster: what happens to pods decides where the next request goes, and never cuts one."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import process_time
from typing import Any

import pytest

from gateway.api.status import status_of
from gateway.core.fleet import Fleet, PodState
from gateway.discovery.pods import MODELS_ANNOTATION, POOL_LABEL, PORT_ANNOTATION
from loadtest.simulator import PodSettings, SimulatedPod, TimeModel
from tests.apiserver import statuses
from tests.apiserver.access import service_account
from tests.apiserver.server import ApiServer
from tests.discovering import (
    HOME,
    NAMESPACE,
    SOON,
    OddPod,
    answering_as_redis,
    appear,
    ask_model,
    asked,
    eventually,
    fleet_sees,
    fleet_until,
    gateway,
    ready_names,
    watched,
    who_serves,
)
from tests.fakes import MODELS, Close, ScriptedPod
from tests.integration.test_retries import GOOD
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Running
from tests.turns import within

QUICK_POD = PodSettings(model="m")
SLOW_POD = PodSettings(model="m", time=TimeModel(step_seconds=0.005), max_model_len_tokens=100_000)


def listing(*names: Any) -> bytes:
    """The body of a `/v1/models`."""
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


def status(running: Running) -> dict[str, Any]:
    """What an operator sees."""
    return status_of(running.gateway.seen())


def state_of(fleet: Fleet, name: str) -> str:
    return next((pod.state.value for pod in fleet.pods if pod.name == name), "")


@asynccontextmanager
async def streaming(running: Running, tokens: int = 60, model: str = "m") -> AsyncIterator["asyncio.Task[Answer]"]:
    """A stream whose first event has come; the task has the whole of it."""
    client = await RawClient.connect(running.port)
    body = chat(model=model, stream=True, max_tokens=tokens, ignore_eos=True)
    client.send(request(body, key=running.key))
    begun = await client.reader.readuntil(b"content")
    task = asyncio.create_task(client.answer(begun=begun))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client.leave()


def is_whole(came: Answer, tokens: int = 60) -> bool:
    """A stream that ended as it should, with every token."""
    return came.status == 200 and came.clean and came.events[-1] == b"data: [DONE]\n\n" and len(came.events) >= tokens


# --- Work goes where it may.


async def test_a_pod_gets_work_as_soon_as_it_is_ready_and_has_told_its_models() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, gateway(server) as running:
        assert (await ask_model(running)).status == 404
        pod = server.cluster.create("a", labels={POOL_LABEL: "chat"}, annotations={PORT_ANNOTATION: str(one.port)})
        pod.run("127.0.0.1")
        await fleet_sees(running, a="starting")
        assert not one.requests
        pod.become_ready()
        await fleet_sees(running, SOON, a="ready")
        assert await who_serves(running, times=1) == {"a"}


@pytest.mark.parametrize("leaves", ["delete", "become_unready", "vanish", "relabel", "evict", "crash", "replace"])
async def test_a_pod_that_leaves_gets_no_new_work(leaves: str) -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two:
        a, _ = appear(server, "a", one), appear(server, "b", two)
        async with gateway(server) as running:
            assert await who_serves(running) == {"a", "b"}
            if leaves == "relabel":
                a.relabel(**{POOL_LABEL: None})
            else:
                getattr(a, leaves)()
            await fleet_until(running, lambda fleet: ready_names(fleet) == {"b"}, SOON)
            assert await who_serves(running) == {"b"}
            assert status(running)["ready"]


@pytest.mark.parametrize("leaves", ["delete", "become_unready", "vanish", "relabel", "evict"])
async def test_a_stream_runs_to_its_end_on_a_pod_that_leaves(leaves: str) -> None:
    async with ApiServer() as server, SimulatedPod(SLOW_POD) as one:
        a = appear(server, "a", one)
        async with gateway(server) as running, streaming(running) as stream:
            if leaves == "relabel":
                a.relabel(**{POOL_LABEL: None})
            else:
                getattr(a, leaves)()
            await fleet_until(running, lambda fleet: not ready_names(fleet), SOON)
            refused = await ask_model(running)
            assert (refused.status, refused.error["code"]) == (503, "no_ready_pod")
            assert int(refused.headers["retry-after"]) > 0
            assert not stream.done()
            if leaves == "delete":
                a.become_unready()
                a.kill()
                await fleet_sees(running, SOON)
                assert not stream.done()
            assert is_whole(await stream)
            await running.settled()
            assert one.aborts == 0
            # Nothing is left of a pod that is gone.
            await eventually(lambda: one.open_connections == 0 or leaves in ("delete", "become_unready", "evict"))


async def test_a_pod_that_comes_back_with_its_label_has_its_counts_still() -> None:
    async with ApiServer() as server, SimulatedPod(SLOW_POD) as one:
        a = appear(server, "a", one)
        async with gateway(server) as running, streaming(running, 150) as stream:
            (pod,) = running.gateway.fleet.value.pods
            a.relabel(**{POOL_LABEL: None})
            await fleet_sees(running, SOON)
            assert running.gateway.balancer.in_flight(pod.uid) == 1
            a.relabel(**{POOL_LABEL: "chat"})
            await fleet_sees(running, SOON, a="ready")
            assert running.gateway.balancer.in_flight(pod.uid) == 1
            assert await who_serves(running, times=1) == {"a"}
            assert not stream.done()
            assert is_whole(await stream, 150)
            await running.settled()
            assert running.gateway.balancer.in_flight(pod.uid) == 0
            assert running.sample("poolgate_pod_in_flight", pool="chat", pod="a") == 0


async def test_a_flap_leaves_streams_and_connections_as_they_are() -> None:
    async with ApiServer() as server, SimulatedPod(SLOW_POD) as one:
        a = appear(server, "a", one)
        async with gateway(server) as running, streaming(running, 100) as stream:
            (pod,) = running.gateway.fleet.value.pods
            connections = running.gateway.pools.of(pod)
            a.become_unready()
            await fleet_sees(running, SOON, a="starting")
            a.become_ready()
            await fleet_sees(running, SOON, a="ready")
            assert running.gateway.pools.of(pod) is connections
            assert await who_serves(running, times=1) == {"a"}
            assert not stream.done()
            assert is_whole(await stream, 100)


async def test_a_request_without_an_answer_is_repeated_elsewhere_when_its_node_is_lost() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two:
        a = appear(server, "a", one)
        async with gateway(server) as running:
            one.pause()
            waiting = asyncio.create_task(ask_model(running))
            await one.until(lambda pod: pod.in_flight == 1)
            appear(server, "b", two)
            await fleet_sees(running, a="ready", b="ready")
            a.vanish()
            await fleet_sees(running, SOON, b="ready")
            one.die()
            came = await waiting
            assert (came.status, came.headers["x-poolgate-pod"]) == (200, "b")
            # One more when the first was on a connection that was used again.
            assert (await running.last_line())["attempts"] in (2, 3)


async def test_a_pod_that_left_gets_no_second_attempt_on_a_fresh_connection() -> None:
    left = asyncio.Event()
    async with (
        ApiServer() as server,
        ScriptedPod([[GOOD], [left, Close], [GOOD]]) as one,
        ScriptedPod([[GOOD]]) as other,
        gateway(server, wait=False) as running,
    ):
        pod = appear(server, "a", one)
        await fleet_sees(running, a="ready")
        assert (await ask_model(running)).status == 200
        # On the connection of before, whose end without a word allows one more try at the same pod ...
        asking = asyncio.create_task(ask_model(running))
        await eventually(lambda: len(one.requests) == 2)
        appear(server, "b", other)
        pod.vanish()
        await fleet_sees(running, b="ready")
        left.set()
        # ... which the pod must not get any more: it still listens, but it has left.
        assert (await asking).status == 200
        assert (len(one.requests), len(other.requests)) == (2, 1)


async def test_a_stream_that_has_begun_ends_with_an_error_when_its_node_is_lost() -> None:
    async with ApiServer() as server, SimulatedPod(SLOW_POD) as one, SimulatedPod(QUICK_POD) as two:
        a = appear(server, "a", one)
        async with gateway(server) as running, streaming(running, 5000) as stream:
            appear(server, "b", two)
            await fleet_sees(running, a="ready", b="ready")
            a.vanish()
            one.die()
            came = await stream
            assert came.clean
            assert b"upstream_" in came.events[-2]
            assert (await running.last_line())["outcome"] == "truncated"


async def test_a_pod_replaced_under_its_name_is_asked_anew() -> None:
    async with ApiServer() as server, SimulatedPod(PodSettings(model="old")) as one:
        a = appear(server, "chat-0", one)
        async with gateway(server) as running:
            assert await who_serves(running, "old", 1) == {"chat-0"}
            await one.close()
            async with SimulatedPod(PodSettings(model="new", port=one.port)):
                a.replace()
                a.become_ready("127.0.0.1")
                fleet = await fleet_until(running, lambda fleet: "new" in fleet.cards, SOON)
                assert "old" not in fleet.cards
                assert await who_serves(running, "new", 1) == {"chat-0"}
                gone = await ask_model(running, "old")
                assert (gone.status, gone.error["code"]) == (503, "no_ready_pod")


async def test_of_two_pods_at_one_address_the_younger_is_asked_anew() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        async with gateway(server) as running:
            before = len(one.requests)
            appear(server, "b", one)
            fleet = await fleet_until(running, lambda fleet: len(fleet.pods) == 2 and len(ready_names(fleet)) == 1)
            (winner,) = ready_names(fleet)
            assert await who_serves(running, times=3) == {winner}
            assert winner == "a" or len(one.requests) > before
            route = fleet.routes["m"]
            assert [pod.name for pod in route.pods] == [winner]


# --- Models.


async def test_a_model_whose_pods_are_gone_answers_503_and_one_that_nobody_knows_404() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        a = appear(server, "a", one)
        async with gateway(server, pools={"named": {"models": ["qwen3-8b", "lora-*"]}}) as running:
            assert (await ask_model(running)).status == 200
            a.kill()
            await fleet_sees(running, SOON)
            gone, unknown, named = [await ask_model(running, name) for name in ("m", "unknown", "qwen3-8b")]
            assert (gone.status, gone.error["code"]) == (503, "no_ready_pod")
            assert "retry-after" in gone.headers
            assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
            assert (named.status, named.error["code"]) == (503, "no_ready_pod")
            listed = await ask(running.port, request(b"", key=running.key, path="/v1/models", method="GET"))
            assert json.loads(listed.body)["data"] == []
            # Scaled to zero is not unready.
            assert status(running)["ready"]
            assert status(running)["models_without_pods"] == ["m", "qwen3-8b"]


async def test_pods_of_one_pool_may_serve_different_models() -> None:
    async with ApiServer() as server:
        settings = [PodSettings(model="m", aliases=("left",)), PodSettings(model="m", aliases=("right",))]
        async with SimulatedPod(settings[0]) as one, SimulatedPod(settings[1]) as two:
            appear(server, "a", one)
            appear(server, "b", two)
            async with gateway(server) as running:
                assert await who_serves(running, "left", 4) == {"a"}
                assert await who_serves(running, "right", 4) == {"b"}
                assert await who_serves(running, "m") == {"a", "b"}


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (None, "asked"),
        ((b"", b"500 Internal Server Error"), "/v1/models"),
        ((b"", b"200 OK"), "/v1/models: not a model list"),
        ((b"[" * 50_000, b"200 OK"), "/v1/models: not a model list"),
        ((b'{"data":[' + b" " * (2 << 20) + b"]}", b"200 OK"), "/v1/models"),
        ((listing(), b"200 OK"), "it lists no model that it may serve"),
    ],
    ids=["hangs", "500", "empty", "nested", "huge", "no-models"],
)
async def test_a_pod_that_does_not_tell_its_models_hurts_nobody_else(
    models: tuple[bytes, bytes] | None, reason: str
) -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as good, OddPod() as odd:
        if models is not None:
            odd.list_models(*models)
        appear(server, "good", good)
        async with gateway(server) as running:
            appear(server, "odd", odd)
            fleet = await fleet_until(
                running, lambda fleet: any(reason in pod.reason for pod in fleet.pods if pod.name == "odd")
            )
            assert state_of(fleet, "good") == "ready"
            assert await who_serves(running) == {"good"}
            assert "/v1/chat/completions" not in odd.asked
            # It is asked again, and then serves.
            if models is None:
                return
            assert "/v1/models" in odd.asked
            if "no model" not in reason:
                odd.list_models(listing("other"))
                await fleet_until(running, lambda fleet: "other" in fleet.cards, 3.0)


async def test_a_pod_whose_models_hang_delays_nobody() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two, OddPod() as odd:
        a = appear(server, "a", one)
        async with gateway(server) as running:
            for number in range(20):
                appear(
                    server,
                    f"hanging-{number}",
                    odd,
                    annotations={PORT_ANNOTATION: str(odd.port)},
                    ip=f"127.0.1.{number}",
                )
            await fleet_until(running, lambda fleet: len(fleet.pods) == 21)
            async with within(SOON):
                appear(server, "b", two)
                await fleet_until(running, lambda fleet: ready_names(fleet) == {"a", "b"})
                a.vanish()
                await fleet_until(running, lambda fleet: ready_names(fleet) == {"b"})
            assert await who_serves(running, times=4) == {"b"}


async def test_a_pod_that_lists_another_pools_model_gets_none_of_its_requests() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        async with OddPod().list_models(MODELS) as thief, gateway(server) as running:
            appear(server, "thief", thief, pool="thieves")
            await fleet_sees(running, a="ready", thief="ready")
            assert await who_serves(running) == {"a"}
            told = {pod["name"]: pod["models"] for pod in status(running)["pods"]}
            assert told["thief"] == [{"name": "m", "claimed_by": "chat"}]
            assert told["a"] == [{"name": "m", "claimed_by": None}]
            assert "/v1/chat/completions" not in thief.asked


async def test_while_the_owner_of_a_model_is_away_another_pool_does_not_inherit_it() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        a = appear(server, "a", one)
        pools = {"chat": {"models": ["m"]}, "thieves": {"models": ["own-*"]}}
        async with OddPod().list_models(MODELS) as thief, gateway(server, pools=pools) as running:
            appear(server, "thief", thief, pool="thieves")
            await fleet_sees(running, a="ready", thief="ready")
            a.become_unready()
            await fleet_sees(running, SOON, a="starting", thief="ready")
            refused = await ask_model(running)
            assert (refused.status, refused.error["code"]) == (503, "no_ready_pod")
            assert "/v1/chat/completions" not in thief.asked
            assert running.sample("poolgate_discovery_rejected_total", reason="model_not_in_pool") >= 1


async def test_only_so_many_names_of_only_so_much_length_are_taken() -> None:
    names = ["m", "", "nul\0", "x" * (1 << 18), "new\nline", 7, None, *[f"n{number}" for number in range(300)]]
    async with ApiServer() as server, OddPod().list_models(listing(*names)) as odd:
        appear(server, "odd", odd)
        async with gateway(server) as running:
            fleet = await fleet_until(running, lambda fleet: ready_names(fleet) == {"odd"})
            assert len(fleet.pods[0].models) == 64
            assert set(fleet.routes) == {model.name for model in fleet.pods[0].models}
            assert all(len(name) <= 256 and name.isprintable() for name in fleet.routes)
            assert running.sample("poolgate_discovery_rejected_total", reason="model_name") > 0
            assert running.sample("poolgate_discovery_rejected_total", reason="too_many_models") > 0
            # The names stand in the exposition only as far as they are served.
            assert b"xxxx" not in running.gateway.metrics.exposition()


async def test_a_hundred_thousand_names_are_no_answer() -> None:
    body = listing(*[f"model-{number:06}" for number in range(100_000)])
    async with ApiServer() as server, OddPod().list_models(body) as odd:
        appear(server, "odd", odd)
        async with gateway(server, wait=False) as running:
            fleet = await fleet_until(running, lambda fleet: any("/v1/models" in pod.reason for pod in fleet.pods))
            assert (state_of(fleet, "odd"), dict(fleet.routes)) == ("starting", {})


async def test_a_pod_serves_no_more_than_its_annotation_lets_it() -> None:
    async with ApiServer() as server, OddPod().list_models(listing("m", "mine-1", "yours")) as odd:
        appear(server, "odd", odd, annotations={MODELS_ANNOTATION: "mine-*"})
        async with gateway(server) as running:
            fleet = await fleet_until(running, lambda fleet: ready_names(fleet) == {"odd"})
            assert set(fleet.routes) == {"mine-1"}
            assert (await ask_model(running, "m")).status == 404
            assert running.sample("poolgate_discovery_rejected_total", reason="model_not_annotated") == 2


async def test_a_pod_that_sleeps_gets_no_request() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two:
        two.sleep(1)
        appear(server, "a", one)
        async with gateway(server) as running:
            appear(server, "b", two)
            await fleet_sees(running, a="ready", b="asleep")
            assert await who_serves(running) == {"a"}
            assert all(record.method == "GET" for record in two.requests)


# --- Pods that want to be what they are not.


async def test_a_refused_pod_is_told_of_once_and_never_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poolgate.discovery")
    async with ApiServer() as server, OddPod().list_models(MODELS) as victim, gateway(server, networks=()) as running:
        evil = [
            appear(server, "loopback", victim, ip="127.0.0.1"),
            appear(server, "metadata", ip="169.254.169.254", annotations={PORT_ANNOTATION: "80"}),
            appear(server, "api", ip="127.0.0.1", annotations={PORT_ANNOTATION: str(server.port)}),
        ]
        appear(server, "elsewhere", victim, namespace="other")
        fleet = await fleet_until(running, lambda fleet: len(fleet.refused) == 3)
        for _ in range(3):
            for pod in evil:
                pod.annotate({"touched": str(server.log.version)})
        marker = appear(server, "marker", ip="10.255.0.1")
        marker.become_unready()
        fleet = await fleet_until(running, lambda fleet: bool(fleet.pods))
        assert {pod.name for pod in fleet.refused} == {"loopback", "metadata", "api"}
        assert (await ask_model(running)).status == 404
        assert victim.asked == []
        for pod in evil:
            told = [line for line in caplog.messages if f"pod {pod.name} is refused" in line]
            assert len(told) == 1, told
            assert "127.0.0.1" not in told[0]
        assert running.sample("poolgate_discovery_rejected_total", reason="address") == 3
        assert [pod["reason"] for pod in status(running)["refused"]] == ["address"] * 3


async def test_a_port_behind_which_no_vllm_listens_never_gets_a_request() -> None:
    came: list[bytes] = []

    async with ApiServer() as server, await answering_as_redis(came) as redis:
        port = str(redis.sockets[0].getsockname()[1])
        appear(server, "redis", ip="127.0.0.1", annotations={PORT_ANNOTATION: port, MODELS_ANNOTATION: "m"})
        async with gateway(server, wait=False) as running:
            fleet = await fleet_until(running, lambda fleet: any("/v1/models" in pod.reason for pod in fleet.pods))
            assert state_of(fleet, "redis") == "starting"
            assert (await ask_model(running)).status == 404
            assert not any(line.startswith(b"POST") for line in came)


async def test_the_gateways_own_ports_are_no_pods() -> None:
    async with ApiServer() as server, gateway(server) as running:
        for port in ("8000", "9090"):
            appear(server, f"own-{port}", ip="127.0.0.1", annotations={PORT_ANNOTATION: port})
        fleet = await fleet_until(running, lambda fleet: len(fleet.refused) == 2)
        assert fleet.pods == ()


# --- The API server's troubles are not the callers'.


async def test_requests_are_served_while_the_api_server_is_away_and_after() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two:
        pods = {"a": appear(server, "a", one), "b": appear(server, "b", two)}
        async with gateway(server) as running:
            await server.kill()
            await eventually(lambda: running.gateway.source.stale_seconds() > 0)
            assert await who_serves(running, times=20) == {"a", "b"}
            assert running.sample("poolgate_discovery_stale_seconds") > 0
            assert status(running)["ready"]
            pods["a"].vanish()
            assert await who_serves(running, times=20) == {"a", "b"}
            await server.restart()
            await fleet_until(running, lambda fleet: ready_names(fleet) == {"b"}, 3.0)
            assert await who_serves(running) == {"b"}
            await eventually(lambda: running.sample("poolgate_discovery_stale_seconds") == 0)
            assert running.sample("poolgate_discovery_relists_total", reason="start") == 2
            assert running.sample("poolgate_discovery_relists_total", reason="disconnected") >= 1


async def test_a_pod_that_dies_while_the_api_server_is_mute_fails_no_request() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, SimulatedPod(QUICK_POD) as two:
        appear(server, "a", one)
        appear(server, "b", two)
        async with gateway(server) as running:
            server.terminate()
            one.die()
            assert await who_serves(running, times=20) == {"b"}


async def test_a_gateway_without_its_first_list_is_not_ready_and_then_is() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        await server.kill()
        async with gateway(server, wait=False) as running:
            await eventually(lambda: running.gateway.source.stale_seconds() > 0.2)
            assert (status(running)["ready"], status(running)["reason"]) == (
                False,
                "waiting for the first list of pods",
            )
            await server.start()
            await fleet_sees(running, 3.0, a="ready")
            assert status(running)["ready"]


async def test_a_gateway_is_ready_when_the_pods_of_its_first_list_were_asked() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one, OddPod() as odd:
        appear(server, "a", one)
        appear(server, "hangs", odd)
        async with gateway(server, wait=False) as running:
            await fleet_until(running, lambda fleet: ready_names(fleet) == {"a"})
            assert status(running)["reason"] == "asking pods for their models"
            odd.list_models(MODELS)
            # The question that hangs is given up, and the next one is answered.
            await fleet_until(running, lambda fleet: fleet.asked, 8.0)
            assert status(running)["ready"]


async def test_a_gateway_without_rights_says_which_and_recovers_without_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accounts = {"gw": service_account()}
    async with ApiServer(accounts=accounts) as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        async with gateway(server, token="gw", wait=False) as running:
            await eventually(lambda: "we may not list pods in the namespace models (403)" in caplog.text)
            assert not status(running)["ready"]
            server.accounts = {"gw": service_account(NAMESPACE, HOME)}
            await fleet_sees(running, 3.0, a="ready")
            await watched(server)
            await watched(server, namespace=HOME)
            assert server.verbs() == {(verb, "pods", at) for verb in ("list", "watch") for at in (NAMESPACE, HOME)}
            server.accounts = {"gw": service_account()}
            server.end_watches()
            await eventually(lambda: running.sample("poolgate_discovery_stale_seconds") > 0.1)
            assert (await ask_model(running)).status == 200
            assert status(running)["ready"]


async def test_replicas_in_our_own_namespace_are_counted() -> None:
    async with ApiServer() as server, gateway(server) as running:
        assert status(running)["replicas"] == 1
        ours = {"app.kubernetes.io/name": "poolgate"}
        pods = [server.cluster.create_ready(f"gw-{number}", HOME, labels=ours) for number in range(3)]
        await eventually(lambda: running.gateway.source.replicas() == 3, SOON)
        assert status(running)["replicas"] == 3
        pods[0].delete()
        await eventually(lambda: running.gateway.source.replicas() == 2, SOON)


async def test_requests_stay_quick_while_a_thousand_pods_change() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        crowd = [appear(server, f"crowd-{n:04}", ip=f"127.9.{n >> 8}.{n & 255}", pool="crowd") for n in range(1000)]
        for pod in crowd:
            pod.become_unready()
        appear(server, "a", one)
        async with gateway(server, wait=False) as running:

            async def slowest() -> float:
                """Of the requests that are sent until all 1,000 events are heard, in the processor's seconds."""
                taken: list[float] = []
                while not taken or changed():
                    began = process_time()
                    # Neither waiting nor work of this process holds it up.
                    async with within(SOON):
                        assert await who_serves(running, times=1) == {"a"}
                    taken.append(process_time() - began)
                return max(taken)

            def changed() -> bool:
                states = [pod.state for pod in running.gateway.fleet.value.pods]
                return len(states) > 1 and states.count(PodState.DRAINING) < 1000

            await fleet_until(running, lambda fleet: len(fleet.pods) == 1001 and fleet.asked)
            for pod in crowd:
                pod.delete()
            assert await slowest() < SOON
            for pod in crowd:
                pod.vanish()
            assert await slowest() < SOON
            await fleet_sees(running, a="ready")


async def test_a_gateway_ends_during_a_watch_at_once_and_leaves_nothing_open() -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(gateway(server))
            assert (await ask_model(running)).status == 200
            async with within(SOON):
                await stack.aclose()
        await server.until(lambda: server.connections == 0)
        await eventually(lambda: one.open_connections == 0)


async def test_a_server_that_is_busy_is_spared(caplog: pytest.LogCaptureFixture) -> None:
    async with ApiServer() as server, SimulatedPod(QUICK_POD) as one:
        appear(server, "a", one)
        server.answer_with(statuses.too_many_requests(1), "list", NAMESPACE)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with gateway(server, wait=False) as running:
            await fleet_sees(running, 3.0, a="ready")
            assert loop.time() - began >= 1
            assert len(asked(server, "list")) == 2
            assert "the API server answered 429" in caplog.text
