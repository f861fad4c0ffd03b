"""The tap before a pod: nothing that passes is changed, what passes is told, and ends are the ends they were."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loadtest.invariants import events as e
from loadtest.invariants.events import Event, Kind
from loadtest.tap import Tap
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.raw import RawClient, chat, request

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = [STREAM_HEAD, chunk(TEXT), chunk(LAST), chunk(DONE), b"0\r\n\r\n"]
SENT = request(chat(stream=True), headers={"X-Request-Id": "r-0f-1"})


@dataclass
class Tapped:
    pod: ScriptedPod
    tap: Tap
    heard: list[Event] = field(default_factory=list)

    @property
    def told(self) -> list[str]:
        return [type(event).__name__ for event in self.heard]

    async def until(self, name: str) -> None:
        async with asyncio.timeout(60):
            while name not in self.told:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def tapped(*script: Step) -> AsyncIterator[Tapped]:
    heard: list[Event] = []
    tap = Tap("a", heard.append, asyncio.get_running_loop().time)
    async with ScriptedPod([script]) as pod:
        await tap.listen(pod.port)
        try:
            yield Tapped(pod, tap, heard)
        finally:
            tap.close()


async def test_bytes_pass_as_they_are_and_are_told() -> None:
    async with tapped(*WHOLE) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        came = await client.answer()
        assert (came.clean, came.body) == (True, TEXT + LAST + DONE)
        assert found.pod.requests == [SENT]
        assert found.told == ["PodReceived", *["PodPiece"] * 3, "PodAnswered"]
        pieces = [event.piece for event in found.heard if isinstance(event, e.PodPiece)]
        assert [piece.kind for piece in pieces] == [Kind.CONTENT, Kind.CONTENT, Kind.END]
        client.send(SENT)
        assert (await client.answer()).clean
        assert found.told.count("PodAnswered") == 2
        client.leave()


async def test_interim_answers_are_not_the_answer() -> None:
    async with tapped(b"HTTP/1.1 102 Processing\r\n\r\n", *WHOLE) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        assert (await client.answer()).interim == 1
        assert found.told == ["PodReceived", *["PodPiece"] * 3, "PodAnswered"]
        client.leave()


async def test_what_a_gateway_asks_for_itself_is_not_told() -> None:
    async with tapped(*WHOLE) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(request(b"", path="/v1/models", method="GET"))
        assert (await client.answer()).status == 200
        assert found.told == []
        client.leave()


async def test_a_clients_leave_reaches_the_pod_and_is_told_as_the_gateways() -> None:
    async with tapped(STREAM_HEAD, chunk(TEXT), Hang) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        await found.until("PodPiece")
        client.leave()
        await asyncio.wait_for(found.pod.peer_left.wait(), 60)
        await found.until("PodConnectionClosed")
        last = found.heard[-1]
        assert isinstance(last, e.PodConnectionClosed)
        assert last.by_gateway


async def test_a_pods_close_and_a_pods_reset_stay_what_they_are() -> None:
    for ending in (Close, Reset):
        async with tapped(STREAM_HEAD, chunk(TEXT), ending) as found:
            client = await RawClient.connect(found.tap.port)
            client.send(SENT)
            came = b""
            error = None
            try:
                while data := await client.reader.read(65536):
                    came += data
            except ConnectionResetError as reset:
                error = reset
            assert (error is not None) is (ending is Reset)
            await found.until("PodConnectionClosed")
            last = found.heard[-1]
            assert isinstance(last, e.PodConnectionClosed)
            assert not last.by_gateway
            client.leave()


async def test_while_the_pod_refuses_the_tap_refuses() -> None:
    async with tapped(*WHOLE) as found:
        found.pod.refuse()
        client = await RawClient.connect(found.tap.port)
        assert await client.closed()
        try:
            await RawClient.connect(found.tap.port)
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("it listens")
        assert found.tap.refused == 1
        await found.pod.start()
        await found.tap.listen(found.pod.port)
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        assert (await client.answer()).clean
        client.leave()


async def test_bytes_that_are_no_http_pass_too() -> None:
    async with tapped(b"NOT HTTP AT ALL\r\n\r\n", Close) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        assert await client.reader.read() == b"NOT HTTP AT ALL\r\n\r\n"
        await found.until("PodConnectionClosed")
        client.leave()


async def test_a_body_that_is_no_stream_is_one_piece() -> None:
    async with tapped(answer(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}')) as found:
        client = await RawClient.connect(found.tap.port)
        client.send(SENT)
        await client.answer()
        (piece,) = [event.piece for event in found.heard if isinstance(event, e.PodPiece)]
        assert (piece.kind, piece.tokens) == (Kind.BODY, (1, 2))
        client.leave()
