"""Every overlay, and every component over the base, is what Kubernetes takes and holds to all that is checked."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import checks
from tests.manifests.building import (
    BASE,
    COMPONENTS,
    EVERY_BUILD,
    KUSTOMIZE,
    OVERLAYS,
    Build,
    Manifest,
    build,
    changeable,
    find,
    labels_of,
    name_of,
    namespace_of,
    of_kind,
    title,
    validator,
    without,
)
from tests.manifests.checks import images

pytestmark = [pytest.mark.program("kubectl")]

JUDGE = Path(__file__).parent / "schemas" / "judge.py"
VERSIONS = ("1.30", "1.33", "1.36", "1.37")
"""Of Kubernetes: the oldest that Poolgate is for, and what a cluster may run today."""

each_build = pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
each_overlay = pytest.mark.parametrize("folder", OVERLAYS, ids=name_of)
each_component = pytest.mark.parametrize("folder", COMPONENTS, ids=name_of)


def judged(objects: list[Manifest], versions: tuple[str, ...] = VERSIONS) -> list[list[str]]:
    """What the schemas have against each."""
    done = subprocess.run(
        [validator("python"), JUDGE],
        input=json.dumps({"versions": versions, "objects": objects}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [list(faults) for faults in json.loads(done.stdout)]


@cache
def all_judged() -> dict[str, list[str]]:
    """The faults of every object of every build that builds, by its JSON: most are in several."""
    distinct: dict[str, Manifest] = {}
    for folder in EVERY_BUILD:
        try:
            distinct |= {json.dumps(each): each for each in build(folder)}
        except AssertionError:
            continue  # its own tests say so
    return dict(zip(distinct, judged(list(distinct.values())), strict=True))


@each_build
def test_kubernetes_and_the_operators_take_every_object(folder: Path) -> None:
    faults = all_judged()
    assert [f"{title(each)}: {fault}" for each in build(folder) for fault in faults[json.dumps(each)]] == []


def findings(folder: Path, these: tuple[checks.Check, ...]) -> dict[str, list[str]]:
    """By the check that has some."""
    return {checks.named(check): found for check in these if (found := check(build(folder)))}


@each_build
def test_a_build_holds_to_every_check(folder: Path) -> None:
    assert findings(folder, checks.EVERY) == {}


@each_overlay
def test_an_overlay_is_whole(folder: Path) -> None:
    assert findings(folder, checks.WHOLE) == {}


@each_component
def test_a_component_changes_something(folder: Path) -> None:
    """A patch whose target has another name is left out without a word."""
    assert set(map(json.dumps, build(folder))) - set(map(json.dumps, without(folder)))


def test_an_image_is_of_one_version_in_all_builds() -> None:
    assert images.an_image_has_one_version(tuple(each for folder in EVERY_BUILD for each in build(folder))) == []


def misses(target: Manifest, built: Build) -> bool:
    """Whether nothing is what a patch is for. Kustomize takes the name as a whole pattern."""
    wanted = dict(part.split("=") for part in target.get("labelSelector", "").split(",") if part)
    assert target.keys() <= {"group", "version", "kind", "name", "namespace", "labelSelector"}, target
    return not any(
        target.get("kind", each["kind"]) == each["kind"]
        and target.get("group", group_of(each)) == group_of(each)
        and re.fullmatch(target.get("name", ".*"), each["metadata"]["name"])
        and target.get("namespace", namespace_of(each)) == namespace_of(each)
        and wanted.items() <= labels_of(each).items()
        for each in built
    )


def group_of(manifest: Manifest) -> str:
    return str(manifest["apiVersion"]).rpartition("/")[0]


@each_build
def test_no_patch_misses_its_target(folder: Path) -> None:
    """Kustomize leaves out a patch whose target is not there, without a word."""
    patches = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8")).get("patches", [])
    targets = [patch["target"] for patch in patches if "target" in patch]
    assert [target for target in targets if misses(target, build(folder))] == []


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "Deployment", "name": "poolgat"},
        {"kind": "StatefulSet", "name": "poolgate"},
        {"kind": "Deployment", "namespace": "vllm", "name": "poolgate"},
        {"group": "keda.sh"},
        {"labelSelector": "app.kubernetes.io/name=gateway"},
    ],
)
def test_a_target_that_is_not_there_is_missed(target: Manifest) -> None:
    assert misses(target, build(BASE))
    assert not misses({"kind": "Deployment", "namespace": "poolgate", "name": "pool.*"}, build(BASE))
    assert not misses({"group": "apps", "labelSelector": "app.kubernetes.io/name=poolgate"}, build(BASE))


def test_overlays_and_components_are_found() -> None:
    assert {name_of(each) for each in OVERLAYS} >= {"overlays/demo", "overlays/production"}
    assert {name_of(each) for each in COMPONENTS} >= {"components/redis", "components/pool-vllm-gpu"}


def stay(built: Build) -> list[str]:
    """The Jobs that do not end by themselves, and go."""
    ends = {"activeDeadlineSeconds", "ttlSecondsAfterFinished"}
    return [title(each) for each in of_kind(built, "Job") if not ends <= each["spec"].keys()]


@each_build
def test_a_job_makes_way_for_its_next_version(folder: Path) -> None:
    """Its template cannot change: `apply` of one with another image is refused as long as the old one is there."""
    assert stay(build(folder)) == []


@pytest.mark.parametrize("field", ["activeDeadlineSeconds", "ttlSecondsAfterFinished"])
def test_a_job_that_stays_is_seen(field: str) -> None:
    built = changeable(build(KUSTOMIZE / "components" / "first-secrets"))
    find(built, "Job", "first-secrets")["spec"].pop(field)
    assert stay(tuple(built)) == ["Job poolgate/first-secrets"]


def lasting(manifest: Manifest) -> Any:
    """What the API server lets nobody change in an object that is there; None where that is nothing."""
    match manifest["kind"], manifest.get("spec") or {}:
        case ("Deployment" | "StatefulSet" | "DaemonSet", spec):
            return spec["selector"]
        case ("PersistentVolumeClaim", spec):
            return {key: value for key, value in spec.items() if key != "resources"}
        case ("RoleBinding", _):
            return manifest["roleRef"]
        case ("Service", spec):
            return spec.get("clusterIP")
    return None


MADE_ANEW = {"Deployment vllm/vllm-chat", "PersistentVolumeClaim vllm/model-cache"}
"""The simulator's pods are none of vLLM's; AKS names a class of storage. deploy/kustomize/README.md says what to do."""


def test_an_overlay_can_be_applied_over_another_but_for_what_the_page_names() -> None:
    forms: dict[str, set[str]] = {}
    for each in (each for folder in OVERLAYS for each in build(folder)):
        forms.setdefault(title(each), set()).add(json.dumps(lasting(each), sort_keys=True))
    assert {name for name, those in forms.items() if len(those) > 1} == MADE_ANEW


@pytest.mark.program("own kubectl")
@each_overlay
def test_the_machines_own_kubectl_builds_the_same(folder: Path) -> None:
    """Whoever applies an overlay has some kubectl, with a kustomize as old as it is."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert tuple(yaml.safe_load_all(done.stdout)) == build(folder)


# The judge itself


def test_the_sample_of_the_checks_is_what_kubernetes_takes() -> None:
    sample = list(yaml.safe_load_all((Path(__file__).parent / "sample.yaml").read_text("utf-8")))
    assert [fault for faults in judged(sample) for fault in faults] == []


def broken(manifest: dict[str, Any]) -> list[str]:
    return judged([manifest], ("1.37",))[0]


def test_a_slip_of_the_pen_is_a_fault() -> None:
    assert broken({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"porst": []}})


def test_a_kind_without_a_schema_is_a_fault() -> None:
    (fault,) = broken({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": {}})
    assert "Couldn't find schema for kind Gadget" in fault


MONITOR = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "ServiceMonitor",
    "metadata": {"name": "a"},
    "spec": {"selector": {"matchLabels": {"a": "b"}}, "endpoints": [{"port": "ops", "interval": "15s"}]},
}
SCALED = {
    "apiVersion": "keda.sh/v1alpha1",
    "kind": "ScaledObject",
    "metadata": {"name": "a"},
    "spec": {
        "scaleTargetRef": {"name": "a"},
        "triggers": [
            {
                "type": "prometheus",
                "metadata": {"serverAddress": "http://prometheus:9090", "query": "up", "threshold": "5"},
            }
        ],
    },
}
GROUP = {
    "apiVersion": "leaderworkerset.x-k8s.io/v1",
    "kind": "LeaderWorkerSet",
    "metadata": {"name": "a"},
    "spec": {"leaderWorkerTemplate": {"workerTemplate": {"spec": {"containers": [{"name": "a"}]}}}},
}
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "a"},
    "spec": {
        "parentRefs": [{"name": "a"}],
        "rules": [{"backendRefs": [{"name": "a", "port": 80}], "timeouts": {"request": "0s"}}],
    },
}


SLIPS: list[tuple[dict[str, Any], tuple[str | int, ...], object, str]] = [
    (MONITOR, ("spec", "endpoints", 0, "prot"), "ops", "'prot' was unexpected"),
    (MONITOR, ("spec", "endpoints", 0, "interval"), "15 s", "does not match"),
    (MONITOR, ("spec", "selector", "matchLables"), {}, "'matchLables' was unexpected"),
    (SCALED, ("spec", "triggers", 0, "metadata", "threshold"), 5, "5 is not of type 'string'"),
    (SCALED, ("spec", "triggers", 0, "metadata", "metricName"), "a", "'metricName' was unexpected"),
    (SCALED, ("spec", "triggers", 0, "type"), "promteheus", "is not one of"),
    (GROUP, ("spec", "leaderWorkerTemplate", "workerTemplate", "spec", "container"), [], "'container' was unexpe"),
    (GROUP, ("spec", "startupPolicy"), "LeaderFirst", "is not one of"),
    (ROUTE, ("spec", "rules", 0, "timeouts", "request"), "1.5h", "does not match"),
    (ROUTE, ("spec", "rules", 0, "backendRefs", 0, "port"), "http", "is not of type 'integer'"),
]
"""What is taken, where it is changed to what, and words of the fault."""


def slipped(good: dict[str, Any], place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    bad: dict[str, Any] = json.loads(json.dumps(good))
    inner: Any = bad
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return bad


@cache
def slips_judged() -> list[list[str]]:
    """Of one run over all: of each, without the slip and with it."""
    pairs = [each for good, place, value, _ in SLIPS for each in (good, slipped(good, place, value))]
    return judged(pairs, ("1.37",))


@pytest.mark.parametrize("number", range(len(SLIPS)), ids=[".".join(map(str, place)) for _, place, _, _ in SLIPS])
def test_a_custom_resource_is_held_to_its_schema(number: int) -> None:
    taken, refused = slips_judged()[2 * number : 2 * number + 2]
    assert taken == []
    assert SLIPS[number][3] in "; ".join(refused)
