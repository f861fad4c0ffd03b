"""The Dockerfile as a text. That its steps work is shown in tests/integration/image."""

import json
import re
import subprocess

import pytest

from gateway import __version__
from gateway.config.reading import load_config
from tests.integration.image.context import DOCKERIGNORE, Ignore
from tests.integration.image.dockerfile import DOCKERFILE, ROOT, parse
from tests.manifests.building import validator

TEXT = DOCKERFILE.read_text("utf-8")
STAGES = parse(TEXT)
*BUILDING, LAST = STAGES
NAMES = [stage.name for stage in STAGES]
INSTALLS = [step.text for stage in BUILDING for step in stage.all("RUN") if "pip install" in step.text]


@pytest.mark.program("hadolint")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([validator("hadolint"), DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "hadolint ignore" not in TEXT


def test_every_base_is_a_version_or_a_stage_or_nothing() -> None:
    outside = [stage.source for stage in STAGES if stage.source not in {*NAMES, "scratch"}]
    assert len(outside) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", outside[0])


def test_no_digest_registry_or_platform_is_made_up() -> None:
    assert "@sha256:" not in TEXT
    assert "://" not in TEXT
    assert not re.search(r"index-url|--platform|amd64|x86_64|arm64|aarch64", TEXT)


def test_the_base_is_a_python_that_the_locks_are_for() -> None:
    """They hold for it and for every later one."""
    assert "--universal --python-version 3.11 " in (ROOT / "scripts" / "lock").read_text("utf-8")
    python = re.fullmatch(r"python:3\.(\d+)\..*", STAGES[0].source)
    assert python is not None
    assert int(python[1]) >= 11


def test_all_that_is_installed_is_hashed_and_never_compiled_or_is_our_own_wheel() -> None:
    assert len(INSTALLS) == 3
    for text in INSTALLS:
        if "wheels/poolgate-" in text:
            assert {"--no-index", "--no-deps"} <= set(text.split())
        else:
            assert {"--require-hashes", "--only-binary=:all:"} <= set(text.split())
            assert re.search(r" -r requirements/(extras|build)\.lock$", text)


def test_the_tools_that_build_the_wheel_are_in_no_stage_that_is_kept() -> None:
    (copied,) = LAST.all("COPY")
    kept = next(stage for stage in STAGES if stage.name == copied.flags["from"])
    assert not [step for step in kept.steps if "build.lock" in step.text]


def test_the_last_stage_begins_with_nothing_and_starts_no_shell() -> None:
    assert LAST.source == "scratch"
    for step in (*LAST.all("RUN"), LAST.last("ENTRYPOINT"), LAST.last("CMD")):
        assert step.exec_form, step
    assert LAST.last("HEALTHCHECK").rest.startswith("CMD [")


def test_it_runs_as_a_user_who_is_a_number_and_not_root() -> None:
    user, group = LAST.last("USER").rest.split(":")
    assert int(user) == int(group) == 65532


def test_what_is_started_ports_and_signal_are_the_gateways() -> None:
    settings = load_config(None, {}, {"discovery.pods": [{"url": "http://127.0.0.1:1", "pool": "a"}]}).server
    assert LAST.last("EXPOSE").words == [str(settings.port), str(settings.ops_port)]
    words: list[str] = json.loads(LAST.last("HEALTHCHECK").rest.removeprefix("CMD "))
    assert words[0] == "python"
    assert f"'127.0.0.1', {settings.ops_port}" in words[-1]
    assert "'/readyz'" in words[-1]
    assert LAST.last("ENTRYPOINT").words == ["poolgate"]
    assert LAST.last("CMD").words == ["serve", "--config", "/etc/poolgate/gateway.yaml"]
    assert LAST.last("STOPSIGNAL").rest == "SIGTERM"
    assert LAST.environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_its_label_has_the_gateways_version() -> None:
    (label,) = LAST.all("LABEL")
    assert label.pairs["org.opencontainers.image.version"] == __version__
    assert label.pairs["org.opencontainers.image.licenses"] in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"poolgate:{__version__} " in TEXT.splitlines()[0]


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    ignore = Ignore(DOCKERIGNORE.read_text("utf-8"))
    copied = {
        name for stage in BUILDING for step in stage.all("COPY") if "from" not in step.flags for name in step.words[:-1]
    }
    assert {pattern for pattern, lets_in in ignore.patterns if lets_in} == copied
    assert ignore.patterns[0] == ("*", False)
    for name in copied:
        assert (ROOT / name).exists()
        assert ignore.lets_in(name)
