"""langchain-openai, before simulated pods."""

from tests.clients import with_langchain
from tests.clients.front import Call, Front, calls_of, play


@calls_of(with_langchain)
def test_langchain(call: Call, front: Front) -> None:
    play(call, front)
