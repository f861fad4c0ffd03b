"""Audio: forms read as starlette reads them, answers as vLLM's source shapes them."""

from __future__ import annotations

import json
import wave
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest

from loadtest.simulator import PodSettings, SimulatedPod, Task
from loadtest.simulator.asked import Refused
from loadtest.simulator.audio import duration_seconds, read_form
from loadtest.simulator.connection import ReceivedRequest
from tests.unit.loadtest.talking import Heard, ask, post, talk_to

PATH = "/v1/audio/transcriptions"
SETTINGS = PodSettings(model="m", task=Task.TRANSCRIPTION)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=edge"}


def wav(seconds: float = 2.0) -> bytes:
    sound = BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\0" * int(8000 * seconds))
    return sound.getvalue()


def form(sound: bytes | None = None, **fields: str) -> bytes:
    """A multipart body; `sound` as its file."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    body = "".join(parts).encode()
    if sound is not None:
        head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        body += head + b"Content-Type: audio/wav\r\n\r\n" + sound + b"\r\n"
    return body + b"--edge--\r\n"


def request(body: bytes, content_type: str = MULTIPART["Content-Type"]) -> ReceivedRequest:
    headers = ((b"content-type", content_type.encode()),)
    return ReceivedRequest(method="POST", target=PATH.encode(), headers=headers, body=body, connection=1)


async def answer(body: bytes, path: str = PATH, fault: str | None = None) -> Heard:
    async with SimulatedPod(SETTINGS) as pod:
        if fault is not None:
            pod.set_fault(fault)
        return await ask(pod, post(body, path, MULTIPART))


def test_a_form_s_fields_and_file_are_read_as_they_were_sent() -> None:
    fields, sound = read_form(request(form(b"\r\n--edg\0\xff", model="m", prompt="größe")))

    assert fields == {"model": "m", "prompt": "größe"}
    assert sound == b"\r\n--edg\0\xff"


@pytest.mark.parametrize("body", [b"", b"--ed", form(b"x", a="b")[:60], b"\0\xff"])
def test_a_form_that_is_cut_has_no_file_or_is_refused(body: bytes) -> None:
    with suppress(Refused):
        assert read_form(request(body))[1] is None


def test_a_body_of_another_type_is_a_form_without_fields() -> None:
    assert read_form(request(b"{}", "application/json")) == ({}, None)


def test_how_long_a_sound_is_comes_from_its_head_or_its_size() -> None:
    assert duration_seconds(wav(1.5)) == 1.5
    assert duration_seconds(b"ID3" + bytes(32_000 - 3)) == 2.0


@pytest.mark.parametrize("sound", [b"", b"not audio", b"RIFF", wav()[:20]])
def test_what_is_no_sound_is_refused(sound: bytes) -> None:
    with pytest.raises(Refused) as caught:
        duration_seconds(sound)

    assert b"Invalid or unsupported audio file." in caught.value.reply.body


async def test_a_transcription_tells_its_text_and_the_seconds_begun() -> None:
    heard = await answer(form(wav(1.2), model="m"))

    assert heard.status == 200
    assert list(heard.json) == ["text", "usage"]
    assert heard.json["usage"] == {"type": "duration", "seconds": 2}


async def test_text_as_a_format_is_answered_in_json_all_the_same() -> None:
    as_text = await answer(form(wav(), response_format="text"))

    assert as_text.body == (await answer(form(wav()))).body
    assert ("content-type", "application/json") in as_text.headers


async def test_a_translation_says_something_else_and_no_usage() -> None:
    translated = await answer(form(wav()), "/v1/audio/translations")

    assert list(translated.json) == ["text"]
    assert translated.json["text"] != (await answer(form(wav()))).json["text"]


async def test_verbose_json_tells_language_duration_and_segments() -> None:
    told: Any = (await answer(form(wav(), response_format="verbose_json", language="de"))).json

    assert list(told) == ["duration", "language", "text", "segments", "words"]
    assert (told["duration"], told["language"]) == (2.0, "de")
    assert told["segments"][0]["text"] == told["text"]


async def test_a_stream_is_chunks_without_a_role_then_done() -> None:
    heard = await answer(form(wav(), stream="true"))
    text = "".join(event["choices"][0]["delta"]["content"] for event in _events(heard))

    assert heard.chunks[-1] == b"data: [DONE]\n\n"
    assert heard.is_whole
    assert {event["object"] for event in _events(heard)} == {"transcription.chunk"}
    assert _events(heard)[0]["id"].startswith("transcribe-")
    assert _events(heard)[-1]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in _events(heard)[-1]
    assert text == (await answer(form(wav()))).json["text"]


async def test_usage_comes_last_if_it_is_asked_for_and_on_all_chunks_if_they_are() -> None:
    last = _events(await answer(form(wav(), stream="true", stream_include_usage="true")))
    both = form(wav(), stream="true", stream_include_usage="true", stream_continuous_usage_stats="true")
    everywhere = _events(await answer(both))

    assert [("usage" in event) for event in last] == [False] * (len(last) - 1) + [True]
    assert last[-1]["choices"] == []
    assert list(last[-1]["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens"]
    assert all("usage" in event for event in everywhere)


async def test_a_translation_s_chunks_bear_its_name() -> None:
    heard = await answer(form(wav(), stream="true"), "/v1/audio/translations")

    assert {event["object"] for event in _events(heard)} == {"translation.chunk"}
    assert _events(heard)[0]["id"].startswith("translate-")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (form(model="m"), 400, "body.file"),
        (form(file="text"), 422, "Expected 'file' to be a file-like object, not 'str'."),
        (form(wav(), model="nope"), 404, "The model `nope` does not exist."),
        (form(wav(), response_format="srt"), 400, "Currently only support response_format"),
        (form(wav(), response_format="mp3"), 400, "literal_error"),
        (form(wav(), response_format="diarized_json"), 400, "Currently do not support diarized_json for m"),
        (form(wav(), response_format="verbose_json", stream="true"), 400, "doesn't support streaming case"),
        (form(wav(), stream_include_usage="true"), 400, "Stream options can only be defined"),
        (form(wav(), temperature="warm"), 400, "body.temperature"),
        (form(b"no sound"), 400, "Invalid or unsupported audio file."),
    ],
)
async def test_refusals_are_vllm_s(body: bytes, status: int, text: str) -> None:
    heard = await answer(body)

    assert heard.status == status
    assert text in json.dumps(heard.json)


async def test_faults_strike_a_stream_of_audio() -> None:
    cut = await answer(form(wav(), stream="true"), fault="cut:2")
    error = await answer(form(wav(), stream="true"), fault="error_event:2")
    without_done = await answer(form(wav(), stream="true"), fault="no_done")

    assert (len(cut.chunks), cut.is_whole) == (2, False)
    assert b'"error"' in error.chunks[2]
    assert error.chunks[3:] == [b"data: [DONE]\n\n"]
    assert b"[DONE]" not in without_done.chunks[-1]


async def test_a_fault_in_the_form_strikes_this_one_request() -> None:
    heard = await answer(form(wav(), sim_fault='{"kind": "status", "status": 418}'))

    assert heard.status == 418


async def test_a_client_that_leaves_aborts_its_transcription() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        pod.pause()
        async with talk_to(pod) as talk:
            talk.send(post(form(wav()), PATH, MULTIPART))
            await pod.until(lambda p: p.waiting == 1)
        await pod.until(lambda p: p.aborts == 1)

        assert pod.in_flight == 0


def _events(heard: Heard) -> list[dict[str, Any]]:
    return list(heard.events)
