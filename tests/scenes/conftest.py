"""Scenes are judged by the memory that they leave, so each looks for garbage; but not in all that was there before."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def what_was_there_before() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
