"""`python -m loadtest` as it is typed: what it prints, its exit codes, and that it leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest.load.reading import load, names
from loadtest.report.compare import compared
from loadtest.report.document import read
from loadtest.stand.cores import Cores
from loadtest.stand.stand import simulated
from tests.integration.test_process import ROOT

SECONDS = 240.0
"""What is started here has ended by then, on a busy machine too."""
FILE = """
name: small
question: Does it come through?
seed: 1
seconds: 1
arrivals: {{kind: constant, rate: 10}}
mix: [{{kind: chat, model: m, prompt: {{tokens: 20}}, answer: {{tokens: 5}}}}]
objectives: {{late_ms: 60000}}
stand: {{pods: [{{model: m, pool: chat, flags: {{step-ms: {step_ms}}}}}]}}
expect: {{only_whole_endings: true, itl_p99_ms_at_most: {itl_ms}, leaving_seen_within_seconds: 1}}
"""


class Held(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path


async def typed(*words: str, key: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    process = await begun(*words, key=key)
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def begun(*words: str, key: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", *words),
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200", "POOLGATE_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def small(folder: Path, *, step_ms: int = 2, itl_ms: int = 60000) -> str:
    file = folder / "small.yaml"
    file.write_text(FILE.format(step_ms=step_ms, itl_ms=itl_ms))
    return str(file)


def processes_with(word: str) -> list[str]:
    """Command lines in which it stands; what has ended has none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


async def test_the_list_has_every_scenario_and_its_question() -> None:
    code, out, _ = await typed("list")
    assert code == 0
    words = " ".join(out.split())
    for name in names():
        assert f"{name} {load(name).seconds:g} " in words


async def test_what_is_no_scenario_is_told_with_the_names_there_are() -> None:
    code, out, err = await typed("run", "smok")
    assert (code, out) == (2, "")
    assert "smoke" in err
    assert "Traceback" not in err


async def test_a_folder_that_cannot_be_made_is_told_before_anything_is_played(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = await typed("run", "smoke", "--out", str(tmp_path / "file" / "below"))
    assert (code, out) == (2, "")
    assert "Not a directory" in err


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """A run that holds."""
    folder = tmp_path_factory.mktemp("held")
    told = asyncio.run(typed("run", small(folder), "--no-pin", "--no-wait", "--out", str(folder / "told")))
    return Held(*told, folder / "told")


def test_a_run_that_holds_ends_with_0_and_leaves_a_page_with_its_verdicts(held: Held) -> None:
    assert held.code == 0, held
    assert "not judged" in held.out  # nobody left
    run = read(held.folder / "small.json")
    assert run.command == "python -m loadtest run small --no-pin"
    page = (held.folder / "small.md").read_text("utf-8")
    assert run.verdicts
    assert [verdict for verdict in run.verdicts if verdict.expected not in page] == []
    assert not compared(run, run).worse
    assert {file.suffix for file in held.folder.iterdir()} == {".md", ".json", ".svg"}


async def test_a_run_that_does_not_hold_ends_with_1(tmp_path: Path) -> None:
    code, out, err = await typed("run", small(tmp_path, step_ms=20, itl_ms=1), "--no-pin", "--no-wait")
    assert code == 1, (out, err)
    assert "FAILED" in out
    assert "not all held: small" in err


async def test_a_gateway_that_runs_already_can_be_asked(tmp_path: Path) -> None:
    scenario = load(small(tmp_path))
    folder = tmp_path / "stand"
    folder.mkdir()
    async with simulated(scenario, Cores.of_this_host(pinned=False), folder) as stand:
        words = ("run", small(tmp_path), "--no-pin", "--no-wait", "--url", stand.urls[0])
        known, unknown = await asyncio.gather(*(typed(*words, key=key) for key in (stand.keys["chat"], "sk-pg_nobody")))
    assert known[0] == 0, known
    assert unknown[0] == 1, unknown
    assert "invalid_api_key" in unknown[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_stopped_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = await begun("run", small(tmp_path), "--seconds", "60", "--no-pin", "--no-wait")
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        while b"sent" not in (line := await process.stderr.readline()):
            assert line, "it ended"
        folders = {word for line in processes_with("poolgate-load-") for word in line.split() if "-load-" in word}
        assert folders
        process.send_signal(number)
        await process.communicate()
    assert process.returncode == 130
    mine = [folder for folder in folders if not Path(folder).exists()]
    assert mine
    assert not [line for folder in mine for line in processes_with(folder)]
