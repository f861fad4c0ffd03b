"""One Open WebUI, before one gateway, before simulated pods, for the whole run."""

from collections.abc import Iterator

import pytest

from tests.e2e.webui.server import WebuiFailed, WebuiNotInstalled
from tests.e2e.webui.stage import Stage, set_up


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    try:
        with set_up(tmp_path_factory.mktemp) as stage:
            yield stage
    except (WebuiNotInstalled, WebuiFailed) as error:
        pytest.exit(f"{type(error).__name__}: {error}", returncode=1)  # once, not once for each test
