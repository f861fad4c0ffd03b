"""The Helm chart says what the kustomization says, refuses what it does not know, and is written from it."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import __version__
from scripts.chart.places import Misplaced, Place, Template, template
from scripts.write_chart import CHART, SCHEMA, written
from tests.docs.pages import blocks
from tests.manifests import checks
from tests.manifests.building import (
    BASE,
    COMPONENTS,
    KUSTOMIZE,
    ROOT,
    Build,
    build,
    containers,
    find,
    needed_by,
    of_kind,
    pods,
    templates,
    without,
)
from tests.manifests.chart import Helm, as_the_same, values_of

OVERLAYS = {"demo": "demo", "gpu": "gpu-single", "production": "production"}
"""Which values stand for which overlay."""
each_values = pytest.mark.parametrize("name", OVERLAYS)

BY_HAND = {
    "NOTES.txt",
    "alerts/rule.yaml",
    "first-secrets/config.yaml",
    "gateway/config.yaml",
    "grafana/config.yaml",
    "grafana/dashboards.yaml",
    "otel/config.yaml",
    "prometheus/config.yaml",
}
"""Templates that come of no manifest."""

CHAT: dict[str, Any] = yaml.safe_load(values_of("gpu").read_text("utf-8"))["pools"][0]
LARGE: dict[str, Any] = yaml.safe_load(values_of("production").read_text("utf-8"))["pools"][1]
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "Qwen/Qwen3-0.6B",
    "servedName": "qwen3-0.6b",
    "gpus": 0,
    "maxInFlight": 16,
    "args": [
        "--dtype=bfloat16",
        "--max-model-len=4096",
        "--kv-cache-memory-bytes=1G",
        "--max-num-seqs=8",
        "--enforce-eager",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
    ],
    "resources": {"requests": {"cpu": "4", "memory": "6Gi"}, "limits": {"memory": "8Gi"}},
    "modelSpace": "10Gi",
    "sharedMemory": "1Gi",
}
SIMULATORS = [
    {"name": "chat", "model": "qwen3-8b", "replicas": 3},
    {"name": "small", "model": "qwen3-0.6b", "replicas": 3},
]
ON = {"enabled": True}
NOTHING: dict[str, Any] = {"redis": {"enabled": False}, "firstSecrets": {"enabled": False}}
"""The values for the base alone."""


def chat_with(component: str) -> dict[str, Any]:
    """The pool, with the options that a component adds to it."""
    kustomization = yaml.safe_load((KUSTOMIZE / "components" / component / "kustomization.yaml").read_text("utf-8"))
    added = [step["value"] for patch in kustomization["patches"] for step in yaml.safe_load(patch["patch"])]
    return {"pools": [CHAT | {"args": [*CHAT["args"], *added]}]}


BY_COMPONENT: dict[str, dict[str, Any]] = {
    "alerts": {"prometheusOperator": {"alerts": True}},
    "dashboards": {"dashboards": ON},
    "first-secrets": {"firstSecrets": ON},
    "grafana": {"simulators": SIMULATORS, "prometheus": ON, "grafana": ON},
    "httproute": {"route": ON},
    "ingress": {"ingress": ON},
    "keda": {"pools": [CHAT | {"scale": {"min": 1, "max": 8}}]},
    "lora": chat_with("lora"),
    "model-cache": {"pools": [CHAT], "modelCache": ON},
    "open-webui": {"openWebui": ON},
    "otel": {"otel": ON},
    "pool-sim": {"simulators": SIMULATORS},
    "pool-vllm-cpu": {"pools": [SMALL]},
    "pool-vllm-gpu": {"pools": [CHAT]},
    "pool-vllm-multi-gpu": {"pools": [LARGE]},
    "prometheus": {"simulators": SIMULATORS, "prometheus": ON},
    "quantized-kv-cache": chat_with("quantized-kv-cache"),
    "redis": {"redis": ON},
    "servicemonitor": {"simulators": SIMULATORS, "prometheusOperator": {"monitors": True}},
    "speculative-decoding": chat_with("speculative-decoding"),
}
"""The values that bring what a component brings."""
NOT_IN_THE_CHART = {"aks", "pool-vllm-multi-node"}


def foreign(component: Path) -> set[str]:
    """The objects of what a component goes with and the chart has not."""
    lacking = [needed for needed in needed_by(component) if needed.name in NOT_IN_THE_CHART]
    return {which for each in lacking for which in as_the_same(build(each)).keys() - as_the_same(without(each)).keys()}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


def release(helm: Helm, name: str) -> Build:
    return helm.template(None, "--values", values_of(name))


# Equal


@pytest.mark.parametrize("name", OVERLAYS, ids=OVERLAYS.get)
@pytest.mark.program("helm")
@pytest.mark.program("kubectl")
def test_a_release_is_what_its_overlay_builds(helm: Helm, name: str) -> None:
    ours, theirs = as_the_same(release(helm, name)), as_the_same(build(KUSTOMIZE / "overlays" / OVERLAYS[name]))
    assert sorted(ours) == sorted(theirs)
    for which, manifest in theirs.items():
        assert ours[which] == manifest


@pytest.mark.parametrize("component", BY_COMPONENT)
@pytest.mark.program("helm")
@pytest.mark.program("kubectl")
def test_what_a_component_brings_comes_of_values_too(helm: Helm, component: str) -> None:
    ours = as_the_same(helm.template(NOTHING | BY_COMPONENT[component]))
    theirs = as_the_same(build(KUSTOMIZE / "components" / component))
    for each in foreign(KUSTOMIZE / "components" / component):
        del theirs[each]
    assert sorted(ours) == sorted(theirs)
    for which, manifest in theirs.items():
        assert ours[which] == manifest


@pytest.mark.program("helm")
@pytest.mark.program("kubectl")
def test_without_anything_beside_it_a_release_is_the_base(helm: Helm) -> None:
    assert as_the_same(helm.template(NOTHING)) == as_the_same(build(BASE))


def test_no_component_is_forgotten() -> None:
    assert BY_COMPONENT.keys() | NOT_IN_THE_CHART == {folder.name for folder in COMPONENTS}
    assert not BY_COMPONENT.keys() & NOT_IN_THE_CHART


# Written


def test_the_templates_are_what_the_manifests_say() -> None:
    stale = [str(path.relative_to(CHART)) for path, text in written().items() if path.read_text("utf-8") != text]
    assert stale == [], "run: python -m scripts.write_chart"


def test_every_template_is_written_or_known_to_be_by_hand() -> None:
    there = {path.relative_to(CHART) for part in ("templates", "files") for path in (CHART / part).rglob("*.*")}
    ours = {path.relative_to(CHART) for path in written()} - {SCHEMA.relative_to(CHART)}
    assert there == ours | {Path("templates") / name for name in BY_HAND}


@pytest.mark.parametrize(("old", "times"), [("replicas: 3", 1), ("replicas: 2", 2)])
def test_a_place_that_is_no_more_there_is_an_error(old: str, times: int) -> None:
    with pytest.raises(Misplaced, match=r"some\.yaml: \d times instead of"):
        template(Template("some.yaml", "some.yaml", (Place(old, "", times),)), "replicas: 2\n")


def test_braces_of_others_come_through() -> None:
    assert template(Template("some.yaml", "some.yaml"), "value: '{{TASK}}'\n").endswith("value: '{{ \"{{\" }}TASK}}'\n")


def test_the_charts_version_is_the_gateways() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


# Sound


@pytest.mark.parametrize("name", [None, *OVERLAYS])
@pytest.mark.program("helm")
def test_helm_finds_no_fault(helm: Helm, name: str | None) -> None:
    done = helm.run("lint", "--strict", CHART, *(("--values", values_of(name)) if name else ()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.program("helm")
def test_a_release_without_values_holds_to_every_check(helm: Helm) -> None:
    built = helm.template()
    assert {checks.named(check): found for check in checks.EVERY if (found := check(built))} == {}


@each_values
@pytest.mark.program("helm")
def test_a_release_in_other_namespaces_names_no_other(helm: Helm, name: str) -> None:
    """Not those of the kustomization, from which the templates come."""
    built = helm.template({"vllmNamespace": "models"}, "--values", values_of(name), namespace="llm")
    assert set(namespaces(built)) - {"kube-system", "monitoring", "gateways"} == {"llm", "models"}
    # What it knows of Secrets it knows by their namespace.
    these = [check for check in checks.EVERY if checks.named(check) != "references.config_maps_and_secrets_are_there"]
    assert {checks.named(check): found for check in these if (found := check(built))} == {}


def namespaces(node: Any) -> Iterator[str]:
    """Each that is named anywhere, the files in ConfigMaps included."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("namespace", "namespaces", "kubernetes.io/metadata.name", "names", "matchNames"):
                yield from [value] if isinstance(value, str) else value if isinstance(value, list) else []
            elif key in ("gateway.yaml", "prometheus.yaml", "secrets.yaml"):
                yield from namespaces(yaml.safe_load(value))
        yield from (found for value in node.values() for found in namespaces(value))
    elif isinstance(node, list | tuple):
        yield from (found for each in node for found in namespaces(each))


@pytest.mark.program("helm")
def test_every_pod_takes_its_image_and_pull_secrets_from_the_values(helm: Helm) -> None:
    names = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["images"]
    built = helm.template(
        {
            "images": {key: f"registry.example/{key.lower()}:1" for key in names},
            "imagePullSecrets": [{"name": "registry"}],
            "pools": [CHAT, SMALL],
            "simulators": [SIMULATORS[0] | {"name": "simulated"}],
            **dict.fromkeys(("modelCache", "prometheus", "grafana", "openWebui", "otel"), ON),
        }
    )
    used = {each["image"] for _, template in pods(built) for each in containers(template)}
    assert used == {f"registry.example/{key.lower()}:1" for key in names}
    assert all(template["spec"]["imagePullSecrets"] == [{"name": "registry"}] for _, template in pods(built))


@pytest.mark.program("helm")
def test_a_pods_grace_goes_by_how_long_it_may_drain(helm: Helm) -> None:
    built = helm.template({"gateway": {"config": {"server": {"drain_seconds": 1199.5}}}})
    (pod,) = templates(find(built, "Deployment", "poolgate"))
    assert pod["spec"]["terminationGracePeriodSeconds"] == 1220


@pytest.mark.program("helm")
def test_the_configuration_is_passed_on_whole(helm: Helm) -> None:
    given = {"pools": {"chat": {"policy": "least_loaded"}}, "discovery": {"namespaces": ["vllm", "others"]}}
    built = helm.template({"gateway": {"config": given}})
    config = yaml.safe_load(find(built, "ConfigMap", "poolgate-config")["data"]["gateway.yaml"])
    assert config["pools"] == given["pools"]
    assert config["discovery"] == {"mode": "kubernetes", "namespaces": ["vllm", "others"]}
    assert config["server"]["ops_host"] == "0.0.0.0"


@pytest.mark.program("helm")
def test_a_secret_of_ones_own_comes_as_a_variable(helm: Helm) -> None:
    built = helm.template(
        {
            "redis": {"enabled": False},
            "gateway": {
                "config": {"limits": {"redis_url": "rediss://poolgate:${REDIS_PASSWORD}@redis.example.com:6380/0"}},
                "environment": [{"name": "REDIS_PASSWORD", "secret": "my-redis", "key": "password"}],
            },
        }
    )
    (pod,) = templates(find(built, "Deployment", "poolgate"))
    assert pod["spec"]["containers"][0]["env"] == [
        {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "my-redis", "key": "password"}}}
    ]


@pytest.mark.program("helm")
def test_a_certificate_stands_where_the_gateway_follows_it(helm: Helm) -> None:
    files = {"cert": "/etc/poolgate/tls/tls.crt", "key": "/etc/poolgate/tls/tls.key"}
    built = helm.template({"gateway": {"certificate": "poolgate-tls", "config": {"server": {"tls": files}}}})
    (pod,) = templates(find(built, "Deployment", "poolgate"))
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert "subPath" not in mount
    (volume,) = pod["spec"]["volumes"]
    (ours,) = [each for each in volume["projected"]["sources"] if each.get("secret", {}).get("name") == "poolgate-tls"]
    stands = {f"{mount['mountPath']}/{each['path']}" for each in ours["secret"]["items"]}
    config = yaml.safe_load(find(built, "ConfigMap", "poolgate-config")["data"]["gateway.yaml"])
    assert set(config["server"]["tls"].values()) == stands


@pytest.mark.program("helm")
def test_a_job_is_one_revisions_and_does_not_go_by_itself(helm: Helm) -> None:
    """The next revision could not change its template, and Helm waits for what has gone."""
    jobs = of_kind(release(helm, "gpu"), "Job")
    assert sorted(each["metadata"]["name"] for each in jobs) == ["first-secrets-1", "model-loader-1"]
    assert not any("ttlSecondsAfterFinished" in each["spec"] for each in jobs)
    assert not any("helm.sh/hook" in each["metadata"].get("annotations", {}) for each in jobs)


@pytest.mark.program("helm")
def test_uninstalling_leaves_namespaces_and_volumes(helm: Helm) -> None:
    for each in release(helm, "gpu"):
        keeps = each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
        assert keeps == (each["kind"] in ("Namespace", "PersistentVolumeClaim")), each["metadata"]["name"]


@pytest.mark.program("helm")
def test_the_releases_own_namespace_is_made_when_it_is_asked_for(helm: Helm) -> None:
    """Helm must have it before it begins, and then could not make it."""
    done = helm.run("template", "poolgate", CHART, "--namespace", "poolgate")
    made = of_kind((each for each in yaml.safe_load_all(done.stdout) if each), "Namespace")
    assert [each["metadata"]["name"] for each in made] == ["vllm"]


@pytest.mark.program("helm")
def test_a_pool_may_be_at_rest(helm: Helm) -> None:
    built = helm.template({"pools": [CHAT | {"replicas": 0}, LARGE]})
    assert [find(built, "Deployment", f"vllm-{name}")["spec"]["replicas"] for name in ("chat", "large")] == [0, 1]


# Refused


def pool(**changed: Any) -> dict[str, Any]:
    return {"pools": [CHAT | changed]}


def configured(**sections: Any) -> dict[str, Any]:
    return {"gateway": {"config": sections}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
        ({"redis": {"enable": False}}, "/redis': additional properties 'enable'"),
        ({"redis": {"enabled": "no"}}, "/redis/enabled'"),
        ({"images": {"poolgate": "poolgate"}}, "/images/poolgate'"),
        ({"images": {"poolgate": "poolgate:latest"}}, "/images/poolgate'"),
        ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0'"),
        ({"gateway": {"resources": {"limits": {"memory": None}}}}, "/gateway/resources/limits'"),
        ({"gateway": {"replicas": {"min": 0}}}, "/gateway/replicas/min'"),
        (configured(sever={}), "/gateway/config': additional properties 'sever'"),
        (configured(server={"prot": 8000}), "/gateway/config/server': additional properties 'prot'"),
        (configured(pools={"chat": {"stream_second": 600}}), "/gateway/config/pools/chat': additional properties"),
        (configured(limits={"rules": [{"pre": "tenant"}]}), "/gateway/config/limits/rules/0': additional properties"),
        (configured(auth={"jwt": {"isuer": "x"}}), "/gateway/config/auth/jwt': additional properties 'isuer'"),
        (configured(upstream={"api_key": "a-secret"}), "/gateway/config/upstream/api_key'"),
        (configured(server={"ops_token": "a-secret"}), "/gateway/config/server/ops_token'"),
        (configured(limits={"redis_url": "redis://:a-secret@redis:6379"}), "/gateway/config/limits/redis_url'"),
        (configured(server={"drain_seconds": None}), "/gateway/config/server': missing property 'drain_seconds'"),
        ({"pools": [{"name": "chat"}]}, "/pools/0': missing properties"),
        (pool(name="Chat"), "/pools/0/name'"),
        (pool(image="vllm"), "/pools/0': additional properties 'image'"),
        (pool(args=["--max-model-len", "4096"]), "/pools/0/args/1'"),
        (pool(args=["--api-key=a-secret"]), "/pools/0/args/0'"),
        (pool(replicas=2, scale={"min": 1, "max": 2}), "/pools/0'"),
        (pool(modelSpace="much"), "/pools/0/modelSpace'"),
        ({"simulators": [{"name": "chat", "model": "m"}]}, "/simulators/0': missing property 'replicas'"),
        ({"route": {"hosts": []}}, "/route/hosts'"),
        ({"vllmNamespace": "poolgate"}, "the pools need another namespace"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.program("helm")
def test_a_wrong_value_is_refused_and_named(helm: Helm, values: Mapping[str, Any], says: str) -> None:
    done = helm.run("template", "poolgate", CHART, "--namespace", "poolgate", values=dict(values))
    assert done.returncode != 0
    assert says in done.stderr


# Told


def notes(helm: Helm, *arguments: str | Path) -> str:
    done = helm.run("install", "poolgate", CHART, "--namespace", "llm", "--dry-run=client", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


@pytest.mark.program("helm")
def test_the_notes_tell_how_to_read_the_first_key_and_reach_the_gateway(helm: Helm) -> None:
    told = notes(helm, "--values", values_of("demo"))
    spec = yaml.safe_load(find(release(helm, "demo"), "ConfigMap", "first-secrets")["data"]["secrets.yaml"])
    first = spec["keys"][0]
    assert f"--namespace llm get secret {first['secret']} --output jsonpath='{{.data.{first['entry']}}}'" in told
    assert "--namespace llm port-forward service/poolgate 8000" in told
    assert "service/open-webui 8080" in told
    assert "service/grafana 3000" in told


@pytest.mark.program("helm")
def test_the_notes_name_what_nobody_makes(helm: Helm) -> None:
    told = notes(helm, "--values", values_of("production"))
    assert "poolgate-first-key" not in told
    for secret in ("poolgate-keys", "vllm-api-key", "redis", "open-webui"):
        assert f"{secret} (" in told
    assert "grafana (" not in told
    assert "there is no pool" not in told
    assert "there is no pool" in notes(helm)


# Its page

PAGE = "deploy/helm/README.md"
OPTION = re.compile(r"(?<=\s)--[\w-]+")


def typed(helm: Helm, script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": os.pathsep.join((str(helm.program.parent), os.environ["PATH"]))}
    command = ["sh", "-e", "-c", script]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.program("helm")
def test_the_commands_of_the_page_that_want_no_cluster_run(helm: Helm) -> None:
    ours = [block for block in blocks(PAGE) if block.wants == ("Helm",)]
    assert len(ours) == 1
    for block in ours:
        done = typed(helm, block.script)
        assert done.returncode == 0, done.stderr


@pytest.mark.program("helm")
def test_the_options_on_the_page_are_helms(helm: Helm) -> None:
    lines = [
        line
        for block in blocks(PAGE)
        if block.wants
        for line in block.script.replace("\\\n", " ").splitlines()
        if line.startswith("helm ")
    ]
    assert len(lines) > 4
    for line in lines:
        assert set(OPTION.findall(line)) <= set(OPTION.findall(helm.run(line.split()[1], "--help").stdout)), line


@pytest.mark.program("helm")
def test_the_values_on_the_page_are_taken(helm: Helm) -> None:
    (shown,) = [block for block in blocks(PAGE) if block.language == "yaml"]
    values = yaml.safe_load(shown.text)
    (pod,) = templates(find(helm.template(values), "Deployment", "vllm-chat"))
    assert "--max-model-len=16384" in pod["spec"]["containers"][0]["args"]
