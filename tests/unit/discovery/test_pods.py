"""What a pod object means: routable only when all says so, never a target that must not be one, and total."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.fleet import Pod, PodState
from gateway.discovery.pods import Refused, Rules, is_live, pods_of, shown_name, without_twins
from tests.apiserver import pods
from tests.unit.discovery.objects import CREATED, CREATED_AT, Object, pending, ready

RULES = Rules("vllm")


def one(told: Object, rules: Rules = RULES) -> Pod:
    (pod,) = pods_of(told, rules)
    return pod


def refusal(told: Object, rules: Rules = RULES) -> str:
    with pytest.raises(Refused) as caught:
        pods_of(told, rules)
    assert "10." not in str(caught.value)
    return caught.value.reason


def test_a_ready_pod_is_a_server_at_its_address() -> None:
    pod = one(ready())
    assert (pod.name, pod.pool, pod.host, pod.port) == ("chat-0", "chat", "10.0.0.7", 8000)
    assert (pod.state, pod.reason, pod.askable, pod.created_at) == (PodState.READY, "", True, CREATED_AT)
    assert pod.models == ()
    assert pod.allowed == ("*",)


def crashing() -> Object:
    told = pods.with_readiness(ready(), CREATED, ready=False)
    waiting = [{"name": "vllm", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    return pods.with_status(told, containerStatuses=waiting)


@pytest.mark.parametrize(
    ("told", "state", "reason"),
    [
        (pending(), PodState.STARTING, "phase Pending"),
        (pods.with_status(ready(), phase="Unknown"), PodState.STARTING, "phase Unknown"),
        (pods.with_status(ready(), phase=None), PodState.STARTING, "phase unknown"),
        (pods.with_readiness(ready(), CREATED, ready=False), PodState.STARTING, "Ready is False"),
        (pods.with_conditions(ready(), CREATED, Ready="Unknown"), PodState.STARTING, "Ready is Unknown"),
        (pods.with_status(ready(), conditions=None), PodState.STARTING, "Ready is missing"),
        (pods.with_status(ready(), podIP=None), PodState.STARTING, "no address yet"),
        (crashing(), PodState.STARTING, "Ready is False: CrashLoopBackOff"),
        (pods.marked_for_deletion(ready(), CREATED, 30), PodState.DRAINING, "terminating"),
    ],
)
def test_a_pod_is_routable_only_when_all_says_so_and_tells_why_not(told: Object, state: PodState, reason: str) -> None:
    pod = one(told)
    assert (pod.state, pod.reason, pod.askable) == (state, reason, False)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_run_to_its_end_is_gone(phase: str) -> None:
    assert pods_of(pods.with_status(ready(), phase=phase), RULES) == ()


def test_an_address_that_another_pod_had_makes_no_identity() -> None:
    old, new = one(ready("a")), one(ready("b"))
    assert (old.host, old.port) == (new.host, new.port)
    assert old.uid != new.uid
    # The same pod, put up again under another address, is another server.
    assert one(ready("a", "10.0.0.8")).uid != old.uid


NAMED = pods.container(ports=[{"name": "http", "containerPort": 9000}])
METRICS = pods.container("sidecar", ports=[{"name": "metrics", "containerPort": 9100}])
TWO = pods.container("second", ports=[{"name": "http", "containerPort": 9001}])


@pytest.mark.parametrize(
    ("annotation", "containers", "ports"),
    [
        (None, [], [8000]),
        (None, [METRICS], [8000]),
        (None, [METRICS, NAMED], [9000]),
        (None, [NAMED, TWO], [9000]),
        ("8100", [NAMED], [8100]),
        (" 8100 ", [], [8100]),
        ("8100,8101, 8102", [NAMED], [8100, 8101, 8102]),
    ],
)
def test_the_port_is_the_annotations_else_the_one_named_http_else_8000(
    annotation: str | None, containers: list[Object], ports: list[int]
) -> None:
    annotations = {} if annotation is None else {"poolgate.dev/port": annotation}
    found = pods_of(ready(annotations=annotations, containers=containers), RULES)
    assert [pod.port for pod in found] == ports
    assert len({pod.uid for pod in found}) == len({pod.name for pod in found}) == len(ports)
    assert found[0].name == ("chat-0" if len(ports) == 1 else "chat-0:8100")


@pytest.mark.parametrize("annotation", ["", "0", "65536", "80a", "-1", "1.5", "8000,", "8000,8000", "٨", "1" * 400])
def test_a_port_that_is_none_is_refused(annotation: str) -> None:
    assert refusal(ready(annotations={"poolgate.dev/port": annotation})) == "port"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::ffff:127.0.0.1",
        "x",
    ],
)
def test_addresses_that_must_never_be_a_target_are_refused(address: str) -> None:
    assert refusal(ready(ip=address)) == "address"


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "100.64.0.1", "240.0.0.1", "8.8.8.8", "fd00::7"])
def test_any_other_address_is_a_target(address: str) -> None:
    assert one(ready(ip=address)).host == address


def test_networks_that_are_named_are_the_only_ones_and_may_be_loopback() -> None:
    rules = replace(RULES, networks=(ip_network("127.0.0.0/8"), ip_network("fd00::/8")))
    assert one(ready(ip="127.0.0.1"), rules).host == "127.0.0.1"
    assert one(ready(ip="fd00::1"), rules).host == "fd00::1"
    assert refusal(ready(ip="10.0.0.1"), rules) == "address"
    assert refusal(ready(ip="::1"), rules) == "address"


def test_the_api_server_and_ourselves_are_never_a_target() -> None:
    rules = RULES.reserving([("10.0.0.7", 6443), ("fd00::7", 443), ("a.name", 80)])
    at_6443 = {"poolgate.dev/port": "6443"}
    assert refusal(ready(annotations=at_6443), rules) == "address"
    assert refusal(ready(ip="::ffff:10.0.0.7", annotations=at_6443), rules) == "address"
    assert refusal(ready(ip="fd00:0::7"), rules) == "address"
    # Where no range is named, such an address is no pod's at any port ...
    assert refusal(ready(), rules) == "address"
    # ... and where one is, a pod beside the API server is a pod, but at no time at its port.
    named = replace(rules, networks=(ip_network("10.0.0.0/8"),))
    assert one(ready(), named).port == 8000
    assert refusal(ready(annotations=at_6443), named) == "address"
    assert refusal(ready(annotations={"poolgate.dev/port": "8000,6443"}), named) == "address"


def test_pods_of_other_namespaces_without_a_pool_or_that_do_not_lead_are_refused() -> None:
    assert refusal(ready(namespace="other")) == "namespace"
    assert refusal(ready(labels={"app": "vllm"})) == "no_pool"
    assert refusal(ready(labels={"poolgate.dev/pool": ""})) == "no_pool"
    group = {"poolgate.dev/pool": "chat", "leaderworkerset.sigs.k8s.io/worker-index": "1"}
    assert refusal(ready(labels=group)) == "worker"
    assert one(ready(labels=group | {"leaderworkerset.sigs.k8s.io/worker-index": "0"})).askable
    # With external or hybrid load balancing each pod of a group is a server; it says so by its port.
    assert one(ready(labels=group, annotations={"poolgate.dev/port": "8000"})).askable


def test_an_annotation_limits_the_models_by_name_or_glob() -> None:
    assert one(ready(annotations={"poolgate.dev/models": "a, b/c*,"})).allowed == ("a", "b/c*")
    assert one(ready(annotations={"poolgate.dev/models": ""})).allowed == ()


@pytest.mark.parametrize(
    ("written", "limit"),
    [
        *(("8", 8), (" 100000 ", 100_000), ("8 ", 8)),
        *((slip, None) for slip in ("0", "100001", "9" * 5000, "-1", "1.5", "", "many", "٣", 8)),
    ],
)
def test_an_annotation_limits_the_requests_in_flight_and_a_slip_of_the_pen_leaves_the_pool_s_limit(
    written: object, limit: int | None
) -> None:
    pod = one(ready(annotations={"poolgate.dev/max-in-flight": written}))
    assert (pod.max_in_flight, pod.state) == (limit, PodState.READY)
    assert one(ready()).max_in_flight is None


@pytest.mark.parametrize(
    ("written", "takes"),
    [
        *(("true", True), (" true ", True), ("false", False)),
        *((slip, False) for slip in ("", "True", "TRUE", "yes", "1", "truе", "true,true", "9" * 5000, True, None, 1)),
    ],
)
def test_an_annotation_says_that_the_engine_takes_priorities_and_a_slip_of_the_pen_that_it_does_not(
    written: object, takes: bool
) -> None:
    pod = one(ready(annotations={"poolgate.dev/priority": written}))
    assert (pod.takes_priority, pod.state) == (takes, PodState.READY)
    assert not one(ready()).takes_priority


def test_each_port_of_a_pod_takes_priorities_if_the_pod_does() -> None:
    found = pods_of(ready(annotations={"poolgate.dev/priority": "true", "poolgate.dev/port": "8000,8001"}), RULES)
    assert [pod.takes_priority for pod in found] == [True, True]


def test_names_bear_their_namespace_where_there_are_several() -> None:
    rules = replace(RULES, prefixed=True)
    assert one(ready(), rules).name == "vllm/chat-0"
    assert shown_name(ready(), rules) == "vllm/chat-0"
    assert shown_name({}, RULES) == "(without a name)"


def test_a_replica_counts_while_it_is_ready_and_stays() -> None:
    assert is_live(ready())
    assert not is_live(pending())
    assert not is_live(pods.marked_for_deletion(ready(), CREATED, 30))


def test_of_two_pods_at_one_address_the_younger_has_it() -> None:
    old, young = replace(one(ready("old")), created_at=1.0), replace(one(ready("young")), created_at=2.0)
    draining = replace(one(ready("leaving")), created_at=3.0, state=PodState.DRAINING, askable=False)
    elsewhere = one(ready("elsewhere", "10.0.0.9"))
    for order in ([old, young, draining, elsewhere], [young, elsewhere, draining, old]):
        found = {pod.name: pod for pod in without_twins(order)}
        assert (found["old"].state, found["old"].askable) == (PodState.STARTING, False)
        assert found["old"].reason == "its address belongs to the younger pod young"
        assert found["young"] == young
        assert found["leaving"] == draining
        assert found["elsewhere"] == elsewhere


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    ("metadata",), ("spec",), ("status",), ("metadata", "labels"), ("metadata", "annotations"), ("metadata", "uid"),
    ("metadata", "name"), ("metadata", "creationTimestamp"), ("metadata", "deletionTimestamp"), ("status", "phase"),
    ("status", "conditions"), ("status", "podIP"), ("status", "containerStatuses"), ("spec", "containers"),
    ("metadata", "annotations", "poolgate.dev/port"), ("metadata", "labels", "poolgate.dev/pool"),
    ("metadata", "annotations", "poolgate.dev/priority"),
]  # fmt: skip


def with_value(told: Any, place: tuple[str, ...], value: Any) -> Any:
    if not place:
        return value
    return told | {place[0]: with_value(told.get(place[0], {}), place[1:], value)}


@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_in_an_object_it_is_read_or_refused(place: tuple[str, ...], value: Any) -> None:
    told = with_value(ready(), place, value)
    shown_name(told, RULES)
    is_live(told)
    try:
        found, reason = pods_of(told, RULES), "unreadable"
    except Refused as refused:
        found, reason = (), refused.reason
    assert reason in {"unreadable", "namespace", "no_pool", "worker", "port", "address"}
    for pod in found:
        assert pod.askable == (pod.state is PodState.READY)
        assert not pod.askable or pod.host
        assert len(pod.reason) < 300
        assert pod.reason.isprintable()
