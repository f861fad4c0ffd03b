"""`python -m loadtest` as it is typed: what it prints, its exit codes, and that it leaves nothing behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.load.reading import load, names
from loadtest.report.document import read, write
from loadtest.stand.cores import Cores
from loadtest.stand.stand import simulated
from tests.integration.test_process import ROOT

SECONDS = 60.0
FILE = """
name: small
question: Does it come through?
seed: 1
seconds: 1
arrivals: {{kind: constant, rate: 10}}
mix: [{{kind: chat, model: m, prompt: {{tokens: 20}}, answer: {{tokens: 5}}}}]
objectives: {{late_ms: 5000}}
stand: {{pods: [{{model: m, pool: chat, flags: {{step-ms: {step_ms}}}}}]}}
expect: {{only_whole_endings: true, itl_p99_ms_at_most: {itl_ms}, leaving_seen_within_seconds: 1}}
"""


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


def small(folder: Path, *, step_ms: int = 2, itl_ms: int = 5000) -> str:
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


async def test_a_run_that_holds_ends_with_0_and_one_that_does_not_with_1(tmp_path: Path) -> None:
    held = await typed("run", small(tmp_path), "--no-pin", "--no-wait", "--out", str(tmp_path / "held"))
    assert held[0] == 0, held
    assert "not judged" in held[1]  # nobody left
    failed = await typed(
        "run", small(tmp_path, step_ms=20, itl_ms=1), "--no-pin", "--no-wait", "--out", str(tmp_path / "failed")
    )
    assert failed[0] == 1, failed
    assert "FAILED" in failed[1]
    assert "not all held: small" in failed[2]

    told = json.loads((tmp_path / "held" / "small.json").read_text())
    assert told["command"].startswith("python -m loadtest run small")


async def test_a_run_that_is_worse_than_another_ends_with_1(tmp_path: Path) -> None:
    assert (await typed("run", small(tmp_path), "--no-pin", "--no-wait", "--out", str(tmp_path)))[0] == 0
    before, after = tmp_path / "small.json", tmp_path / "after.json"
    run = read(before)
    (side,) = run.sides
    measures = replace(side.measures, whole=0, met=0, failed=side.measures.requests)
    write(replace(run, sides=(replace(side, measures=measures),)), after)
    same, worse = await typed("compare", str(before), str(before)), await typed("compare", str(before), str(after))
    assert same[0] == 0, same
    assert worse[0] == 1, worse
    write(replace(run, text="another question"), after)
    other = await typed("compare", str(before), str(after))
    assert other[0] == 2, other
    assert "did not ask the same" in other[2]


async def test_what_is_no_report_cannot_be_compared(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    code, _, err = await typed("compare", str(other), str(other))
    assert code == 2
    assert "no report" in err


async def test_a_gateway_that_runs_already_can_be_asked(tmp_path: Path) -> None:
    scenario = load(small(tmp_path))
    folder = tmp_path / "stand"
    folder.mkdir()
    async with simulated(scenario, Cores.of_this_host(pinned=False), folder) as stand:
        words = ("run", small(tmp_path), "--no-pin", "--no-wait", "--url", stand.urls[0])
        code, out, err = await typed(*words, key=stand.keys["chat"])
        assert code == 0, (out, err)
        code, out, err = await typed(*words, key="sk-pg_nobody")
        assert code == 1
        assert "invalid_api_key" in out


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
