"""What did not run is said at the end, with the command that mends it: nothing is skipped in silence."""

import pytest

_DESELECTED = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that want a real vLLM."""
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            stash = item.config.stash
            stash[_DESELECTED] = stash.get(_DESELECTED, 0) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name them."""
    count = config.stash.get(_DESELECTED, 0)
    if count:
        terminalreporter.write_line(f"not run: {count} tests against a real vLLM; run them with: make test-vllm")
