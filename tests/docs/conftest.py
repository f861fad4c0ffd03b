"""One stage for all pages: the copy and the demo cost some seconds."""

from collections.abc import Iterator

import pytest

from tests.docs.stage import Stage, staged


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("pages")) as made:
        yield made
