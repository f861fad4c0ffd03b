"""openai-python, before simulated pods."""

from tests.clients import with_openai
from tests.clients.front import Call, Front, calls_of, play


@calls_of(with_openai)
def test_openai(call: Call, front: Front) -> None:
    play(call, front)
