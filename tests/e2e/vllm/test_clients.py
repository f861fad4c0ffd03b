"""Every client's calls before a real vLLM: the same functions that run before simulated pods.

Its model only generates: what embeds, scores or listens is asked of it all the same, and must be a clean 404. What
embeds or scores is then asked of a second vLLM, that embeds. None here listens.
"""

import pytest

from tests.clients import with_anthropic, with_curl, with_langchain, with_openai, with_openai_async
from tests.clients.front import Call, Front, calls, calls_of, needed, play
from tests.clients.with_node import CALLS, checks_of, play_check
from tests.e2e.vllm.server import MODEL_NAME, NAME_WITH_A_SLASH, Vllm
from tests.e2e.vllm.wire import Server

pytestmark = pytest.mark.vllm

MODULES = (with_openai, with_openai_async, with_langchain, with_curl)
POOLING = [call for module in MODULES for call in calls(module) if needed(call) in ("embed", "score")]


@pytest.fixture(scope="session")
def front(vllm: Vllm, gateway: Server) -> Front:
    assert gateway.key is not None
    return Front(url=gateway.url, key=gateway.key, pod_url=vllm.url, chat=NAME_WITH_A_SLASH)


@pytest.fixture(scope="session")
def pooling_front(embedder: tuple[Vllm, Server]) -> Front:
    vllm, gateway = embedder
    assert gateway.key is not None
    return Front(gateway.url, gateway.key, vllm.url, chat=MODEL_NAME, embed=MODEL_NAME, score=MODEL_NAME)


@pytest.mark.parametrize("call", POOLING, ids=lambda call: f"{call.__module__.rpartition('_')[2]}-{call.__name__}")
def test_what_embeds_or_scores(call: Call, pooling_front: Front) -> None:
    play(call, pooling_front)


@calls_of(with_openai)
def test_openai(call: Call, front: Front) -> None:
    play(call, front)


@calls_of(with_openai_async)
def test_openai_async(call: Call, front: Front) -> None:
    play(call, front)


@calls_of(with_anthropic)
def test_anthropic(call: Call, front: Front) -> None:
    play(call, front)


@calls_of(with_langchain)
def test_langchain(call: Call, front: Front) -> None:
    play(call, front)


@pytest.mark.program("curl")
@calls_of(with_curl)
def test_curl(call: Call, front: Front) -> None:
    play(call, front)


@pytest.mark.program("node")
@checks_of(CALLS)
def test_openai_node(check: str, front: Front) -> None:
    play_check(CALLS, check, front)
