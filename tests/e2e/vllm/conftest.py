"""One vLLM and one gateway before it for the whole run; and at the end what was compared."""

from collections.abc import Iterator

import pytest

from tests.e2e.vllm.front import gateway_before
from tests.e2e.vllm.report import Report
from tests.e2e.vllm.server import MODEL_NAME, NAME_WITH_A_SLASH, Vllm, VllmDidNotStart, VllmNotInstalled, real_vllm
from tests.e2e.vllm.wire import Server

THE_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[THE_REPORT] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[THE_REPORT]


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Iterator[Vllm]:
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    # Without the prefix cache a prompt is computed in the same way each time, and a long one takes its time; in
    # small batches an engine step is short, and the gauges move with the steps.
    steady = ("--no-enable-prefix-caching", "--max-num-batched-tokens", "128")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    names = ("--served-model-name", MODEL_NAME, NAME_WITH_A_SLASH)
    try:
        with real_vllm(log, "--enable-server-load-tracking", *steady, *tools, *names) as started:
            report.note(f"vLLM was ready after {started.seconds_to_start:.0f} s; its log: {log}")
            yield started
    except (VllmNotInstalled, VllmDidNotStart) as error:
        pytest.exit(f"{type(error).__name__}: {error}", returncode=1)  # once, not once for each test


@pytest.fixture(scope="session")
def gateway(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gateway_before(vllm.url, tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Iterator[tuple[Vllm, Server]]:
    """(a second vLLM, which makes vectors of the same model's last layer; the gateway before it)."""
    log = tmp_path_factory.mktemp("embedder") / "vllm.log"
    with real_vllm(log, "--enable-server-load-tracking", "--runner", "pooling", "--convert", "embed") as started:
        report.note(f"a vLLM that embeds was ready after {started.seconds_to_start:.0f} s; its log: {log}")
        with gateway_before(started.url, tmp_path_factory.mktemp("before-embedder")) as gateway:
            yield started, gateway


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[THE_REPORT].lines()
    if lines:
        terminalreporter.section("gateway against a real vLLM")
        for line in lines:
            terminalreporter.write_line(line)
