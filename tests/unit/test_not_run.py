"""A machine without Node.js or curl runs the rest of the tests, and is told what it did not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("test_curl.py", "tests that use curl"),
        ("test_openai_node.py", "tests of openai-node and of the status page; install Node.js 20"),
    ],
)
def test_what_a_missing_program_leaves_out_is_named(file: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", f"tests/integration/clients/{file}"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},  # nothing is found there
        capture_output=True,
        text=True,
    )
    assert "not run: " in done.stdout, done.stdout + done.stderr
    assert words in done.stdout
    assert "::" not in done.stdout
