"""An alias whose model cannot serve goes on to the next one, and the pod there reads that one's name, and nothing else
that the caller did not write. (What an alias leads to otherwise is in `tests.integration.test_aliases`.)"""

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.fakes import Hang, ScriptedPod, answer
from tests.integration.balancing.scenes import FAILED, GOOD, Scene, scene
from tests.raw import RawClient, request
from tests.running import Side

HEARD = answer(b'{"text":"hello"}')
NAMES = ("first", "second")
POOLS = {name: {"models": [name]} for name in NAMES}


def serving(name: str, *script: bytes) -> ScriptedPod:
    """A pod with one model."""
    models = json.dumps({"object": "list", "data": [{"id": name, "object": "model"}]}).encode()
    return ScriptedPod([script or (GOOD,)], models=models)


def leads_to(*to: tuple[str, float], fallback: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"gpt": {"to": [{"model": model, "weight": weight} for model, weight in to], "fallback": list(fallback)}}


FALLBACK = leads_to(("first", 1), fallback=("second",))


def in_json(model: bytes) -> bytes:
    """A body in which the name stands in four places, of which one counts."""
    return (
        b'{ "user" : "gpt","x":{"model":"gpt"},\n"model" :  "%b" , "messages":[{"role":"user","content":"\\u0067pt"}]}'
        % model
    )


def in_form(model: bytes) -> bytes:
    """A recording in which the name stands too."""
    head = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    file = head % (b"file", b'; filename="gpt.wav"', b"\x00\xff model gpt \r\n" * 100)
    return file + head % (b"model", b"", model) + head % (b"language", b"", b"gpt") + b"--b--\r\n"


async def ask_for(found: Scene, body: bytes) -> RawClient:
    """Send the body, to the route for its kind."""
    if body.startswith(b"{"):
        return await found.send(request(body, key=found.running.key))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    path = "/v1/audio/transcriptions"
    return await found.send(request(body, key=found.running.key, path=path, headers=headers))


@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
@pytest.mark.parametrize("why", ["no_ready_pod", "connect", "queue_full"])
async def test_a_fallback_reads_its_own_name_and_every_other_byte_as_it_came(side: Side, why: str, form: bool) -> None:
    body_for, good = (in_form, HEARD) if form else (in_json, GOOD)
    first, second = serving("first", good), serving("second", good)
    async with AsyncExitStack() as stack:
        for pod in (first, second):
            await stack.enter_async_context(pod)
        where = [{"name": "chat-0", "url": first.url, "pool": "chat"}, {"url": second.url, "pool": "spare"}]
        found = await stack.enter_async_context(
            scene(
                (first, second),
                side=side,
                models=FALLBACK,
                discovery={"pods": where},
                pool={"max_in_flight_per_pod": 1, "queue_limit": 0, "models": ["first"]},
                pools={"spare": {"models": ["second"]}},
            )
        )
        if why == "no_ready_pod":
            await found.exist(tuple(pod for pod in found.gateway.source.seen().pods if pod.pool == "spare"))
        elif why == "connect":
            first.die()
        else:
            first.scripts = [[Hang]]
            await found.begin(model="first")
            await found.until(lambda: bool(first.requests))
        raw = body_for(b"gpt")
        came = await (await ask_for(found, raw)).answer()
        assert came.status == 200
        (sent,) = (each.partition(b"\r\n\r\n")[2] for each in second.requests)
        assert sent == body_for(b"second")


async def test_no_fallback_is_taken_on_an_answer() -> None:
    first, second = serving("first", FAILED), serving("second")
    async with first, second, scene((first, second), models=FALLBACK) as found:
        came = await found.ask(model="gpt")
        assert (came.status, came.error["code"]) == (500, "upstream_failed")
        assert not second.requests


async def test_a_split_follows_its_weights() -> None:
    first, second = serving("first"), serving("second")
    models = leads_to(("first", 90), ("second", 10))
    async with first, second, scene((first, second), models=models) as found:
        for _ in range(200):
            assert (await found.ask(model="gpt")).status == 200
        # Of 200 draws at one in ten, fewer or more are once in a million and a half.
        assert 3 <= len(second.requests) <= 43
        assert len(first.requests) == 200 - len(second.requests)


async def test_a_second_try_stays_with_the_model_that_was_drawn() -> None:
    given = [serving("first"), serving("first"), serving("second")]
    async with given[0], given[1], given[2], scene(given, models=FALLBACK) as found:
        given[0].die()
        for _ in range(6):
            assert (await found.ask(model="gpt")).status == 200
        assert not given[2].requests
        assert len(given[1].requests) == 6
