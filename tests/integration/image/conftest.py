"""The image's tree, assembled once a session."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.integration.image.context import export
from tests.integration.image.dockerfile import DOCKERFILE, Stage, parse
from tests.integration.image.replay import Replay
from tests.integration.image.sandbox import Sandbox

_BUILT = pytest.StashKey["Image"]()


@dataclass(frozen=True)
class Image:
    """What the Dockerfile's steps made."""

    folder: Path
    """Where they ran."""
    tree: Path
    context: tuple[str, ...]
    """The files that they were given."""
    last: Stage
    sandbox: Sandbox

    @cached_property
    def packages(self) -> Path:
        """Where in the tree they are installed."""
        (found,) = (path.parent for path in self.tree.rglob("gateway") if path.is_dir())
        return found

    @property
    def megabytes(self) -> float:
        return sum(path.lstat().st_size for path in self.tree.rglob("*")) / 1e6


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Image:
    """The image, built by replaying its Dockerfile."""
    folder = tmp_path_factory.mktemp("image")
    context = tuple(export(folder / "context"))
    stages = parse(DOCKERFILE.read_text("utf-8"))
    tree = Replay(stages, folder / "context", folder).run()
    built = Image(folder, tree, context, stages[-1], Sandbox.best(tree, stages[-1]))
    request.config.stash[_BUILT] = built
    return built


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how much of a container its processes had."""
    if (built := config.stash.get(_BUILT, None)) is not None:
        terminalreporter.write_line(f"the image: {built.megabytes:.0f} MB; its processes ran {built.sandbox.told}")
