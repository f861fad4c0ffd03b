"""What must hold for vLLM's pods in a build: rules, each from a build to the faults that it finds.

A pod is vLLM's by `app.kubernetes.io/name: vllm`. In a LeaderWorkerSet there are two kinds: the leader, and workers
that are `--headless`: they answer no request, so what is about requests does not bind them.

What holds for every pod (pinned images, no root, spread, graces, who may call whom) is judged in `checks`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

import yaml

from gateway.config.sections import PoolSection, UpstreamSection
from tests.manifests import vllm_serve
from tests.manifests.building import Build, Manifest, environment, find, labels_of, namespace_of, of_kind, pods, title
from tests.manifests.checks.naming import NAME, POOL
from tests.manifests.checks.quantities import quantity
from tests.manifests.checks.stopping import grace, patience

INSTANCE = "app.kubernetes.io/instance"
LOAD_SECONDS = 1800
"""What a slow disk or a slow line may take to a model."""
LIVENESS_SECONDS = 60
GPU = "nvidia.com/gpu"
CACHES = ("HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
WANTED = (
    "--enable-prefix-caching",
    "--enable-server-load-tracking",
    "--enable-prompt-tokens-details",
    "--enable-request-id-headers",
)
FORMER_TOKENS = {"HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"}
VARIABLE = re.compile(r"\$\(([A-Z_]+)\)")


@dataclass(frozen=True)
class Engine:
    """One pod template of vLLM's, with the workload it is of."""

    workload: Manifest
    template: Manifest

    @property
    def container(self) -> Manifest:
        return dict(self.template["spec"]["containers"][0])

    @property
    def spec(self) -> Manifest:
        return dict(self.template["spec"])

    @property
    def arguments(self) -> list[str]:
        """As vLLM gets them, with the variables that LeaderWorkerSet sets."""
        known = _set_by_lws(self.workload, self.template) | dict(_plain(environment(self.container)))
        written = [str(word) for word in self.container.get("args", [])]
        return [VARIABLE.sub(lambda found: known.get(found[1], found[0]), word) for word in written]

    @property
    def flags(self) -> dict[str, str]:
        return vllm_serve.values(self.arguments)

    @property
    def headless(self) -> bool:
        return "--headless" in self.flags

    @property
    def pool(self) -> str:
        return labels_of(self.template).get(POOL, "")

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.template["metadata"].get("annotations") or {})

    @property
    def gpus(self) -> int:
        return int(self.container["resources"].get("limits", {}).get(GPU, 0))

    @property
    def title(self) -> str:
        return f"{title(self.workload)}{' worker' if self.headless else ''}"


def engines(built: Build) -> list[Engine]:
    return [Engine(workload, template) for workload, template in pods(built) if labels_of(template).get(NAME) == "vllm"]


def servers(built: Build) -> list[Engine]:
    """Those that answer requests."""
    return [engine for engine in engines(built) if not engine.headless]


# Rules


def vllm_takes_its_arguments(built: Build) -> list[str]:
    """No flag that it does not have, no value that it does not take, no stray word; and no shell before it."""
    found = [f"{engine.title}: {fault}" for engine in engines(built) for fault in vllm_serve.faults(engine.arguments)]
    for engine in engines(built):
        if engine.container.get("command") != ["vllm", "serve"]:
            found.append(f"{engine.title}: runs {engine.container.get('command')}: SIGTERM may not reach vLLM")
        found += [f"{engine.title}: nobody sets {word}" for word in engine.arguments if VARIABLE.search(word)]
    return found


def the_image_is_the_one_of_the_help(built: Build) -> list[str]:
    """Flags come and go: those of another version were not looked up."""
    return [
        f"{engine.title}: {image} is not v{vllm_serve.version()}, whose help the flags are held to"
        for engine in engines(built)
        if not (image := engine.container["image"]).partition("@")[0].endswith(f":v{vllm_serve.version()}")
    ]


def a_pool_is_one_workload_and_one_name(built: Build) -> list[str]:
    """vllm-POOL runs the pool POOL, by label and by selector, and under a model name that has no other pool."""
    found = []
    for engine in servers(built):
        pool = engine.pool
        if engine.workload["metadata"]["name"] != f"vllm-{pool}" or labels_of(engine.template).get(INSTANCE) != pool:
            found.append(f"{engine.title}: is not called as its pool {pool!r}")
        selector = (engine.workload["spec"].get("selector") or {}).get("matchLabels")
        if selector is not None and selector.get(POOL) != pool:
            found.append(f"{engine.title}: does not select by its pool")
        if not engine.flags.get("--served-model-name"):
            found.append(f"{engine.title}: has no --served-model-name: clients would have to know its repository")
    for one, other in combinations(servers(built), 2):
        if one.pool == other.pool:
            found.append(f"{one.title} and {other.title} are one pool")
        if one.flags.get("--served-model-name") == other.flags.get("--served-model-name"):
            found.append(f"{one.title} and {other.title} serve the same name: only one would get its requests")
    found += [f"{engine.title}: a worker is in a pool" for engine in engines(built) if engine.headless and engine.pool]
    return found


def the_gateway_knows_the_pools(built: Build) -> list[str]:
    """Settings of a pool that is not there are a typing error; and models that a pool may serve are those it serves."""
    settings, there = pool_settings(built), {engine.pool: engine for engine in servers(built)}
    everybodys = {labels_of(template).get(POOL) for _, template in pods(built)}
    found = [f"gateway.yaml: there is no pool {name}" for name in settings if name not in everybodys]
    for name, engine in there.items():
        models = settings.get(name, {}).get("models", ["*"])
        if not any(fnmatchcase(engine.flags.get("--served-model-name", ""), glob) for glob in models):
            found.append(f"gateway.yaml: the pool {name} may not serve what {engine.title} serves")
    return found


def loaders_are_spared(built: Build) -> list[str]:
    """Half an hour to load before anything else judges the pod; a busy engine is left alone, not restarted."""
    found = []
    for engine in servers(built):
        probes = {name: engine.container.get(f"{name}Probe") or {} for name in ("startup", "readiness", "liveness")}
        for name, probe in probes.items():
            if probe.get("httpGet") != {"path": "/health", "port": "http"}:
                found.append(f"{engine.title}: no {name}Probe asks /health")
            elif probe.get("timeoutSeconds", 1) < 5:
                found.append(f"{engine.title}: its {name}Probe is impatient: /health is slow while prompts are read")
        if not all(probes.values()):
            continue
        if patience(probes["startup"]) < LOAD_SECONDS:
            found.append(f"{engine.title}: is killed after {patience(probes['startup'])} s of loading")
        if patience(probes["liveness"]) < LIVENESS_SECONDS:
            found.append(f"{engine.title}: is killed after {patience(probes['liveness'])} s without an answer")
        if probes["readiness"].get("periodSeconds", 10) > 5:
            found.append(f"{engine.title}: is ready, and nobody looks")
        if any("initialDelaySeconds" in probe for probe in probes.values()):
            found.append(f"{engine.title}: guesses how long it loads by initialDelaySeconds")
    return found


def rollouts_need_no_spare_gpu(built: Build) -> list[str]:
    """A pod more than there are would wait for a GPU that nobody has; and each new one has the time to load."""
    found = []
    for engine in engines(built):
        spec = engine.workload["spec"]
        rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
        rolling = (spec.get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or rolling
        if engine.gpus and rolling.get("maxSurge", 1) != 0:
            found.append(f"{engine.title}: a rollout wants a spare GPU")
        if engine.workload["kind"] != "Deployment":
            continue
        takes = patience(engine.container.get("startupProbe", {})) + grace(engine.template)
        if spec.get("progressDeadlineSeconds", 600) < takes:
            found.append(f"{engine.title}: is called failed before it has had its {takes} s")
    return found


def shared_memory_fits(built: Build) -> list[str]:
    """/dev/shm is memory with a bound, and what it may take is left over by the limit beside what was requested."""
    found = []
    for engine in engines(built):
        resources = engine.container["resources"]
        shm = _volume_at(engine, "/dev/shm").get("emptyDir") or {}
        if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
            found.append(f"{engine.title}: /dev/shm is the 64 MiB of the runtime, or without a bound")
            continue
        if quantity(shm["sizeLimit"]) + quantity(resources["requests"]["memory"]) > quantity(
            resources["limits"]["memory"]
        ):
            found.append(f"{engine.title}: with /dev/shm full it is over its memory limit")
    return found


def caches_can_be_written(built: Build) -> list[str]:
    """On a read-only root: every cache, the home and /tmp are in a volume; and the user has a name."""
    found = []
    for engine in engines(built):
        variables = environment(engine.container)
        places = {name: str(variables.get(name, "")) for name in CACHES} | {"/tmp": "/tmp"}
        found += [
            f"{engine.title}: {name} ({place or 'not set'}) cannot be written"
            for name, place in places.items()
            if not _volume_at(engine, place, writable=True)
        ]
        if not variables.get("USER"):
            found.append(f"{engine.title}: has no USER: PyTorch asks for the name of a user who may have none")
    return found


def secrets_come_from_secrets(built: Build) -> list[str]:
    """The pod's key, without which anybody in the cluster may ask; and Hugging Face's token, by its name of today."""
    found = []
    for engine in engines(built):
        variables = environment(engine.container)
        key, token = variables.get("VLLM_API_KEY"), variables.get("HF_TOKEN")
        if not engine.headless and key != {"secretKeyRef": {"name": "vllm-api-key", "key": "api-key"}}:
            found.append(f"{engine.title}: answers without the key of the Secret vllm-api-key")
        if token != {"secretKeyRef": {"name": "huggingface", "key": "token", "optional": True}}:
            found.append(f"{engine.title}: has no HF_TOKEN of the Secret huggingface")
        found += [f"{engine.title}: {name} is called HF_TOKEN now" for name in FORMER_TOKENS & variables.keys()]
        if "--api-key" in engine.flags:
            found.append(f"{engine.title}: its key is in the list of processes")
    return found


def connections_outlive_the_gateways(built: Build) -> list[str]:
    """The pod is never the first to close an idle connection: a request may be on its way there."""
    idle = (configuration(built).get("upstream") or {}).get("pool_idle_seconds", UpstreamSection().pool_idle_seconds)
    return [
        f"{engine.title}: keeps an idle connection for {kept:g} s, the gateway for {idle:g} s"
        for engine in servers(built)
        if (kept := float(environment(engine.container).get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 5))) < 5 * idle
    ]


def the_queue_is_bounded(built: Build) -> list[str]:
    """In the pod at twice what a gateway sends, so that it refuses only what slipped through between two of them."""
    found = []
    for engine in servers(built):
        ours = (
            pool_settings(built).get(engine.pool, {}).get("max_in_flight_per_pod", PoolSection().max_in_flight_per_pod)
        )
        sent = int(engine.annotations.get("poolgate.dev/max-in-flight", ours))
        bound = int(engine.flags.get("--max-num-queued-reqs") or 0)
        if not bound:
            found.append(f"{engine.title}: its queue has no end")
        elif bound < 2 * sent:
            found.append(f"{engine.title}: refuses at {bound} what gateways send up to {sent} each")
    return found


def the_gateway_gets_what_it_asks_for(built: Build) -> list[str]:
    """Load, cached tokens, its request id; priorities where, and only where, the annotation says so."""
    found = []
    for engine in servers(built):
        found += [f"{engine.title}: without {flag}" for flag in WANTED if flag not in engine.flags]
        told = engine.annotations.get("poolgate.dev/priority") == "true"
        if told != (engine.flags.get("--scheduling-policy") == "priority"):
            found.append(f"{engine.title}: --scheduling-policy=priority and its annotation do not agree")
        auto, parser = "--enable-auto-tool-choice" in engine.flags, "--tool-call-parser" in engine.flags
        if not (auto and parser):
            found.append(f"{engine.title}: refuses requests with tools")
    return found


def gpus_are_asked_for_as_they_are_used(built: Build) -> list[str]:
    """Requests are limits, the taint is tolerated, and the parallel sizes use them all."""
    found = []
    for engine in engines(built):
        requested = int(engine.container["resources"]["requests"].get(GPU, 0))
        flags = engine.flags
        nodes = int(flags.get("--nnodes", 1))
        used = int(flags.get("--tensor-parallel-size", 1)) * int(flags.get("--pipeline-parallel-size", 1))
        if requested != engine.gpus:
            found.append(f"{engine.title}: {requested} GPUs requested, limited to {engine.gpus}")
        if engine.gpus and used != engine.gpus * nodes:
            found.append(f"{engine.title}: uses {used} of {engine.gpus * nodes} GPUs")
        tolerated = any(each.get("key") == GPU for each in engine.spec.get("tolerations", []))
        if engine.gpus and not tolerated:
            found.append(f"{engine.title}: does not tolerate the taint {GPU}")
        if not engine.gpus and "vllm-openai-cpu" not in engine.container["image"]:
            found.append(f"{engine.title}: asks for no GPU")
        if "runtimeClassName" in engine.spec:
            found.append(f"{engine.title}: wants a runtime class that a cluster may not have")
    return found


def pods_stand_alone(built: Build) -> list[str]:
    """Nothing of the node's, and no Service: the gateway chooses the pod, and nobody else may call."""
    found = []
    for engine in engines(built):
        shared = [name for name in ("hostNetwork", "hostIPC", "hostPID") if engine.spec.get(name)]
        shared += [volume["name"] for volume in engine.spec["volumes"] if "hostPath" in volume]
        found += [f"{engine.title}: shares {name} with its node" for name in shared]
        for service in of_kind(built, "Service"):
            selector = service["spec"].get("selector") or {}
            if (
                namespace_of(service) == namespace_of(engine.workload)
                and selector.items() <= labels_of(engine.template).items()
            ):
                found.append(f"{engine.title}: {title(service)} leads to it past the gateway")
    return found


def models_are_shared_by_all_who_may_be(built: Build) -> list[str]:
    """Their claim is for several nodes, and the loader fetches what they load, to where they look."""
    found = []
    claims = {each["metadata"]["name"]: each for each in of_kind(built, "PersistentVolumeClaim")}
    loaders = [job for job in of_kind(built, "Job") if labels_of(job).get(NAME) == "model-loader"]
    fetched = {
        (each["args"][0], str(environment(each)["HF_HOME"]))
        for job in loaders
        for each in job["spec"]["template"]["spec"]["containers"]
        if each["command"] == ["hf", "download"] and "--local-dir" not in json.dumps(each["args"])
    }
    mounted = set()
    for engine in engines(built):
        home = str(environment(engine.container).get("HF_HOME"))
        claim = _volume_at(engine, home).get("persistentVolumeClaim")
        if claim is None:
            continue
        modes = claims[claim["claimName"]]["spec"]["accessModes"]
        if modes != ["ReadWriteMany"]:
            found.append(f"{engine.title}: {modes} lets no second node mount its models")
        mounted.add((engine.arguments[0], home))
    if mounted and is_whole(built):
        found += [f"model-loader: does not fetch {model} to {home}" for model, home in mounted - fetched]
        found += [f"model-loader: fetches {model}, which no pool loads" for model, home in fetched - mounted]
    return found


RULES = (
    vllm_takes_its_arguments,
    the_image_is_the_one_of_the_help,
    a_pool_is_one_workload_and_one_name,
    the_gateway_knows_the_pools,
    loaders_are_spared,
    rollouts_need_no_spare_gpu,
    shared_memory_fits,
    caches_can_be_written,
    secrets_come_from_secrets,
    connections_outlive_the_gateways,
    the_queue_is_bounded,
    the_gateway_gets_what_it_asks_for,
    gpus_are_asked_for_as_they_are_used,
    pods_stand_alone,
    models_are_shared_by_all_who_may_be,
)

# What they ask of a build


def configuration(built: Build) -> dict[str, Any]:
    """The gateway's."""
    text = find(built, "ConfigMap", "poolgate-config", "poolgate")["data"]["gateway.yaml"]
    return dict(yaml.safe_load(text))


def pool_settings(built: Build) -> dict[str, dict[str, Any]]:
    return dict(configuration(built).get("pools") or {})


def is_whole(built: Build) -> bool:
    """An overlay, which has its pools' settings; not the base with a component, which has none."""
    return bool(pool_settings(built))


def _set_by_lws(workload: Manifest, template: Manifest) -> dict[str, str]:
    """Its three variables, for the leader and for the first worker."""
    if workload["kind"] != "LeaderWorkerSet":
        return {}
    name, group = workload["metadata"]["name"], workload["spec"]["leaderWorkerTemplate"]
    return {
        "LWS_GROUP_SIZE": str(group["size"]),
        "LWS_WORKER_INDEX": "0" if template is group["leaderTemplate"] else "1",
        "LWS_LEADER_ADDRESS": f"{name}-0.{name}.{namespace_of(workload)}",
    }


def _plain(variables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in variables.items() if isinstance(value, str))


def _volume_at(engine: Engine, place: str, *, writable: bool = False) -> Manifest:
    """The volume in which a path is; empty where it is in the image, or may not be written though it must."""
    path = PurePosixPath(place)
    mounts = [each for each in engine.container.get("volumeMounts", []) if path.is_relative_to(each["mountPath"])]
    if not place or not mounts:
        return {}
    closest = max(mounts, key=lambda each: len(each["mountPath"]))
    volume = next(each for each in engine.spec["volumes"] if each["name"] == closest["name"])
    may_be_written = not closest.get("readOnly") and ("emptyDir" in volume or "persistentVolumeClaim" in volume)
    return dict(volume) if may_be_written or not writable else {}
