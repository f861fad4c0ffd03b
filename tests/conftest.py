"""What did not run is said at the end, with the command that mends it: nothing is skipped in silence."""

import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.clients")  # its modules assert, and are no test modules

_VLLM = pytest.StashKey[int]()
_PROGRAMS = pytest.StashKey[Counter[str]]()

NODE_PACKAGES = Path(__file__).parent / "clients" / "node" / "node_modules"
OLDEST_NODE = 20
MENDS = {
    "curl": "tests that use curl; install it (apt-get install curl), then: make test",
    "node": f"tests of openai-node; install Node.js {OLDEST_NODE} or newer and npm (apt-get install nodejs npm, "
    "where that is new enough), then: make test",
    "openssl": "tests that want a certificate; install it (apt-get install openssl), then: make test",
    "npm": "tests of openai-node, whose package is not installed; install npm if it is missing, then: make test",
}


@cache
def missing(program: str) -> str | None:
    """What a machine lacks for the tests of this program: a key of `MENDS`."""
    if shutil.which(program) is None:
        return program
    if program == "node":
        version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout  # v20.20.2
        if int(version.removeprefix("v").partition(".")[0] or 0) < OLDEST_NODE:
            return "node"
        return None if (NODE_PACKAGES / ".package-lock.json").exists() else "npm"
    return None


@pytest.hookimpl(trylast=True)  # after -m and -k: what was not asked for is not missed
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose program is not there, and count them."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    config.stash[_PROGRAMS] = Counter()
    for item in items:
        lacks = next(filter(None, (missing(mark.args[0]) for mark in item.iter_markers("program"))), None)
        (kept if lacks is None else left_out).append(item)
        if lacks is not None:
            config.stash[_PROGRAMS][lacks] += 1
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that want a real vLLM."""
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            stash = item.config.stash
            stash[_VLLM] = stash.get(_VLLM, 0) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name them."""
    count = config.stash.get(_VLLM, 0)
    if count:
        terminalreporter.write_line(f"not run: {count} tests against a real vLLM; run them with: make test-vllm")
    for program, count in config.stash.get(_PROGRAMS, Counter()).items():
        terminalreporter.write_line(f"not run: {count} {MENDS[program]}")
