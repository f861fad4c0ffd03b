"""vLLM's pods: in every overlay and component they keep the rules of `vllm_pods`, and each rule finds its flaw.

The flaws are those of the manifests that people copy; so none of them can come in here unseen.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import building, vllm_pods, vllm_serve
from tests.manifests.building import (
    EVERY_BUILD,
    KUSTOMIZE,
    Build,
    Manifest,
    build,
    changeable,
    find,
    labels_of,
    name_of,
    of_kind,
    selects,
)
from tests.manifests.checks.security import services_stay_inside
from tests.manifests.vllm_pods import RULES, engines, servers

Rule = Callable[[Build], list[str]]

pytestmark = pytest.mark.program("kubectl")

README = KUSTOMIZE / "components" / "README.md"
GPU_SINGLE = KUSTOMIZE / "overlays" / "gpu-single"
PRODUCTION = KUSTOMIZE / "overlays" / "production"
MULTI_NODE = KUSTOMIZE / "components" / "pool-vllm-multi-node"


# What is there


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_vllms_pods_keep_every_rule(folder: Path) -> None:
    built = build(folder)
    assert [fault for rule in RULES for fault in rule(built)] == []


@pytest.mark.parametrize(
    ("folder", "pools"),
    [
        ("overlays/gpu-single", {"chat"}),
        ("overlays/production", {"chat", "large"}),
        ("components/pool-vllm-gpu", {"chat"}),
        ("components/pool-vllm-cpu", {"small"}),
        ("components/pool-vllm-multi-gpu", {"large"}),
        ("components/pool-vllm-multi-node", {"giant"}),
        ("components/model-cache", {"chat", "giant"}),
    ],
)
def test_there_are_pods_for_the_rules_to_hold_of(folder: str, pools: set[str]) -> None:
    assert {engine.pool for engine in servers(build(KUSTOMIZE / folder))} == pools


@pytest.mark.parametrize(
    ("component", "flags"),
    [
        ("lora", {"--enable-lora", "--lora-modules", "--max-loras", "--max-lora-rank"}),
        ("speculative-decoding", {"--speculative-config"}),
        ("quantized-kv-cache", {"--kv-cache-dtype"}),
    ],
)
def test_a_component_adds_its_flags_and_nothing_else(component: str, flags: set[str]) -> None:
    (before,), (after,) = (engines(build(KUSTOMIZE / "components" / name)) for name in ("pool-vllm-gpu", component))
    assert after.flags.keys() - before.flags.keys() == flags
    assert after.flags.items() > before.flags.items()


@pytest.mark.parametrize("component", ["pool-vllm-gpu", "pool-vllm-multi-gpu", "pool-vllm-cpu", "pool-vllm-multi-node"])
def test_a_pool_is_called_by_the_gateways_alone(component: str) -> None:
    """By its policies: in on `http` from gateways, out to DNS, to the internet's 443, and within a group."""
    built = build(KUSTOMIZE / "components" / component)
    pool = servers(built)[0]
    policies = [
        each["spec"]
        for each in of_kind(built, "NetworkPolicy")
        if each["metadata"]["namespace"] == "vllm" and selects(each["spec"]["podSelector"], labels_of(pool.template))
    ]
    ways_in = [(way.get("from"), way.get("ports")) for each in policies for way in each.get("ingress", [])]
    of_gateways = [ports for sources, ports in ways_in if sources and "namespaceSelector" in sources[0]]
    assert of_gateways == [[{"port": "http"}]]
    of_the_group = [sources for sources, ports in ways_in if ports is None]
    assert len(of_the_group) == (1 if component == "pool-vllm-multi-node" else 0)
    (source,) = [sources[0] for sources, ports in ways_in if ports]
    assert selects(source["podSelector"], {"app.kubernetes.io/name": "poolgate"})
    assert not selects(source["podSelector"], {"app.kubernetes.io/name": "open-webui"})


def test_a_group_has_one_pod_that_the_gateway_sees() -> None:
    leader, worker = engines(build(MULTI_NODE))
    assert (leader.pool, worker.pool) == ("giant", "")
    assert [engine.flags["--node-rank"] for engine in (leader, worker)] == ["0", "1"]
    assert [engine.flags["--nnodes"] for engine in (leader, worker)] == ["2", "2"]
    assert leader.flags["--master-addr"] == worker.flags["--master-addr"] == "vllm-giant-0.vllm-giant.vllm"
    shared = {"--tensor-parallel-size", "--pipeline-parallel-size", "--max-model-len", "--gpu-memory-utilization"}
    assert {flag: leader.flags[flag] for flag in shared} == {flag: worker.flags[flag] for flag in shared}


# The page


def test_a_second_pool_as_the_page_makes_it_is_a_pool_of_its_own(tmp_path: Path) -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)]
    (second,) = [block for block in blocks if "nameSuffix" in block]
    (fetches,) = [block for block in blocks if "Qwen/Qwen3-14B" in str(block) and "nameSuffix" not in block]
    pool, overlay = tmp_path / "pools" / "chat-code", tmp_path
    pool.mkdir(parents=True)
    places = {
        name: os.path.relpath(KUSTOMIZE / "components" / name, overlay) for name in ("pool-vllm-gpu", "model-cache")
    }
    second["components"] = [os.path.relpath(KUSTOMIZE / "components" / "pool-vllm-gpu", pool)]
    (pool / "kustomization.yaml").write_text(yaml.safe_dump(second))
    settings = yaml.safe_load((GPU_SINGLE / "gateway.yaml").read_text("utf-8"))
    settings["pools"]["chat-code"] = {"stream_seconds": 600}
    (overlay / "gateway.yaml").write_text(yaml.safe_dump(settings))
    whole = yaml.safe_load((GPU_SINGLE / "kustomization.yaml").read_text("utf-8"))
    whole |= {
        "resources": [os.path.relpath(building.BASE, overlay), "pools/chat-code"],
        "components": [places["pool-vllm-gpu"], places["model-cache"]],
        "patches": fetches["patches"],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(whole))

    built = build(overlay)

    assert [fault for rule in RULES for fault in rule(built)] == []
    assert sorted(engine.pool for engine in engines(built)) == ["chat", "chat-code"]
    code = find(built, "Deployment", "vllm-chat-code")
    assert code["spec"]["replicas"] == 2
    policy = find(built, "NetworkPolicy", "vllm-chat-code")["spec"]
    assert selects(policy["podSelector"], labels_of(code["spec"]["template"]))
    assert selects(policy["ingress"][0]["from"][0]["podSelector"], {"app.kubernetes.io/name": "poolgate"})
    first = labels_of(find(built, "Deployment", "vllm-chat")["spec"]["template"])
    assert not selects(policy["podSelector"], first)
    assert not selects(code["spec"]["selector"], first)


# The help


def test_every_flag_of_the_help_is_known() -> None:
    text = vllm_serve.HELP.read_text("utf-8")
    named = set(re.findall(r"^  (?:-\w+, )?(--[a-z][\w.-]*)", text, re.MULTILINE))
    assert len(named) > 250
    assert named <= vllm_serve.flags().keys()
    assert vllm_serve.version() == "0.32.0"


@pytest.mark.parametrize(
    "argument",
    [
        "--port=8000",
        "--headless",
        "--no-enable-prefix-caching",
        "--max-model-len=16k",
        "--gpu-memory-utilization=0.9",
        "--kv-cache-dtype=fp8",
        "--tool-call-parser=hermes",
        '--speculative-config={"method": "ngram"}',
        "--lora-modules=support=/models/adapters/support",
    ],
)
def test_what_vllm_takes_is_no_fault(argument: str) -> None:
    assert vllm_serve.faults(["model", argument]) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port=8000"], "not a model"),
        (["model", "auto"], "'auto' is no flag"),
        (["model", "--dtype", "auto"], "--dtype wants a value"),
        (["model", "--dtype=fp4"], "does not take 'fp4'"),
        (["model", "--enable-lora=true"], "takes no value"),
        (["model", "--enable-chunked-prefil"], "has no --enable-chunked-prefil"),
        (["model", "--shutdown-drain-timeout=120"], "has no --shutdown-drain-timeout"),
        (["model", "--max-num-queued-reqs=many"], "does not take 'many'"),
        (["model", "--max-model-len=long"], "does not take 'long'"),
        (["model", "--gpu-memory-utilization=90%"], "does not take '90%'"),
        (["model", "--speculative-config={method: ngram}"], "(json)"),
        (["model", "--port=1", "--port=2"], "2 times"),
        (["model", "-tp=4"], "is no flag"),
    ],
)
def test_what_vllm_would_refuse_is_a_fault(arguments: list[str], says: str) -> None:
    assert says in " ".join(vllm_serve.faults(arguments))


# Flaws


class Flawed:
    """A build of which one thing is to be broken."""

    def __init__(self, folder: Path) -> None:
        self.built: list[Manifest] = changeable(build(folder))

    @property
    def workload(self) -> Manifest:
        (found,) = [engine.workload for engine in servers(tuple(self.built)) if engine.pool != "large"]
        return found

    @property
    def template(self) -> dict[str, Any]:
        spec = self.workload["spec"]
        return dict(spec["template"] if "template" in spec else spec["leaderWorkerTemplate"]["leaderTemplate"])

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        container: dict[str, Any] = self.spec["containers"][0]
        return container

    def argument(self, old: str, *new: str) -> None:
        at = self.container["args"].index(old)
        self.container["args"][at : at + 1] = new

    def variable(self, name: str, **to: Any) -> None:
        others = [each for each in self.container["env"] if each["name"] != name]
        self.container["env"] = [*others, {"name": name, **to}] if to else others

    def volume(self, name: str, source: dict[str, Any]) -> None:
        volumes: list[dict[str, Any]] = self.spec["volumes"]
        self.spec["volumes"] = [{"name": name, **source} if each["name"] == name else each for each in volumes]

    def settings(self, **pools: Any) -> None:
        held = find(self.built, "ConfigMap", "poolgate-config")["data"]
        held["gateway.yaml"] = yaml.safe_dump({**yaml.safe_load(held["gateway.yaml"]), "pools": pools})

    def worker(self) -> dict[str, Any]:
        group: dict[str, Any] = self.workload["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        return group


Break = Callable[[Flawed], Any]
PORT = {"name": "http", "port": 8000}
TO_THE_POD = {"app.kubernetes.io/name": "vllm", "poolgate.dev/pool": "chat"}


def service(**spec: Any) -> Manifest:
    metadata = {"name": "vllm", "namespace": "vllm", "labels": {}}
    selector = {"selector": TO_THE_POD, "ports": [PORT]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {**selector, **spec}}


FLAWS: dict[str, tuple[Rule, Break, Path]] = {
    "a stray word, left over from a flag": (
        vllm_pods.vllm_takes_its_arguments,
        lambda it: it.container["args"].append("auto"),
        GPU_SINGLE,
    ),
    "a flag of another version": (
        vllm_pods.vllm_takes_its_arguments,
        lambda it: it.argument("--shutdown-timeout=600", "--shutdown-timeout=600", "--shutdown-mode=drain"),
        GPU_SINGLE,
    ),
    "a shell before vLLM": (
        vllm_pods.vllm_takes_its_arguments,
        lambda it: it.container.update(command=["/bin/sh", "-c"]),
        GPU_SINGLE,
    ),
    "a variable that nobody sets": (
        vllm_pods.vllm_takes_its_arguments,
        lambda it: it.argument("--port=8000", "--port=8000", "--master-addr=$(LEADER)"),
        MULTI_NODE,
    ),
    "the latest image": (
        vllm_pods.the_image_is_the_one_of_the_help,
        lambda it: it.container.update(image="vllm/vllm-openai:latest"),
        GPU_SINGLE,
    ),
    "a selector that two models share": (
        vllm_pods.a_pool_is_one_workload_and_one_name,
        lambda it: it.workload["spec"].update(selector={"matchLabels": {"app.kubernetes.io/name": "vllm"}}),
        PRODUCTION,
    ),
    "two pools of one name": (
        vllm_pods.a_pool_is_one_workload_and_one_name,
        lambda it: it.argument("--served-model-name=qwen3-8b", "--served-model-name=qwen3-32b"),
        PRODUCTION,
    ),
    "a model's id as the pool's label": (
        vllm_pods.a_pool_is_one_workload_and_one_name,
        lambda it: it.template["metadata"]["labels"].update({"poolgate.dev/pool": "Qwen/Qwen3-8B"}),
        GPU_SINGLE,
    ),
    "a worker in the pool": (
        vllm_pods.a_pool_is_one_workload_and_one_name,
        lambda it: it.worker()["metadata"]["labels"].update({"poolgate.dev/pool": "giant"}),
        MULTI_NODE,
    ),
    "settings of a pool that is not there": (
        vllm_pods.the_gateway_knows_the_pools,
        lambda it: it.settings(chatt={"stream_seconds": 600}),
        GPU_SINGLE,
    ),
    "settings that do not admit the model": (
        vllm_pods.the_gateway_knows_the_pools,
        lambda it: it.settings(chat={"stream_seconds": 600, "models": ["qwen3-14b"]}),
        GPU_SINGLE,
    ),
    "liveness from the first minute, and no startup probe": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container.pop("startupProbe"),
        GPU_SINGLE,
    ),
    "a startup probe of five minutes": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container["startupProbe"].update(failureThreshold=30),
        GPU_SINGLE,
    ),
    "a guess of how long it loads": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container["livenessProbe"].update(initialDelaySeconds=60),
        GPU_SINGLE,
    ),
    "probes that wait a second": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container["readinessProbe"].pop("timeoutSeconds"),
        GPU_SINGLE,
    ),
    "readiness and liveness alike": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container.update(livenessProbe=it.container["readinessProbe"]),
        GPU_SINGLE,
    ),
    "readiness by the models alone": (
        vllm_pods.loaders_are_spared,
        lambda it: it.container["readinessProbe"].update(httpGet={"path": "/v1/models", "port": "http"}),
        GPU_SINGLE,
    ),
    "a rollout with a spare GPU": (
        vllm_pods.rollouts_need_no_spare_gpu,
        lambda it: it.workload["spec"].update(strategy={"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}),
        GPU_SINGLE,
    ),
    "a deadline before it has loaded": (
        vllm_pods.rollouts_need_no_spare_gpu,
        lambda it: it.workload["spec"].pop("progressDeadlineSeconds"),
        GPU_SINGLE,
    ),
    "no shared memory": (
        vllm_pods.shared_memory_fits,
        lambda it: it.container["volumeMounts"].remove({"name": "shm", "mountPath": "/dev/shm"}),
        GPU_SINGLE,
    ),
    "shared memory without a bound": (
        vllm_pods.shared_memory_fits,
        lambda it: it.volume("shm", {"emptyDir": {"medium": "Memory"}}),
        GPU_SINGLE,
    ),
    "shared memory beyond the limit": (
        vllm_pods.shared_memory_fits,
        lambda it: it.volume("shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "48Gi"}}),
        GPU_SINGLE,
    ),
    "models in root's home": (
        vllm_pods.caches_can_be_written,
        lambda it: it.variable("HF_HOME", value="/root/.cache/huggingface"),
        GPU_SINGLE,
    ),
    "a cache that cannot be written": (
        vllm_pods.caches_can_be_written,
        lambda it: next(each for each in it.container["volumeMounts"] if each["name"] == "home").update(readOnly=True),
        GPU_SINGLE,
    ),
    "a user without a name": (vllm_pods.caches_can_be_written, lambda it: it.variable("USER"), GPU_SINGLE),
    "no key": (vllm_pods.secrets_come_from_secrets, lambda it: it.variable("VLLM_API_KEY"), GPU_SINGLE),
    "a key in the arguments": (
        vllm_pods.secrets_come_from_secrets,
        lambda it: it.container["args"].append("--api-key=$(VLLM_API_KEY)"),
        GPU_SINGLE,
    ),
    "the token's former name": (
        vllm_pods.secrets_come_from_secrets,
        lambda it: it.variable("HUGGING_FACE_HUB_TOKEN", value="$(HF_TOKEN)"),
        GPU_SINGLE,
    ),
    "a token that must be there": (
        vllm_pods.secrets_come_from_secrets,
        lambda it: it.variable("HF_TOKEN", valueFrom={"secretKeyRef": {"name": "huggingface", "key": "token"}}),
        GPU_SINGLE,
    ),
    "vLLM's own five seconds of keep-alive": (
        vllm_pods.connections_outlive_the_gateways,
        lambda it: it.variable("VLLM_HTTP_TIMEOUT_KEEP_ALIVE"),
        GPU_SINGLE,
    ),
    "a queue without an end": (
        vllm_pods.the_queue_is_bounded,
        lambda it: it.argument("--max-num-queued-reqs=256"),
        GPU_SINGLE,
    ),
    "a queue shorter than what a gateway sends": (
        vllm_pods.the_queue_is_bounded,
        lambda it: it.settings(chat={"stream_seconds": 600, "max_in_flight_per_pod": 200}),
        GPU_SINGLE,
    ),
    "load that is not told": (
        vllm_pods.the_gateway_gets_what_it_asks_for,
        lambda it: it.argument("--enable-server-load-tracking"),
        GPU_SINGLE,
    ),
    "priorities that the engine refuses": (
        vllm_pods.the_gateway_gets_what_it_asks_for,
        lambda it: it.argument("--scheduling-policy=priority"),
        GPU_SINGLE,
    ),
    "tools that are refused": (
        vllm_pods.the_gateway_gets_what_it_asks_for,
        lambda it: it.argument("--enable-auto-tool-choice"),
        GPU_SINGLE,
    ),
    "a GPU in the limits alone": (
        vllm_pods.gpus_are_asked_for_as_they_are_used,
        lambda it: it.container["resources"]["requests"].pop("nvidia.com/gpu"),
        GPU_SINGLE,
    ),
    "GPUs that nothing uses": (
        vllm_pods.gpus_are_asked_for_as_they_are_used,
        lambda it: it.container["resources"]["limits"].update({"nvidia.com/gpu": "2"}),
        GPU_SINGLE,
    ),
    "a taint that is not tolerated": (
        vllm_pods.gpus_are_asked_for_as_they_are_used,
        lambda it: it.spec.pop("tolerations"),
        GPU_SINGLE,
    ),
    "a runtime class": (
        vllm_pods.gpus_are_asked_for_as_they_are_used,
        lambda it: it.spec.update(runtimeClassName="nvidia"),
        GPU_SINGLE,
    ),
    "the node's IPC": (vllm_pods.pods_stand_alone, lambda it: it.spec.update(hostIPC=True), GPU_SINGLE),
    "models of the node": (
        vllm_pods.pods_stand_alone,
        lambda it: it.volume("models", {"hostPath": {"path": "/data"}}),
        GPU_SINGLE,
    ),
    "a Service past the gateway": (
        vllm_pods.pods_stand_alone,
        lambda it: it.built.append(service(sessionAffinity="ClientIP")),
        GPU_SINGLE,
    ),
    "a load balancer": (services_stay_inside, lambda it: it.built.append(service(type="LoadBalancer")), GPU_SINGLE),
    "a claim that one node mounts": (
        vllm_pods.models_are_shared_by_all_who_may_be,
        lambda it: find(it.built, "PersistentVolumeClaim", "model-cache")["spec"].update(accessModes=["ReadWriteOnce"]),
        PRODUCTION,
    ),
    "a model that the loader does not fetch": (
        vllm_pods.models_are_shared_by_all_who_may_be,
        lambda it: it.argument("Qwen/Qwen3-8B", "Qwen/Qwen3-14B"),
        GPU_SINGLE,
    ),
}
"""What is broken, the rule that finds it, and where it is broken."""


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found(flaw: str) -> None:
    rule, breaks, folder = FLAWS[flaw]
    flawed = Flawed(folder)
    assert rule(tuple(flawed.built)) == []
    breaks(flawed)
    assert rule(tuple(flawed.built)) != []


def test_each_rule_has_a_flaw_that_it_finds() -> None:
    assert {rule for rule, _, _ in FLAWS.values()} >= set(RULES)
