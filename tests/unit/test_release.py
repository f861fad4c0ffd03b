"""What holds of every release whatever is in it: what it is made of, that it is built alike, what no line may do."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from scripts.write_sbom import LOCK, bill, licence_of, locked
from tests.scenes.scene import scenes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = locked(LOCK.read_text("utf-8"))
LICENCES = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"}
"""All of them let the image be passed on with ours; MPL asks that changes of its own files be published."""
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "execfile", "runpy", "code"}
LOADS_OBJECTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
SHELLS = {"system", "popen", "spawnl", "spawnv", "getoutput", "getstatusoutput"}
SOURCES = sorted((ROOT / "gateway").rglob("*.py"))


def test_every_package_that_the_image_installs_has_a_licence_that_lets_it_be_passed_on() -> None:
    for package in PACKAGES:
        words = set(re.findall(r"[\w.-]+", licence_of(package.name))) - {"AND", "OR", "WITH"}
        assert words, package.name
        assert words <= LICENCES, f"{package.name}: {words - LICENCES}"


def test_the_bill_names_what_is_installed_with_its_hashes_and_is_the_same_each_time() -> None:
    made = bill(PACKAGES)
    assert {each["name"]: each["version"] for each in made["components"]} == {
        package.name: distribution(package.name).version for package in PACKAGES
    }
    assert all(each["properties"] for each in made["components"])
    assert len(made["components"]) > 50
    said = [
        subprocess.run([sys.executable, "-m", "scripts.write_sbom"], cwd=ROOT, capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert json.loads(said[0]) == made


def test_two_builds_of_the_wheel_are_equal_byte_for_byte(tmp_path: Path) -> None:
    def built(where: Path) -> dict[str, str]:
        where.mkdir()
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(where)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1577836800"},
        )
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in where.iterdir()}

    first = built(tmp_path / "first")
    assert len(first) == 1
    assert built(tmp_path / "second") == first


def calls(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Each call: its line, what it is a member of (empty for a plain name), and its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, "", node.func.id
            elif isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else "?"
                yield node.lineno, of, node.func.attr


def dangers(text: str) -> list[str]:
    """What in a source runs text, revives objects, starts a shell or reads YAML that can do so."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno} {each.name}" for each in node.names if each.name in LOADS_OBJECTS | RUNS_TEXT]
        elif isinstance(node, ast.ImportFrom) and node.module in LOADS_OBJECTS | RUNS_TEXT:
            found.append(f"{node.lineno} {node.module}")
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.append(f"{node.value.lineno} shell=")
    for line, of, name in calls(tree):
        if (of == "" and name in RUNS_TEXT) or (of == "os" and name in SHELLS) or (of, name) == ("yaml", "load"):
            found.append(f"{line} {of}.{name}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_line_runs_text_or_revives_objects(file: Path) -> None:
    assert dangers(file.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(told)",
        "exec(told)",
        "compile(told, '', 'exec')",
        "__import__(told)",
        "import pickle",
        "from marshal import loads",
        "import os\nos.system(told)",
        "import subprocess\nsubprocess.run(told, shell=True)",
        "import yaml\nyaml.load(told, Loader=yaml.Loader)",
    ],
)
def test_each_of_these_would_be_found(text: str) -> None:
    assert dangers(text)


def test_no_package_writes_into_a_database_with_text() -> None:
    """No SQL anywhere: nothing to inject into."""
    for file in SOURCES:
        imported = {
            name.name.partition(".")[0]
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert not imported & {"sqlite3", "sqlalchemy", "psycopg", "asyncpg", "mysql"}


MADE_AT_IMPORT = {"PlainEvent"}
"""Classes whose constructors make patterns: they are called at import only, which is checked."""


def patterns_made_late(text: str) -> list[int]:
    """Lines within functions that give `re` anything but a literal as its pattern: what is made at import knows no
    caller. And those that make an object whose constructor does so."""
    tree = ast.parse(text)
    exempt = {
        function
        for made in ast.walk(tree)
        if isinstance(made, ast.ClassDef) and made.name in MADE_AT_IMPORT
        for function in made.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    }
    functions = {each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)} - exempt
    calls = [call for function in functions for call in ast.walk(function) if isinstance(call, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in MADE_AT_IMPORT] + [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) != ("re", "escape")
        and call.func.value.id == "re"
        and not isinstance(call.args[0], ast.Constant)
    ]


def test_no_pattern_is_made_of_what_a_caller_sends() -> None:
    """A caller's pattern could take for ever."""
    found = {str(file.relative_to(ROOT)): patterns_made_late(file.read_text("utf-8")) for file in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert patterns_made_late("def judge(told):\n    return re.search(told, 'x')") == [2]
    assert patterns_made_late("def judge(told):\n    return PlainEvent(told, b'', b'')") == [2]
    assert patterns_made_late("class Other:\n    def __init__(self, told):\n        re.compile(told)") == [3]


CHECKLIST = (ROOT / "docs" / "release-checklist.md").read_text("utf-8")


def test_the_checklist_has_every_item_and_each_names_what_shows_it() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", CHECKLIST, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    for number, _, shown in rows:
        assert re.search(r"`tests/|\]\(|\bF\d+", shown), number


def test_each_test_and_scene_that_the_checklist_names_is_there() -> None:
    for name in re.findall(r"`(tests/[^`]+)`", CHECKLIST):
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), name
    told = set(re.findall(r"\bF(\d+)\b", CHECKLIST + (ROOT / "docs" / "threat-model.md").read_text("utf-8")))
    assert told <= {str(scene.row) for scene in scenes()}
