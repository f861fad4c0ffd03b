"""Both sides of the pipeline go through the same suite: the edge's own protocol, and ASGI under uvicorn."""

import pytest

from tests.running import Side


@pytest.fixture(params=["edge", "asgi"])
def side(request: pytest.FixtureRequest) -> Side:
    """The side under test."""
    found: Side = request.param
    return found
