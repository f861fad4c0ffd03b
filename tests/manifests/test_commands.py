"""What the containers of our image are told to run, they can: options, configuration, variables."""

import contextlib
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli.main import app
from loadtest.simulator.cli import parser
from tests.integration.test_process import run
from tests.manifests.building import (
    EVERY_BUILD,
    KUSTOMIZE,
    OVERLAYS,
    Build,
    Manifest,
    build,
    changeable,
    containers,
    environment,
    find,
    name_of,
    namespace_of,
    pods,
    sources_of,
    title,
)
from tests.manifests.checks.references import held, wanted_by
from tests.manifests.checks.stopping import configuration, gateways
from tests.manifests.kubelet import variables_of

OURS = "poolgate"
Ended = subprocess.CompletedProcess[str]
SECRET = "a-secret-of-32-characters-at-least"
"""Stands for every Secret's entry."""
KEYS = "keys: []\n"

each_build = pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)


def of_our_image(built: Build) -> Iterator[tuple[str, Manifest]]:
    """Whose container, and the container."""
    for each, template in pods(built):
        for container in containers(template):
            if container["image"].rpartition("/")[2].partition(":")[0] == OURS:
                yield f"{title(each)}: {container['name']}", container


def refused(container: Manifest) -> str:
    """What our programs have against its arguments; empty: nothing."""
    words = [str(word) for word in (*container.get("command", ["poolgate"]), *container.get("args", []))]
    match words:
        case ["poolgate", command, *arguments]:
            return _by_poolgate(command, arguments)
        case ["python", "-m", "loadtest.simulator", *arguments]:
            return _by_the_simulator(arguments)
        case _:
            return f"{words[:3]} is no program of ours"


def _by_poolgate(name: str, arguments: list[str]) -> str:
    group: Any = typer.main.get_command(app)  # typer keeps its copy of click to itself, types and errors
    with group.make_context("poolgate", [name, *arguments]) as context:
        command = group.get_command(context, name)
        if command is None:
            return f"there is no command {name}"
        try:
            command.make_context(name, list(arguments), parent=context).close()
        except Exception as error:
            return str(getattr(error, "format_message", error.__str__)())
    return ""


def _by_the_simulator(arguments: list[str]) -> str:
    # What `$(NAME)` stands for is not known here, and is a word.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser().parse_args(arguments)
    except SystemExit:
        return said.getvalue().strip().rpartition("\n")[2]
    return ""


@pytest.mark.program("kubectl")
@each_build
def test_our_programs_know_their_arguments(folder: Path) -> None:
    assert {whose: fault for whose, each in of_our_image(build(folder)) if (fault := refused(each))} == {}


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"args": ["serve", "--config", "a", "--prot", "80"]}, "No such option: --prot"),
        ({"args": ["serve", "--port", "http"]}, "Invalid value for '--port'"),
        ({"args": ["srve"]}, "no command srve"),
        ({"args": ["secrets", "--in-cluster"]}, "Missing argument"),
        ({"command": ["python", "-m", "loadtest.simulator"], "args": ["--modl=a"]}, "--modl=a"),
        ({"command": ["sh", "-c"], "args": ["poolgate serve"]}, "no program of ours"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_is_not_known_is_seen(container: Manifest, words: str) -> None:
    assert words in refused(container)


@pytest.mark.program("kubectl")
def test_a_simulated_pod_listens_where_its_port_says() -> None:
    """To all of the cluster: by itself it listens to its own machine alone."""
    found = [each for _, each in of_our_image(build(KUSTOMIZE / "components" / "pool-sim")) if "command" in each]
    assert len(found) == 2
    for each in found:
        parsed = parser().parse_args(each["args"])
        assert (parsed.host, {"http": parsed.port_base}) == (
            "0.0.0.0",
            {port["name"]: port["containerPort"] for port in each["ports"]},
        )


# The configuration, by real processes


def mount(built: Build, workload: Manifest, template: Manifest, container: Manifest, root: Path) -> None:
    """The files that a gateway finds, below a folder; where one names another, it is that one's place there."""
    there = held(built)
    for each in container["volumeMounts"]:
        (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == each["name"]]
        for want in wanted_by({"spec": {"volumes": [volume], "containers": []}}):
            place = (want.kind, namespace_of(workload), want.name)
            for key in there[place] if want.key is None else [want.key]:
                file = root / each["mountPath"].lstrip("/") / path_of(volume, want.name, key)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content_of(built, *place, key).replace("/etc/", f"{root}/etc/"), "utf-8")


def path_of(volume: Manifest, name: str, key: str) -> str:
    """How a volume calls an entry."""
    for source in sources_of(volume):
        (told,) = source.values()
        if told["name"] == name:
            return str({item["key"]: item["path"] for item in told.get("items", [])}.get(key, key))
    raise AssertionError(name)


def content_of(built: Build, kind: str, namespace: str, name: str, key: str) -> str:
    """An entry of a ConfigMap, or what stands for one of a Secret."""
    if kind == "Secret":
        return KEYS if key == "keys.yaml" else SECRET
    return str(find(built, kind, name, namespace)["data"][key])


SAID: dict[str, tuple[Ended, Ended]] = {}
"""By what a gateway is given: most builds give it the same."""


def said_of(built: Build, root: Path) -> tuple[Ended, Ended]:
    """What `check` says of the file alone, and `config show` of all that the container is given."""
    ((workload, template, container),) = gateways(built)
    given = json.dumps([configuration(built, workload, template), template["spec"]["volumes"], container])
    if given not in SAID:
        mount(built, workload, template, container, root)
        file = root / container["args"][container["args"].index("--config") + 1].lstrip("/")
        shown = run("config", "show", "--config", str(file), "--json", more=variables_of(container, lambda *_: SECRET))
        SAID[given] = (run("check", str(file), "--offline"), shown)
    return SAID[given]


@pytest.mark.program("kubectl")
@each_build
def test_the_gateway_takes_its_configuration(folder: Path, tmp_path: Path) -> None:
    """The file alone, and with the variables and the files that its container has: each without a word against it."""
    built = build(folder)
    checked, shown = said_of(built, tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert SECRET not in shown.stdout

    ((_, _, container),) = gateways(built)
    told = json.loads(shown.stdout)
    by_variable = {source for source in told["sources"].values() if source.startswith("POOLGATE_")}
    assert by_variable == {name for name in environment(container) if name.startswith("POOLGATE_")}
    assert Path(told["config"]["auth"]["keys_file"]).is_file()
    assert unknown_models(told["config"]) == set()
    server = told["config"]["server"]
    assert server["ops_host"] == "0.0.0.0"
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": server["port"],
        "ops": server["ops_port"],
    }


def unknown_models(settings: Manifest) -> set[str]:
    """What rules are for and no pool has, where pools name their models: such a rule limits nobody, without a word."""
    named = {model for pool in settings["pools"].values() for model in pool["models"]}
    rules = {rule["model"] for rule in settings["limits"]["rules"]}
    return {model for model in rules if "*" not in model} - named - settings["models"].keys() if named else set()


def test_a_rule_for_a_model_that_nobody_has_is_seen() -> None:
    pools = {"chat": {"models": ["qwen3-8b"]}}
    rules = [{"model": "*"}, {"model": "qwen3-8b"}, {"model": "best"}, {"model": "qwen3-80b"}]
    assert unknown_models({"pools": pools, "models": {"best": {}}, "limits": {"rules": rules}}) == {"qwen3-80b"}


@pytest.mark.program("kubectl")
def test_a_configuration_with_a_fault_is_seen(tmp_path: Path) -> None:
    built = changeable(build(OVERLAYS[0]))
    find(built, "ConfigMap", "poolgate-config")["data"]["gateway.yaml"] += "\nsevrer: {}\n"
    ((workload, template, container),) = gateways(tuple(built))
    mount(tuple(built), workload, template, container, tmp_path)
    checked = run("check", str(tmp_path / "etc" / "poolgate" / "gateway.yaml"), "--offline")
    assert checked.returncode == 2
    assert "sevrer" in checked.stderr


@pytest.mark.program("kubectl")
@each_build
def test_discovery_looks_where_the_pools_are(folder: Path) -> None:
    """In every namespace that has pods of a pool."""
    built = build(folder)
    pooled = {
        namespace_of(each) for each, template in pods(built) if "poolgate.dev/pool" in template["metadata"]["labels"]
    }
    ((workload, template, _),) = gateways(built)
    assert pooled <= set(configuration(built, workload, template)["discovery"]["namespaces"])
