"""Every captured request, asked of a real vLLM and through the gateway: the same answer, but for ids and times.

Those of a model that embeds are asked of a second vLLM.
"""

import json
import re

import pytest

from tests.e2e.vllm.server import Vllm
from tests.e2e.vllm.wire import Server, differences, untangled
from tests.replays import Replay, comparable, replays

pytestmark = pytest.mark.vllm

MOST_TOKENS = 24
FORWARDED = [replay.steadied(MOST_TOKENS) for replay in replays() if not replay.answered_by and not replay.is_guarded]


def of_task(task: str) -> pytest.MarkDecorator:
    """One test for each captured request to such a pod."""
    return pytest.mark.parametrize(
        "replay", [each for each in FORWARDED if each.task == task], ids=lambda each: each.name
    )


@of_task("generate")
def test_an_answer_of_a_model_that_generates(replay: Replay, vllm: Vllm, gateway: Server) -> None:
    assert_same(replay, Server(vllm.url), gateway)


@of_task("embed")
def test_an_answer_of_a_model_that_embeds(replay: Replay, embedder: tuple[Vllm, Server]) -> None:
    vllm, gateway = embedder
    assert_same(replay, Server(vllm.url), gateway)


def parts(answer: bytes, replay: Replay) -> list[bytes]:
    """An answer without what differs between two runs of the same request at the same vLLM."""
    if replay.task == "embed":
        answer = VECTOR_NUMBER.sub(b"N", answer)
    return untangled(comparable(answer, replay.shows_usage))


VECTOR_NUMBER = re.compile(rb"-?\d+\.\d+(?:e[-+]?\d+)?")
# How several texts are put into batches is chance, and the last digits go by it: vectors of length 1, in bfloat16.
ROUNDING = 0.01


TRIES = 3
"""How often a stream is compared: vLLM joins the tokens of a reader that is late, which on a busy machine is chance."""


def assert_same(replay: Replay, direct: Server, gateway: Server) -> None:
    """Asks both, and fails with the bytes that differ, each time."""
    differ = ""
    for _ in range(TRIES if (replay.fields or {}).get("stream") else 1):
        differ = compared(replay, direct, gateway)
        if not differ:
            return
    pytest.fail(differ, pytrace=False)


def compared(replay: Replay, direct: Server, gateway: Server) -> str:
    """Asks both once: the bytes that differ, or nothing."""
    through = gateway.ask(replay.path, replay.body)
    plain = direct.ask(replay.path, replay.as_the_gateway_asks)
    assert (through.status, through.content_type) == (plain.status, plain.content_type), through.body
    assert through.headers["x-request-id"]
    if plain.body == b'{"detail":"Not Found"}':
        assert json.loads(through.body)["error"]["code"] == "not_found"
        return ""
    if differ := differences(*(parts(answer.body, replay) for answer in (plain, through))):
        return differ
    if replay.task == "embed":
        expected, got = (list(map(float, VECTOR_NUMBER.findall(answer.body))) for answer in (plain, through))
        assert got == pytest.approx(expected, abs=ROUNDING)
    return ""
