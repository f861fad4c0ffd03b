"""What the docs name exists: targets, commands, flags, modules, files, links. Configurations in them are valid."""

import ast
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gateway.cli.main import app
from gateway.config.keys import load_keys
from gateway.config.reading import load_config
from gateway.config.secrets import load_secrets
from scripts.write_configuration_docs import PAGE, page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
MADE_WHEN_RUN = ("loadtest/results/",)
PARTS = {"components", "configMapGenerator", "images", "inhibit_rules", "labels", "patches", "replicas", "resources"}
"""What begins a part of a file that is not ours: a kustomization, Alertmanager's configuration."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
COMMAND = re.compile(r"(?:^|[|;&$])\s*(?:[A-Z_]+=\S+ )*(?:\S*/)?poolgate ([^|;&]*)")
"""Our command where a shell takes it for one, and not for a name: kubectl -n poolgate get pods."""
SHOWN_BELOW = re.compile(r"`([\w./-]+)`:\n\n```")
"""A file that is the reader's to make: the block below is what is in it."""
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FILE = re.compile(r"(?:gateway|loadtest|tests|scripts|docs|requirements|deploy)/[\w./-]*|(?:\w+/)*\w+\.py")

each_page = pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))


def code(file: Path) -> Iterator[str]:
    """Each line of a page's code blocks, and each code span."""
    text = file.read_text("utf-8")
    for _, block in FENCE.findall(text):
        yield from block.splitlines()
    yield from SPAN.findall(FENCE.sub("", text))


def blocks(file: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return [block for name, block in FENCE.findall(file.read_text("utf-8")) if name == language]


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", file.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def test_the_page_of_the_configuration_is_what_the_models_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "run .venv/bin/python scripts/write_configuration_docs.py"


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGES.md"} <= {file.name for file in PAGES}


@each_page
def test_every_make_target_that_is_named_exists(file: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    named = {name for line in code(file) for name in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert named <= targets


@each_page
def test_every_command_and_flag_that_is_named_exists(file: Path) -> None:
    for line in code(file):
        for called in COMMAND.findall(line.partition("#")[0]):
            words = called.split()
            command: Any = typer.main.get_command(app)
            while words and hasattr(command, "commands") and re.fullmatch(r"[a-z]+", words[0]):
                assert words[0] in command.commands, line
                command = command.commands[words.pop(0)]
            flags = {flag for option in command.params for flag in option.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= flags, line


@each_page
def test_every_module_that_is_named_exists(file: Path) -> None:
    for line in code(file):
        for name in re.findall(r"python -m ([\w.]+)", line):
            assert find_spec(name) is not None, name


@each_page
def test_every_file_that_is_named_exists(file: Path) -> None:
    text = file.read_text("utf-8")
    for name in {span.strip() for span in SPAN.findall(FENCE.sub("", text))} - set(SHOWN_BELOW.findall(text)):
        if FILE.fullmatch(name) and name not in MADE_WHEN_RUN:
            assert (ROOT / name).exists() or (ROOT / "gateway" / name).exists(), name


@each_page
def test_every_link_leads_somewhere(file: Path) -> None:
    for link in LINK.findall(FENCE.sub("", file.read_text("utf-8"))):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = Path(os.path.normpath(file.parent / path)) if path else file
            assert target.exists(), link
            assert target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_the_configurations_and_keys_files_that_are_shown_are_valid(file: Path, tmp_path: Path) -> None:
    for block in blocks(file, "yaml"):
        shown = tmp_path / "shown.yaml"
        shown.write_text(block, "utf-8")
        if block.startswith("keys:"):
            assert load_keys(shown)
        elif block.startswith("random:"):
            assert load_secrets(shown)
        elif block.startswith("apiVersion:"):
            # Whole objects: tests/docs/test_objects.py.
            for role in (each for each in yaml.safe_load_all(block) if each["kind"] == "Role"):
                # What discovery asks for is asserted in tests/integration/discovery.
                assert [rule["verbs"] for rule in role["rules"]] == [["list", "watch"]]
        elif "deploy/helm/" in str(file):
            assert yaml.safe_load(block)  # values: tests/manifests/test_helm.py has Helm take them
        elif not set(yaml.safe_load(block)) <= PARTS:
            discovery = load_config(shown, {}).discovery
            assert discovery.pods or discovery.mode == "kubernetes"


@each_page
def test_the_python_that_is_shown_compiles(file: Path) -> None:
    for block in blocks(file, "python"):
        compile(block, str(file), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
