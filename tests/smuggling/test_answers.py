"""What a pod says is one answer that means one thing, or a 502; its connection is used again after the former only."""

import asyncio

import pytest

from tests.fakes import Close, ScriptedPod, Step
from tests.raw import ask, chat, request
from tests.running import running
from tests.smuggling.answers import ANSWERS, GOOD, WHOLE, Answer
from tests.turns import within


def test_there_are_enough_of_them() -> None:
    assert len({answer.name for answer in ANSWERS}) == len(ANSWERS) >= 30


@pytest.mark.parametrize("told", ANSWERS, ids=lambda told: told.name)
async def test_an_answer_means_one_thing_or_is_refused(told: Answer) -> None:
    first: list[Step] = [told.raw, Close] if told.closes else [told.raw]
    async with ScriptedPod([first, [GOOD]]) as pod, running([pod]) as gateway:
        before = pod.connections
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert came.status == told.status
        assert came.clean
        if told.status == 200:
            assert came.body == WHOLE
        else:
            assert came.error["code"] in ("upstream_bad_response", "upstream_disconnected", "upstream_redirect")
        await gateway.settled()
        if not told.kept:
            async with within(2):
                while pod.connections > before:
                    await asyncio.sleep(0.005)
        # Whatever is left of it never reaches the next caller.
        again = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (again.status, again.body) == (200, WHOLE)
        assert len(pod.requests) == 2
