"""curl, before simulated pods."""

import pytest

from tests.clients import with_curl
from tests.clients.front import Call, Front, calls_of, play

pytestmark = pytest.mark.program("curl")


@calls_of(with_curl)
def test_curl(call: Call, front: Front) -> None:
    play(call, front)
