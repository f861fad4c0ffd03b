"""Open WebUI asks the gateway where its API is, and calls itself what its route calls it."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.manifests.building import (
    EVERY_BUILD,
    KUSTOMIZE,
    Build,
    build,
    changeable,
    containers,
    environment,
    find,
    name_of,
    of_kind,
)

pytestmark = pytest.mark.program("kubectl")

SECRETS = {"OPENAI_API_KEY": "api-key", "WEBUI_SECRET_KEY": "secret-key", "WEBUI_ADMIN_PASSWORD": "admin-password"}
"""Entries of the Secret `open-webui`, by the variables that Open WebUI reads."""
PRODUCTION = KUSTOMIZE / "overlays" / "production"


def faults(built: Build) -> list[str]:
    """None where there is no Open WebUI."""
    found = []
    for each in of_kind(built, "Deployment"):
        if each["metadata"]["name"] != "open-webui":
            continue
        variables = environment(containers(each["spec"]["template"])[0])
        port = find(built, "Service", "poolgate")["spec"]["ports"][0]["port"]
        keys = {name: of["secretKeyRef"]["key"] for name, of in variables.items() if isinstance(of, dict)}
        found += [f"{name} is not its Secret's {key}" for name, key in SECRETS.items() if keys.get(name) != key]
        if (asked := variables["OPENAI_API_BASE_URL"]) != f"http://poolgate:{port}/v1":
            found.append(f"asks {asked}")
        hosts = {host for route in of_kind(built, "HTTPRoute") for host in _hosts(route)}
        own = {name: variables[name] for name in ("WEBUI_URL", "CORS_ALLOW_ORIGIN") if name in variables}
        if hosts and own.keys() != {"WEBUI_URL", "CORS_ALLOW_ORIGIN"}:
            found.append("does not know its own address: every page may speak to it")
        found += [f"{name} is no host of its route" for name, url in own.items() if urlsplit(url).hostname not in hosts]
    return found


def _hosts(route: dict[str, object]) -> list[str]:
    """Of a route that leads to it."""
    spec = route["spec"]
    assert isinstance(spec, dict)
    leads = any(ref["name"] == "open-webui" for rule in spec["rules"] for ref in rule["backendRefs"])
    return list(spec["hostnames"]) if leads else []


@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_open_webui_finds_the_gateway_and_is_found(folder: Path) -> None:
    assert faults(build(folder)) == []


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OPENAI_API_BASE_URL", "http://poolgate:8000", ["asks http://poolgate:8000"]),
        ("WEBUI_SECRET_KEY", None, ["WEBUI_SECRET_KEY is not its Secret's secret-key"]),
        ("WEBUI_URL", "https://webui.example.com", ["WEBUI_URL is no host of its route"]),
        ("CORS_ALLOW_ORIGIN", None, ["does not know its own address: every page may speak to it"]),
    ],
)
def test_a_wrong_address_is_seen(variable: str, value: str | None, words: list[str]) -> None:
    built = changeable(build(PRODUCTION))
    (container,) = containers(find(built, "Deployment", "open-webui")["spec"]["template"])
    container["env"] = [each for each in container["env"] if each["name"] != variable]
    container["env"] += [] if value is None else [{"name": variable, "value": value}]
    assert faults(tuple(built)) == words
