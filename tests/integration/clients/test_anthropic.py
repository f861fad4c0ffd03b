"""Anthropic's SDK, before simulated pods."""

from tests.clients import with_anthropic
from tests.clients.front import Call, Front, calls_of, play


@calls_of(with_anthropic)
def test_anthropic(call: Call, front: Front) -> None:
    play(call, front)
