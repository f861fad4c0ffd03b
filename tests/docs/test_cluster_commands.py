"""What the pages ask a cluster for is what our overlays make there: names, namespaces, ports, entries of Secrets.

No cluster answers here, but a name that is not in any overlay would be answered by "not found" in every one.
"""

import re

import pytest
import yaml

from tests.docs.pages import ALL, ROOT, Block
from tests.manifests.building import KUSTOMIZE, OVERLAYS, Manifest, build, namespace_of

pytestmark = [pytest.mark.program("kubectl")]

NAMED = re.compile(r"-n (\S+) [^\n|&]*?\b(service|deployment|secret)(?:/| )(?!generic)([a-z][\w-]*)")
"""(namespace, kind, name)"""
PORT = re.compile(r"-n (\S+) port-forward service/([\w-]+) (\d+)(?::(\d+))?")
ENTRY = re.compile(r"get secret ([\w-]+) -o (?:jsonpath='\{\.data\.|go-template='\{\{index \.data \")([\w.\\-]+?)[\"}]")
SPEC = KUSTOMIZE / "components" / "first-secrets" / "secrets.yaml"
OF_THE_READER = ("docs/kubernetes.md",)
"""Whose namespace `models` is."""
ASKED = [
    pytest.param(block, id=block.name) for block in ALL if "kubectl" in block.script and block.page not in OF_THE_READER
]


def made() -> list[Manifest]:
    return [each for overlay in OVERLAYS for each in build(overlay)]


def secrets() -> dict[str, set[str]]:
    """The entries of each Secret that the first start makes."""
    told = yaml.safe_load(SPEC.read_text("utf-8"))
    found: dict[str, set[str]] = {"huggingface": {"token"}}
    for each in (*told["random"], *told["keys"], told["keys_file"]):
        found.setdefault(each["secret"], set()).add(each["entry"])
    return found


def test_there_is_something_to_ask() -> None:
    text = "".join(block.script for block in ALL)
    assert len(NAMED.findall(text)) > 10
    assert len(PORT.findall(text)) > 3
    assert {name for name, _ in ENTRY.findall(text)} >= {"poolgate-first-key", "grafana", "poolgate-keys"}


@pytest.mark.parametrize("block", ASKED)
def test_what_a_page_asks_for_is_made(block: Block) -> None:
    known = {(namespace_of(each), each["kind"].lower(), each["metadata"]["name"]) for each in made()}
    asked = {each for each in NAMED.findall(block.script) if each[1] != "secret"}
    assert asked <= known
    assert {name for _, kind, name in NAMED.findall(block.script) if kind == "secret"} <= set(secrets())


@pytest.mark.parametrize("block", ASKED)
def test_a_port_that_is_forwarded_is_the_services(block: Block) -> None:
    ports = {
        (namespace_of(each), each["metadata"]["name"], str(port["port"]))
        for each in made()
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    for namespace, name, here, there in PORT.findall(block.script):
        assert (namespace, name, there or here) in ports


@pytest.mark.parametrize("block", ASKED)
def test_an_entry_that_is_read_is_made(block: Block) -> None:
    for name, entry in ENTRY.findall(block.script):
        assert entry.replace("\\", "") in secrets()[name]


def test_every_overlay_stands_in_the_table_and_each_of_the_table_is_there() -> None:
    table = (ROOT / "deploy" / "README.md").read_text("utf-8").partition("| overlay |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == {overlay.name for overlay in OVERLAYS}
