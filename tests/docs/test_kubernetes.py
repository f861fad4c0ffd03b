"""docs/kubernetes.md: pods as other projects make them become targets by the label, at the port where vLLM listens.

Each pod here has what the page says of it: labels, containers, ports. A change of what a pod means to us
(`gateway/discovery/pods.py`) that would take one of them away is seen here.
"""

import re
from typing import Any

import pytest

from gateway.core.fleet import PodState
from gateway.discovery.pods import POOL_LABEL, PORT_ANNOTATION, Refused, Rules, pods_of
from tests.apiserver.pods import container
from tests.docs.pages import ROOT
from tests.unit.discovery.objects import ready

TEXT = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
MODELS = Rules(namespace="models")
Labels = dict[str, str]
Made = tuple[Labels, list[dict[str, Any]], int, Labels]
"""(labels, containers, the port where vLLM listens, the annotations that the page gives)."""


def port(number: int, name: str = "") -> dict[str, Any]:
    return {"containerPort": number, "protocol": "TCP"} | ({"name": name} if name else {})


PRODUCTION_STACK = {"model": "mistral", "helm-release-name": "vllm", "environment": "test", "release": "test"}
LLM_INFERENCE_SERVICE = {
    "app.kubernetes.io/name": "qwen",
    "app.kubernetes.io/part-of": "llminferenceservice",
    "app.kubernetes.io/component": "llminferenceservice-workload",
    "kserve.io/component": "workload",
}
LEADER = {
    "leaderworkerset.sigs.k8s.io/name": "vllm",
    "leaderworkerset.sigs.k8s.io/group-index": "0",
    "leaderworkerset.sigs.k8s.io/worker-index": "0",
    "role": "leader",
}
OTHERS_OF_PRODUCTION_STACK = [port(55555, "zmq-port"), port(9999, "ucx-port")]
PODS: dict[str, Made] = {
    "production-stack": (
        PRODUCTION_STACK,
        [container("vllm", [port(8000, "container-port"), *OTHERS_OF_PRODUCTION_STACK])],
        8000,
        {},
    ),
    "production-stack, at another port": (
        PRODUCTION_STACK,
        [container("vllm", [port(8080, "container-port"), *OTHERS_OF_PRODUCTION_STACK])],
        8080,
        {PORT_ANNOTATION: "8080"},
    ),
    "KServe": (LLM_INFERENCE_SERVICE, [container("main", [port(8000)])], 8000, {}),
    "KServe, vLLM in an InferenceService": (
        {"serving.kserve.io/inferenceservice": "qwen", "component": "predictor"},
        [container("kserve-container", [port(8080)])],
        8080,
        {PORT_ANNOTATION: "8080"},
    ),
    "llm-d": (
        {"llm-d.ai/guide": "optimized-baseline", "llm-d.ai/model": "Qwen3-32B", "llm-d.ai/role": "decode"},
        [container("modelserver", [port(8000, "modelserver")])],
        8000,
        {},
    ),
    "llm-d-modelservice, behind its sidecar": (
        {"llm-d.ai/model": "qwen", "llm-d.ai/role": "decode"},
        [container("vllm", [port(8200, "metrics")])],
        8200,
        {PORT_ANNOTATION: "8200"},
    ),
    "LeaderWorkerSet": (LEADER, [container("vllm-leader", [port(8080)])], 8080, {PORT_ANNOTATION: "8080"}),
    "a Deployment": ({"app": "vllm"}, [container("vllm", [port(8000)])], 8000, {}),
    "a Deployment with a named port": (
        {"app": "vllm"},
        [container("proxy", [port(9000, "admin")]), container("vllm", [port(8001, "http")])],
        8001,
        {},
    ),
    "a Deployment that names no port": ({"app": "vllm"}, [container("vllm", [])], 8000, {}),
}
each_pod = pytest.mark.parametrize("made", PODS.values(), ids=PODS)


@each_pod
def test_with_the_label_it_is_a_target_at_vllms_port(made: Made) -> None:
    labels, containers, at, annotations = made
    told = ready(
        namespace="models", labels=labels | {POOL_LABEL: "chat"}, annotations=annotations, containers=containers
    )
    (pod,) = pods_of(told, MODELS)
    assert (pod.pool, pod.port, pod.state, pod.askable) == ("chat", at, PodState.READY, True)


@each_pod
def test_without_the_label_it_is_none(made: Made) -> None:
    labels, containers, _, annotations = made
    told = ready(namespace="models", labels=labels, annotations=annotations, containers=containers)
    with pytest.raises(Refused) as refused:
        pods_of(told, MODELS)
    assert refused.value.reason == "no_pool"


def test_the_ports_that_the_page_annotates_are_those_of_such_pods() -> None:
    shown = re.findall(rf'{PORT_ANNOTATION}: "(\d+)"', TEXT)
    assert shown == [str(PODS[name][2]) for name in ("llm-d-modelservice, behind its sidecar", "LeaderWorkerSet")]


def test_a_labelled_worker_of_a_group_is_refused() -> None:
    told = ready(
        namespace="models",
        labels=LEADER | {"leaderworkerset.sigs.k8s.io/worker-index": "1", POOL_LABEL: "giant"},
        containers=[container("vllm-worker", [])],
    )
    with pytest.raises(Refused) as refused:
        pods_of(told, MODELS)
    assert refused.value.reason == "worker"
