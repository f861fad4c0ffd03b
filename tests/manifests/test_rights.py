"""Each ServiceAccount may do what its program asks the API server for, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.secrets_plan import plan_of
from gateway.config.secrets import load_secrets
from tests.apiserver.server import ADMIN_TOKEN, ApiServer
from tests.manifests.building import EVERY_BUILD, Build, build, changeable, find, name_of, namespace_of, of_kind, pods
from tests.manifests.checks.references import BROUGHT, wanted_by
from tests.manifests.checks.rights import Right, granted
from tests.manifests.checks.stopping import configuration, gateways
from tests.running import running

pytestmark = pytest.mark.program("kubectl")


ASKED: dict[str, set[Right]] = {}
"""What is asked for with which settings: most builds have the same."""


async def asked_by_discovery(settings: dict[str, Any], home: str, folder: Path) -> set[Right]:
    """What a gateway with these settings, which lives in this namespace, asks for until it watches everything.

    It may do all there is, so whatever it would ask for if it could is asked for.
    """
    wanted = yaml.safe_dump({"discovery": settings["discovery"], "pools": settings.get("pools", {})})
    key = f"{home} {wanted}"
    if key not in ASKED:
        ASKED[key] = await _asked(wanted, {*settings["discovery"]["namespaces"], home}, home, folder)
    return ASKED[key]


async def _asked(settings: str, namespaces: set[str], home: str, folder: Path) -> set[Right]:
    (file := folder / "gateway.yaml").write_text(settings, "utf-8")
    async with ApiServer() as server:
        (kubeconfig := folder / "kubeconfig").write_text(server.kubeconfig(ADMIN_TOKEN, namespace=home), "utf-8")
        async with running([], file=file, environment={"KUBECONFIG": str(kubeconfig)}, wait=False):
            await server.until(lambda: {watch.asked.namespace for watch in server.watches} == namespaces)
        return {Right(verb, resource, namespace) for verb, resource, namespace in server.verbs()}


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
async def test_the_gateway_may_do_what_discovery_does(folder: Path, tmp_path: Path) -> None:
    built = build(folder)
    ((workload, template, _),) = gateways(built)
    home = namespace_of(workload)
    asked = await asked_by_discovery(configuration(built, workload, template), home, tmp_path)
    assert asked
    assert granted(built, home, template["spec"]["serviceAccountName"]) == asked


def made_by_first_secrets(built: Build, folder: Path) -> dict[tuple[str, str], frozenset[str]]:
    """Namespace and name of each Secret that the Job makes, and its entries."""
    text = find(built, "ConfigMap", "first-secrets")["data"]["secrets.yaml"]
    (file := folder / "secrets.yaml").write_text(text, "utf-8")
    places = plan_of(load_secrets(file), namespaced=True).places
    return {(place.namespace, place.secret): frozenset(entries) for place, entries in places.items()}


def has(built: Build, name: str) -> bool:
    return any(each["metadata"]["name"] == name for each in built)


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_first_secrets_may_read_what_it_makes_and_make(folder: Path, tmp_path: Path) -> None:
    """`create` cannot be bound to names. Nothing can be changed, and nobody else has any right on Secrets."""
    built = build(folder)
    expected = set()
    if has(built, "first-secrets"):
        made = made_by_first_secrets(built, tmp_path)
        expected = {Right("get", "secrets", *place) for place in made}
        expected |= {Right("create", "secrets", namespace) for namespace, _ in made}
    assert granted(built, "poolgate", "first-secrets") == expected


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_first_secrets_makes_all_that_a_pod_cannot_start_without(folder: Path, tmp_path: Path) -> None:
    built = build(folder)
    if not has(built, "first-secrets"):
        return
    made = made_by_first_secrets(built, tmp_path)
    missing = {
        f"{want.name}/{want.key} in {namespace_of(each)}"
        for each, template in pods(built)
        for want in wanted_by(template)
        if want.kind == "Secret" and not want.optional
        if want.key not in made.get((namespace_of(each), want.name), frozenset()) | {None}
    }
    assert missing == set()
    assert {place: entries - BROUGHT[place] for place, entries in made.items()} == dict.fromkeys(made, frozenset())


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_prometheus_may_do_what_its_discovery_does(folder: Path) -> None:
    """Prometheus asks for leave to get, list and watch what a `role` finds, in the namespaces it is told."""
    built = build(folder)
    scraped = {
        Right(verb, "pods", namespace)
        for each in of_kind(built, "ConfigMap")
        for name, text in (each.get("data") or {}).items()
        if name == "prometheus.yaml"
        for job in yaml.safe_load(text)["scrape_configs"]
        for way in job.get("kubernetes_sd_configs", [])
        for namespace in way["namespaces"]["names"]
        for verb in ("get", "list", "watch")
    }
    assert granted(built, "poolgate", "prometheus") == scraped


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_nobody_else_has_rights(folder: Path) -> None:
    subjects = {subject["name"] for each in of_kind(build(folder), "RoleBinding") for subject in each["subjects"]}
    assert subjects <= {"poolgate", "first-secrets", "prometheus"}


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_nobody_is_administrator_of_open_webui_for_coming_first(folder: Path) -> None:
    """Who is may run code in its pod. So there is one from the start, or no Open WebUI."""
    built = build(folder)
    wants = {
        (want.name, want.key, want.optional)
        for each, template in pods(built)
        if each["metadata"]["name"] == "open-webui"
        for want in wanted_by(template)
    }
    assert not wants or ("open-webui", "admin-password", False) in wants


@pytest.mark.parametrize("verbs", [["list"], ["get", "list", "watch"], ["list", "watch", "patch"]])
async def test_a_right_too_few_or_too_many_is_seen(verbs: list[str], tmp_path: Path) -> None:
    built = changeable(build(EVERY_BUILD[0]))
    ((workload, template, _),) = gateways(tuple(built))
    find(built, "Role", "poolgate", "vllm")["rules"][0]["verbs"] = verbs
    asked = await asked_by_discovery(configuration(tuple(built), workload, template), "poolgate", tmp_path)
    assert granted(tuple(built), "poolgate", "poolgate") != asked
