"""Prints at the end what was compared."""

import pytest

from tests.e2e.vllm.report import Report

THE_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[THE_REPORT] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[THE_REPORT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[THE_REPORT].lines()
    if lines:
        terminalreporter.section("gateway against a real vLLM")
        for line in lines:
            terminalreporter.write_line(line)
