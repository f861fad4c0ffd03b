"""What pods mean, heard of through lists and watches of a real socket: who gets work, from when, and who never."""

import asyncio

import pytest

from gateway.discovery import rounds
from gateway.discovery.pods import MODELS_ANNOTATION, POOL_LABEL, PORT_ANNOTATION
from tests.apiserver.pods import container
from tests.apiserver.server import ApiServer
from tests.discovering import CHAT, LOOPBACK, SOON, appear, discovered, followed


async def test_a_pod_is_ready_at_its_ready_condition_and_not_before() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = server.cluster.create("a", labels=CHAT)
        await seen.sees(a="starting")
        assert (seen.pods["a"].reason, seen.pods["a"].host) == ("phase Pending", "")
        pod.start()
        pod.run("10.0.0.1")
        await seen.until(lambda: seen.pods["a"].host == "10.0.0.1")
        assert (seen.states["a"], seen.pods["a"].reason) == ("starting", "Ready is False")
        pod.become_ready()
        await seen.sees(SOON, a="ready")
        assert (seen.pods["a"].port, seen.pods["a"].pool, seen.pods["a"].reason) == (8000, "chat", "")


async def test_a_pod_whose_readiness_flaps_stays_the_same_pod() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        uid = seen.pods["a"].uid
        for _ in range(3):
            pod.become_unready()
            await seen.sees(SOON, a="starting")
            pod.become_ready()
            await seen.sees(SOON, a="ready")
            assert seen.pods["a"].uid == uid


async def test_a_deletion_that_lies_in_the_future_counts_from_now() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        pod.delete(grace=3600)
        await seen.sees(SOON, a="draining")
        pod.become_unready()
        pod.delete(grace=0)
        pod.vanish()
        await seen.sees(SOON)


async def test_a_pod_that_is_deleted_without_a_warning_is_gone() -> None:
    async with ApiServer() as server, followed(server) as seen:
        lost, forced = appear(server, "lost"), appear(server, "forced")
        await seen.sees(lost="ready", forced="ready")
        lost.vanish()
        await seen.sees(SOON, forced="ready")
        forced.kill()
        await seen.sees(SOON)


async def test_a_pod_that_loses_its_label_is_gone_and_is_back_with_it() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        uid = seen.pods["a"].uid
        pod.relabel(**{POOL_LABEL: None})
        await seen.sees(SOON)
        pod.relabel(**{POOL_LABEL: "chat"})
        await seen.sees(SOON, a="ready")
        assert seen.pods["a"].uid == uid


async def test_a_pod_replaced_under_its_name_is_another_pod() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "chat-0", ip="10.0.0.1")
        await seen.sees(chat_0="ready")
        before = seen.pods["chat-0"].uid
        pod.replace()
        await seen.sees(SOON, chat_0="starting")
        pod.become_ready("10.0.0.1")
        await seen.sees(SOON, chat_0="ready")
        assert seen.pods["chat-0"].uid != before


async def test_a_pod_replaced_while_nobody_heard_is_another_pod() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "chat-0", ip="10.0.0.1")
        await seen.sees(chat_0="ready")
        before = seen.pods["chat-0"].uid
        await server.kill()
        pod.replace()
        pod.become_ready("10.0.0.1")
        await server.start()
        await seen.until(lambda: seen.pods["chat-0"].uid != before)
        assert seen.states == {"chat-0": "ready"}


async def test_a_pod_that_comes_back_under_another_address_is_another_server() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a", ip="10.0.0.1")
        await seen.sees(a="ready")
        before = seen.pods["a"].uid
        pod.become_ready("10.0.0.2")
        await seen.until(lambda: seen.pods["a"].host == "10.0.0.2", SOON)
        assert seen.pods["a"].uid != before


async def test_of_two_pods_with_one_address_only_the_younger_may_be_asked() -> None:
    async with ApiServer() as server, discovered(server) as seen:
        # The stand-in's stamps have whole seconds, as the real ones: the uid decides between equals, so any may win.
        appear(server, "old", ip="127.9.0.1")
        appear(server, "new", ip="127.9.0.1")
        appear(server, "other", ip="127.9.0.2")
        await seen.until(lambda: len(seen.fleet.value.pods) == 3)
        asked = {pod.name for pod in seen.fleet.value.pods if pod.askable}
        assert asked in ({"old", "other"}, {"new", "other"})
        (loser,) = {"old", "new"} - asked
        (winner,) = asked - {"other"}
        assert seen.pod(loser).reason == f"its address belongs to the younger pod {winner}"


async def test_an_address_is_free_again_when_the_pod_that_had_it_last_has_gone() -> None:
    async with ApiServer() as server, discovered(server) as seen:
        pods = {name: appear(server, name, ip="127.9.0.1") for name in ("a", "b")}
        await seen.until(lambda: len(seen.fleet.value.pods) == 2)
        (holder,) = [pod for pod in seen.fleet.value.pods if pod.askable]
        (other,) = pods.keys() - {holder.name}
        pods[holder.name].vanish()
        await seen.until(lambda: [pod.name for pod in seen.fleet.value.pods if pod.askable] == [other], SOON)


@pytest.mark.parametrize("address", [None, ""])
async def test_a_pod_without_an_address_is_not_ready_whatever_its_condition_says(address: str | None) -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        pod.set_status(podIP=address)
        await seen.sees(SOON, a="starting")
        assert seen.pods["a"].reason == "no address yet"


async def test_an_ipv6_address_stands_in_brackets_where_a_port_follows() -> None:
    async with ApiServer() as server, discovered(server, networks=()) as seen:
        appear(server, "a", ip="fd00::7")
        await seen.until(lambda: bool(seen.fleet.value.pods))
        pod = seen.pod("a")
        assert (pod.host, pod.port) == ("fd00::7", 8000)
        assert seen.pools.of(pod).host == b"[fd00::7]:8000"


async def test_only_a_ready_condition_that_is_true_counts() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pods = {name: appear(server, name) for name in ("crashing", "lost", "evicted", "finished", "fine")}
        await seen.until(lambda: len(seen.states) == 5)
        pods["crashing"].crash()
        pods["lost"].set_conditions(Ready="Unknown")
        pods["evicted"].evict()
        pods["finished"].set_status(phase="Succeeded")
        await seen.sees(SOON, crashing="starting", lost="starting", fine="ready")
        assert seen.pods["crashing"].reason == "Ready is False: CrashLoopBackOff"
        assert seen.pods["lost"].reason == "Ready is Unknown"
        assert seen.refused == {}


async def test_a_pod_whose_address_is_taken_from_it_is_out_at_once() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        pod.set_status(phase="Failed", podIP=None, podIPs=None)
        await seen.sees(SOON)


@pytest.mark.parametrize(
    ("annotation", "ports", "expected"),
    [
        (None, {"http": 9000}, [9000]),
        (None, {"metrics": 9000}, [8000]),
        (None, {}, [8000]),
        ("7000", {"http": 9000}, [7000]),
        (" 7000, 7001 ", {"http": 9000}, [7000, 7001]),
    ],
    ids=["named", "another-name", "none", "annotated", "annotated-twice"],
)
async def test_the_port_is_the_annotated_one_else_the_one_called_http_else_8000(
    annotation: str | None, ports: dict[str, int], expected: list[int]
) -> None:
    containers = [
        container("proxy", [{"name": "admin", "containerPort": 15000}]),
        container(ports=[{"name": name, "containerPort": port} for name, port in ports.items()]),
    ]
    annotations = {} if annotation is None else {PORT_ANNOTATION: annotation}
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a", annotations=annotations, containers=containers)
        await seen.until(lambda: bool(seen.pods))
        assert [pod.port for pod in seen.source.seen().pods] == expected


async def test_the_ports_of_init_containers_are_nobodys() -> None:
    spec = {
        "initContainers": [container("download", [{"name": "http", "containerPort": 1234}], restartPolicy="Always")]
    }
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a", spec=spec)
        await seen.sees(a="ready")
        assert seen.pods["a"].port == 8000


@pytest.mark.parametrize("annotation", ["", "0", "65536", "http", "80,80", "1,", "-1", "80 81", "9" * 30, "٨٠٠٠"])
async def test_a_port_that_is_none_refuses_the_pod_and_says_so(annotation: str) -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a", annotations={PORT_ANNOTATION: annotation})
        await seen.until(lambda: "a" in seen.refused)
        assert (seen.refused["a"].reason, seen.pods) == ("port", {})
        assert PORT_ANNOTATION in seen.refused["a"].why
        pod.annotate({PORT_ANNOTATION: "8001"})
        await seen.sees(SOON, a="ready")
        assert seen.refused == {}


async def test_only_the_leader_of_a_multi_node_group_serves() -> None:
    async with ApiServer() as server, followed(server) as seen:
        for index in ("0", "1"):
            appear(server, f"group-{index}", labels={"leaderworkerset.sigs.k8s.io/worker-index": index})
        await seen.until(lambda: bool(seen.pods and seen.refused))
        assert (set(seen.pods), seen.refused["group-1"].reason) == ({"group-0"}, "worker")


async def test_names_of_several_namespaces_are_told_apart() -> None:
    async with ApiServer() as server, followed(server, namespaces=("one", "two")) as seen:
        for namespace in ("one", "two", "three"):
            appear(server, "a", namespace=namespace)
        await seen.sees(**{"one/a": "ready", "two/a": "ready"})
        assert len({pod.uid for pod in seen.pods.values()}) == 2


async def test_the_models_annotation_narrows_what_a_pod_may_serve() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "all")
        appear(server, "some", annotations={MODELS_ANNOTATION: " qwen3-8b , lora-* "})
        appear(server, "none", annotations={MODELS_ANNOTATION: ""})
        await seen.until(lambda: len(seen.pods) == 3)
        allowed = {name: pod.allowed for name, pod in seen.pods.items()}
        assert allowed == {"all": ("*",), "some": ("qwen3-8b", "lora-*"), "none": ()}


# --- Pods that would lead requests to where they must not go.


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "0.0.0.0",
        "::",
        "metadata.google.internal",
        "10.0.0.1:80@evil",
    ],
)
async def test_a_pod_may_not_claim_an_address_that_no_pod_has(address: str) -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "evil", ip=address)
        await seen.until(lambda: "evil" in seen.refused)
        assert (seen.refused["evil"].reason, seen.pods) == ("address", {})
        assert address not in seen.refused["evil"].why


async def test_a_pod_outside_of_the_named_networks_is_refused() -> None:
    async with ApiServer() as server, followed(server, networks=LOOPBACK) as seen:
        appear(server, "inside", ip="127.0.0.9")
        appear(server, "outside", ip="10.0.0.1")
        await seen.until(lambda: bool(seen.pods and seen.refused))
        assert (set(seen.pods), set(seen.refused)) == ({"inside"}, {"outside"})


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "watched"])
async def test_neither_the_api_server_nor_the_gateway_can_be_a_pod(listed: bool) -> None:
    async with ApiServer() as server:

        def appear_evil() -> None:
            appear(server, "api-server", ip="127.0.0.1", annotations={PORT_ANNOTATION: f"9000,{server.port}"})
            appear(server, "gateway", ip="127.0.0.1", annotations={PORT_ANNOTATION: "8000"})
            appear(server, "mapped", ip="::ffff:127.0.0.1", annotations={PORT_ANNOTATION: str(server.port)})

        if listed:
            appear_evil()
        async with followed(server, networks=LOOPBACK) as seen:
            if not listed:
                appear_evil()
            await seen.until(lambda: len(seen.refused) == 3)
            assert {pod.reason for pod in seen.refused.values()} == {"address"}
            assert seen.pods == {}


async def test_a_pod_of_another_namespace_is_not_even_seen() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "evil", namespace="elsewhere")
        appear(server, "good")
        await seen.sees(good="ready")
        assert seen.refused == {}
        assert {asking.namespace for asking in server.requests} == {"models", "default"}


async def test_a_pod_that_claims_another_namespace_is_refused() -> None:
    async with ApiServer() as server, followed(server) as seen:
        # No API server sends this.
        event = (
            b'{"type":"ADDED","object":{"metadata":{"name":"x","uid":"u","namespace":"other","resourceVersion":"%d"}}}'
        )
        server.say(event % (server.log.version + 1) + b"\n")
        await seen.until(lambda: "x" in seen.refused)
        assert seen.refused["x"].reason == "namespace"


async def test_what_was_refused_is_forgotten_with_its_pod() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "evil", ip="127.0.0.1")
        await seen.until(lambda: "evil" in seen.refused)
        pod.vanish()
        await seen.until(lambda: not seen.refused, SOON)


async def test_a_thousand_pods_come_in_pages_and_a_thousand_events_come_together() -> None:
    async with ApiServer() as server:
        pods = [appear(server, f"pod-{n:04}", ip=f"127.9.{n >> 8}.{n & 255}") for n in range(1000)]
        # Not in our haste: each of these pods takes no connection, and is asked again and again.
        async with discovered(server, pace=rounds.Pace()) as seen:
            assert len(seen.fleet.value.pods) == 1000
            lists = [asking for asking in server.requests if (asking.verb, asking.namespace) == ("list", "models")]
            assert [int(asking.query["limit"]) for asking in lists] == [100] * 10
            fleets = 0

            async def count() -> None:
                nonlocal fleets
                while True:
                    await seen.fleet.wait_changed()
                    fleets += 1

            counting = asyncio.create_task(count())
            loop = asyncio.get_running_loop()
            began = loop.time()
            for pod in pods:
                pod.become_unready()
            await seen.until(lambda: not any(pod.askable for pod in seen.fleet.value.pods))
            assert fleets <= (loop.time() - began) / 0.02 + 2
            counting.cancel()
