"""openai-python, asynchronous, before simulated pods."""

from tests.clients import with_openai_async
from tests.clients.front import Call, Front, calls_of, play


@calls_of(with_openai_async)
def test_openai_async(call: Call, front: Front) -> None:
    play(call, front)
