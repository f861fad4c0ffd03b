"""The pictures of the docs, as `scripts/take_screenshots.py` makes them."""

import pytest

from scripts.take_screenshots import IMAGES, PICTURES

MAX_BYTES = 200_000


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_the_docs_is_there_and_light(name: str) -> None:
    picture = (IMAGES / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < MAX_BYTES
