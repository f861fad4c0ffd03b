"""The lines that docs/clients.md shows are run as they stand, but for the address and the key."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.front import Front
from tests.clients.sound import tone
from tests.clients.with_node import FOLDER

PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(PAGE.read_text("utf-8"))
PROGRAMS = {"js": "node", "sh": "curl"}
ADDRESS, KEY = "http://127.0.0.1:8000", "sk-pg_…"
RUN_SECONDS = 60


def of(language: str) -> pytest.MarkDecorator:
    """Parametrizes a test by the page's blocks of a language."""
    found = [text for name, text in BLOCKS if name == language]
    heads = [re.sub(r"\W+", "-", text.strip().splitlines()[0])[:40].strip("-") for text in found]
    return pytest.mark.parametrize("block", found, ids=heads)


def filled_in(block: str, front: Front) -> str:
    assert ADDRESS in block
    assert KEY in block
    return block.replace(ADDRESS, front.url).replace(KEY, front.key)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lines are run, with the sound file that they name."""
    (tmp_path / "hello.wav").write_bytes(tone())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@of("python")
def test_the_python_on_the_page_runs(
    block: str, front: Front, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(filled_in(block, front), str(PAGE), "exec"), {"__name__": "shown"})
    printed = capsys.readouterr().out.split("\n")
    assert len(printed) > block.count("print(") - block.count('end=""')
    assert not any(line in {"None", "[]", "0"} for line in printed)


@pytest.mark.program("node")
@of("js")
def test_the_javascript_on_the_page_runs(block: str, front: Front) -> None:
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", filled_in(block, front)],
        cwd=FOLDER,  # where the package is
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")) > block.count("console.log(")


@pytest.mark.program("curl")
@of("sh")
def test_the_commands_on_the_page_run(block: str, front: Front, folder: Path) -> None:
    commands = filled_in(block, front).replace("curl ", "curl --fail-with-body --silent --show-error --max-time 30 ")
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count('"object"') + done.stdout.count('"results"') + done.stdout.count('"text"') > 0


def test_every_language_on_the_page_is_run() -> None:
    assert {name for name, _ in BLOCKS} == {"python", *PROGRAMS}
