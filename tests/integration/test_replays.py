"""Through the gateway a caller gets what the pod itself would have said: every captured request, asked both ways."""

import json

import pytest

from gateway.pipeline.checks import GUARDED_FIELDS
from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.settings import Task
from tests.raw import ask, request
from tests.replays import MODEL, Replay, comparable, replays
from tests.running import Running, running

REPLAYS = list(replays())
EVERY_FIELD = {"allow_fields": frozenset(GUARDED_FIELDS)}


def settings(replay: Replay) -> PodSettings:
    """A pod that can answer, with what makes its answers rich."""
    return PodSettings(
        model=MODEL,
        task=Task(replay.task),
        max_model_len_tokens=2048,
        auto_tool_choice=True,
        prompt_tokens_details=True,
        natural_tokens=(4, 40),
    )


async def through(gateway: Running, replay: Replay) -> tuple[int, str, bytes]:
    """(status, content type, body) of an answer through the gateway."""
    came = await ask(
        gateway.port, request(replay.body, key=gateway.key, path=replay.path, headers=dict(replay.headers))
    )
    assert came.clean
    return came.status, came.headers["content-type"], came.body


@pytest.mark.parametrize("replay", [each for each in REPLAYS if not each.answered_by], ids=lambda replay: replay.name)
async def test_an_answer_through_the_gateway_is_the_pods_own(replay: Replay) -> None:
    # Two pods alike, since the first answer would be in the only one's cache when the second is made.
    async with SimulatedPod(settings(replay)) as pod, SimulatedPod(settings(replay)) as twin:
        edited = request(replay.as_the_gateway_asks, path=replay.path, headers=dict(replay.headers))
        direct = await ask(twin.port, edited)
        async with running([pod], tenant=EVERY_FIELD) as gateway:
            status, content_type, body = await through(gateway, replay)
    assert status == direct.status
    assert content_type == direct.headers["content-type"]
    if direct.body == b'{"detail":"Not Found"}':
        # A route that the model's pods lack, in words of its API.
        assert json.loads(body)["error"]["code"] == "not_found"
    else:
        assert comparable(body, replay.shows_usage) == comparable(direct.body, replay.shows_usage)


@pytest.mark.parametrize("replay", [each for each in REPLAYS if each.answered_by], ids=lambda replay: replay.name)
async def test_what_no_pod_need_be_asked_is_refused_as_a_pod_would_in_our_words(replay: Replay) -> None:
    async with SimulatedPod(settings(replay)) as pod, running([pod]) as gateway:
        asked_before = len(pod.requests)
        status, _, body = await through(gateway, replay)
        assert status == replay.answered_by
        assert json.loads(body)["error"]["message"]
        assert len(pod.requests) == asked_before


def test_the_captures_are_there() -> None:
    assert len(REPLAYS) > 140
    assert {replay.task for replay in REPLAYS} == {"generate", "embed", "score"}
    assert len({replay.path for replay in REPLAYS}) == 10
