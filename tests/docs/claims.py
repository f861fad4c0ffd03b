"""What is typed in the pages and run elsewhere: by another test, which knows more of what should come of it.

A claim that names no block, or a test that does not exist or does not know what is typed, is a fault: see `test_marks`.
"""

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Claim:
    """Whose the commands are."""

    page: str
    begins: str
    """How the block begins, or the whole command in a sentence."""
    test: str
    """The test that runs it, or that holds what it goes by."""
    word: str = ""
    """What the test's file says of it; the page's name where it reads the page."""
    why: str = ""
    """Where the test does not type it as it stands: why, and what stands for it."""

    @property
    def known_by(self) -> str:
        return self.word or PurePath(self.page).name


CLIENTS = "tests/integration/clients/test_page.py::test_the_commands_on_the_page_run"
KEYS = "tests/unit/cli/test_keys_command.py::test_the_commands_of_the_page_do_what_it_says"
USAGE = "tests/integration/test_usage.py::test_an_example_of_the_page_prints_what_stands_there"
LOCKED = "tests/unit/test_repository.py::test_every_locked_dependency_is_pinned_and_hashed"
SIMULATED = "tests/unit/loadtest/test_policysim.py::test_the_command_writes_what_it_is_asked_for"
COUNTED = "tests/unit/loadtest/scale/test_counting.py::test_it_measures_all_that_the_figures_have_of_redis"
ALERTS = "tests/manifests/test_alerts.py::test_the_alerts_fire_when_they_should_and_only_then"
CHART = "tests/manifests/test_helm.py::test_the_templates_are_what_the_manifests_say"

INSTALL = ".venv/bin/pip install --require-hashes -r requirements/extras.lock"
ONLY_INSTALLS = "it wants a network; make installs from such a lock in the same words, and the test holds the lock"

BLOCKS = (
    Claim("docs/clients.md", "curl http://127.0.0.1:8000/v1/models", CLIENTS),
    Claim("docs/clients.md", "curl http://127.0.0.1:8000/v1/rerank", CLIENTS),
    Claim("docs/keys.md", "poolgate keys create --team acme --file keys.yaml ", KEYS),
    Claim("docs/keys.md", 'poolgate keys create --team acme --models "qwen*" --models gpt-4o-mini', KEYS),
    Claim("docs/keys.md", "poolgate keys list --file keys.yaml --json", KEYS),
    Claim("docs/keys.md", 'poolgate keys create --team acme --models "qwen*" --file keys.yaml ', KEYS),
    Claim("docs/usage.md", "poolgate usage access.log\n", USAGE),
    Claim("docs/usage.md", "poolgate usage access.log --csv\n", USAGE),
    Claim("docs/traces.md", INSTALL, LOCKED, "extras.lock", ONLY_INSTALLS),
)
"""Whole blocks."""

SPANS = (
    Claim(
        "CONTRIBUTING.md", ".venv/bin/python -m loadtest.policysim", SIMULATED, "loadtest.policysim", "it takes minutes"
    ),
    Claim(
        "docs/decisions/0007-expected-work-and-homes.md",
        "python -m loadtest.policysim",
        SIMULATED,
        "loadtest.policysim",
        "it takes minutes",
    ),
    Claim("docs/scale.md", "python -m loadtest.scale.counting", COUNTED, "loadtest.scale.counting", "it takes a while"),
    Claim(
        "docs/decisions/0004-lock-files.md",
        "pip install --require-hashes -r requirements/runtime.lock",
        LOCKED,
        "runtime.lock",
        ONLY_INSTALLS,
    ),
    Claim(
        "deploy/helm/README.md",
        "python -m scripts.write_chart",
        CHART,
        "write_chart",
        "the test compares what it would write",
    ),
    Claim("deploy/prometheus/README.md", "promtool test rules tests/*.yaml", ALERTS, "promtool"),
    *(
        Claim(page, INSTALL, LOCKED, "extras.lock", ONLY_INSTALLS)
        for page in ("docs/discovery.md", "docs/real-pods.md", "docs/tokens.md")
    ),
)
"""Commands in sentences."""

IN_PASSING = frozenset(
    {
        "apt-get install nginx",
        "apt-get install nodejs npm",
        "pip install uv",
        "python -m loadtest.simulator",
        "curl -i http://HOST:8000/v1/models",
        "git log -- loadtest/policysim",
        "kubectl describe pod",
        "kubectl get --raw /readyz",
        "kubectl get pods --show-labels",
        "kubectl logs",
        "kubectl port-forward",
        "docker compose logs",
    }
)
"""What a sentence names rather than gives to type: a way to ask, an installation that is the reader's own affair."""
