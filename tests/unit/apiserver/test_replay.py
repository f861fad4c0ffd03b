"""Recordings are played as they were received."""

import asyncio

import pytest

from tests.apiserver.hearing import Caller
from tests.apiserver.replay import Recording, ReplayServer

LIFE = "02-watch-pod-lifecycle"


async def plays(recording: Recording) -> None:
    script = [recording]
    async with ReplayServer(script, script) as server, await Caller.connect(server.port) as caller:
        caller.send(recording.sent)
        await caller.until(lambda heard: len(caller.raw) >= len(recording.came))
        assert caller.raw == recording.came


async def test_every_recording_is_played_byte_by_byte() -> None:
    for name in Recording.names():
        await plays(Recording.load(name))


async def test_lists_and_watches_are_played_in_turn_then_nothing_more_is_said() -> None:
    empty, life = Recording.load("01-list-empty"), Recording.load(LIFE)
    async with ReplayServer([empty], [life], piece_bytes=1000) as server:
        async with await Caller.connect(server.port) as caller:
            caller.send(empty.sent)
            assert (await caller.whole()).body.startswith(b'{"kind":"PodList"')
            caller.send(life.sent)
            heard = await caller.until(lambda heard: len(heard.lines) == 11)
            assert heard.told()[-1] == ("DELETED", "vllm-a")
        async with await Caller.connect(server.port) as caller:
            caller.send(life.sent)
            with pytest.raises(TimeoutError):
                await caller.whole(seconds=0.05)
    assert [request.query.get("watch") for request in server.requests] == [None, "1", "1"]


async def test_a_killed_servers_recording_closes_the_connection() -> None:
    recording = Recording.load("15-watch-apiserver-sigkill")
    async with ReplayServer(watches=[recording]) as server, await Caller.connect(server.port) as caller:
        caller.send(recording.sent)
        assert (await caller.whole()).ending == "cut"


async def test_the_recorded_time_may_be_scaled() -> None:
    recording = Recording.load(LIFE)  # 3.6 s
    async with ReplayServer(watches=[recording], speed=0.02) as server, await Caller.connect(server.port) as caller:
        began = asyncio.get_running_loop().time()
        caller.send(recording.sent)
        await caller.until(lambda heard: len(caller.raw) == len(recording.came))
        assert asyncio.get_running_loop().time() - began >= 0.07
