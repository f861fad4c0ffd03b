"""`python -m loadtest compare A B` ends with 0, 1 or 2, so that a pipeline can go by it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.report import document
from loadtest.report.document import Run, Verdict
from tests.unit.loadtest.report.made import risen, run

HELD = [Verdict("only told endings", "none was cut", True)]
BASE = run(risen(), verdicts=HELD)


def compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: Run | str, after: Run | str, *options: str
) -> int | str | None:
    files = []
    for name, told in (("before.json", before), ("after.json", after)):
        if isinstance(told, Run):
            document.write(told, tmp_path / name)
        else:
            (tmp_path / name).write_text(told, "utf-8")
        files.append(str(tmp_path / name))
    monkeypatch.setattr(sys, "argv", ["loadtest", "compare", *options, *files])
    try:
        return main()
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize(
    ("after", "options", "code"),
    [
        (BASE, (), 0),
        (run(risen(slower=1.4), verdicts=HELD), (), 1),
        (run(risen(slower=1.4), verdicts=HELD), ("--slack", "50"), 0),
        (run(risen(), verdicts=[replace(HELD[0], held=False)]), ("--slack", "50"), 1),
        (replace(BASE, scenario="burst"), (), 2),
        ("{}", (), 2),
    ],
    ids=["same", "slower", "allowed", "verdict", "another scenario", "no report"],
)
def test_the_exit_code_says_whether_it_got_worse(
    after: Run | str,
    options: tuple[str, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compared(monkeypatch, tmp_path, BASE, after, *options) in ((code, None) if code == 0 else (code,))
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert ("| measure |" in told.out) == (code < 2)
    assert bool(told.err) == (code == 2)
