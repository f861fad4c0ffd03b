"""A run says of which commit it is, and says so if it is of none."""

import os
import subprocess
from pathlib import Path

import pytest

from loadtest.report.where import commit, host, load_now


def git(folder: Path, *arguments: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ | identity
    )
    return done.stdout.strip()


@pytest.mark.program("git")
def test_a_commit_is_named_and_changes_to_it_are_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "app.py").write_text("first", "utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    name = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert commit(tmp_path) == name
    (tmp_path / "report.md").write_text("a report that was written is no change", "utf-8")
    assert commit(tmp_path) == name
    (tmp_path / "gateway" / "app.py").write_text("second", "utf-8")
    assert commit(tmp_path) == f"{name} and changes not committed"


@pytest.mark.program("git")
def test_where_there_is_no_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == "unknown"


def test_a_host_tells_its_load_before_and_after() -> None:
    told = host(0.25)
    assert told.load[0] == 0.25
    assert told.load[1] == pytest.approx(load_now(), abs=5)
    assert told.cores >= 1
    assert told.cpu
