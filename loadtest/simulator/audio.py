"""`/v1/audio/transcriptions` and `/v1/audio/translations`: a form with a file, an answer as of a chat.

What is said is drawn from the sound's bytes. There is no capture of these: the shapes are from the source of
vLLM 0.32. Note that `response_format=text` is answered with the same JSON as `json`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import blake2b
from io import BytesIO
from math import ceil
from typing import Any, cast
from wave import Error as WaveError
from wave import open as open_wave

import msgspec
import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from loadtest.simulator import asked, refusals, schema
from loadtest.simulator.asked import Asked, Refused
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import Counts, Dialect, read_answer
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import event as sse_event

_FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
_SERVED_FORMATS = ("text", "json", "verbose_json", "diarized_json")
# How the formats begin that are not WAV; of those only the size tells how long they are.
_MAGIC = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"fLaC", b"OggS", b"\x1aE\xdf\xa3")
_BYTES_PER_SECOND = 16_000  # 128 kbit/s
TOKENS_PER_SECOND = 3  # of speech


class _Form(msgspec.Struct, kw_only=True):
    model: str | None = None
    language: str | None = None
    prompt: str = ""
    response_format: str = "json"
    stream: bool = False
    stream_include_usage: bool = False
    stream_continuous_usage_stats: bool = False
    temperature: float = 0.0
    max_completion_tokens: int | None = None
    sim_fault: str | None = None


def read_transcription(request: ReceivedRequest, settings: PodSettings) -> tuple[Asked, Dialect]:
    """Raises Refused."""
    return _read(request, settings, translates=False)


def read_translation(request: ReceivedRequest, settings: PodSettings) -> tuple[Asked, Dialect]:
    """Raises Refused."""
    return _read(request, settings, translates=True)


def _read(request: ReceivedRequest, settings: PodSettings, *, translates: bool) -> tuple[Asked, Dialect]:
    fields, sound = read_form(request)
    form = _checked_form(fields, sound)
    sound = cast("bytes", sound)  # or it was refused
    if form.model is not None and form.model not in settings.served_names:
        raise Refused(refusals.unknown_model(form.model, (settings.model, *settings.aliases)))
    _check_format(form, form.model or settings.model)
    seconds = duration_seconds(sound)
    said = f"{blake2b(sound).hexdigest()}/{form.language}/{form.prompt}/{translates}"
    limit = form.max_completion_tokens or max(ceil(seconds * TOKENS_PER_SECOND), 1)
    chat: dict[str, Any] = {
        "messages": [{"role": "user", "content": said}],
        "max_tokens": min(limit, settings.max_model_len_tokens // 2),
        "temperature": form.temperature,
    }
    if form.stream:
        options = {"include_usage": True, "continuous_usage_stats": form.stream_continuous_usage_stats}
        chat |= {"stream": True, "stream_options": options}
    if form.sim_fault:
        chat["sim_fault"] = msgspec.Raw(form.sim_fault.encode())
    wanted = asked.read_chat(schema.written(chat), b"application/json", settings)
    return wanted, Speech(form, seconds, translates=translates)


def read_form(request: ReceivedRequest) -> tuple[dict[str, object], bytes | None]:
    """The fields as text, and the file; a `file` that is no file is left among the fields. Raises Refused."""
    fields: dict[str, object] = {}
    files: dict[str, bytes] = {}

    def on_field(field: Field) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        fields[name] = (field.value or b"").decode("utf-8", "replace")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        files[(file.field_name or b"").decode("utf-8", "replace")] = file.file_object.read()

    content_type = request.raw_header(b"content-type") or b""
    if content_type.partition(b";")[0].strip().lower() not in (
        b"multipart/form-data",
        b"application/x-www-form-urlencoded",
    ):
        return {}, None  # to FastAPI a body of another type is a form without fields
    try:
        headers = {"Content-Type": content_type}
        parser = create_form_parser(headers, on_field, on_file, config={"MAX_MEMORY_FILE_SIZE": len(request.body) + 1})
        parser.write(request.body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refused(refusals.bad_body()) from None
    return fields, files.get("file")


def _checked_form(fields: dict[str, object], sound: bytes | None) -> _Form:
    if sound is None and "file" in fields:
        message = "Expected 'file' to be a file-like object, not 'str'."
        raise Refused(refusals.nested(422, message, "Unprocessable Entity"))
    options = [name for name in ("stream_include_usage", "stream_continuous_usage_stats") if fields.get(name)]
    if options and not fields.get("stream"):
        message = f"Stream options can only be defined when `stream=True`. (parameter={options[0]})"
        raise Refused(refusals.bad_request(message, options[0]))
    if sound is None:
        raise schema.unfit([schema.missing("file", fields)])
    form = schema.convert(fields, _Form)
    if form.response_format not in _FORMATS:
        expected = "'json', 'text', 'srt', 'verbose_json', 'vtt' or 'diarized_json'"
        more = f", 'ctx': {{'expected': {expected!r}}}"
        place = "body.response_format"
        raise schema.unfit(
            [schema.Problem("literal_error", place, f"Input should be {expected}", form.response_format, more)]
        )
    return form


def _check_format(form: _Form, model: str) -> None:
    wanted = form.response_format
    if wanted not in _SERVED_FORMATS:
        message = "Currently only support response_format: `text`, `json`, `verbose_json` or `diarized_json`"
    elif wanted == "diarized_json":
        message = f"Currently do not support diarized_json for {model}"
    elif wanted == "verbose_json" and form.stream:
        message = "verbose_json format doesn't support streaming case"
    else:
        return
    raise Refused(refusals.bad_request(message))


def duration_seconds(sound: bytes) -> float:
    """Of a WAV as its head says, of other formats as their size suggests. Raises Refused for what is neither."""
    if sound.startswith(b"RIFF"):
        try:
            with open_wave(BytesIO(sound)) as wave:
                return float(wave.getnframes() / wave.getframerate())
        except (WaveError, EOFError, ZeroDivisionError):
            pass
    elif sound.startswith(_MAGIC) or sound[4:8] == b"ftyp":
        return len(sound) / _BYTES_PER_SECOND
    raise Refused(refusals.bad_request("Invalid or unsupported audio file."))


class Speech(Dialect):
    def __init__(self, form: _Form, seconds: float, *, translates: bool) -> None:
        self.id_prefix = "translate-" if translates else "transcribe-"
        self._form = form
        self._seconds = seconds
        self._translates = translates
        self._kind = "translation.chunk" if translates else "transcription.chunk"

    def told(self, event: bytes, counts: Callable[[], Counts]) -> list[bytes]:
        payload = event.removeprefix(b"data: ").strip()
        if payload == b"[DONE]":
            return [event]
        answer = read_answer(payload)
        if answer.error is not None:
            return [event]
        chunk: dict[str, Any] = {
            "id": self.identity.id,
            "object": self._kind,
            "created": self.identity.created,
            "model": self._form.model or self.identity.model,
            "choices": [],
        }
        if answer.choices:
            choice = answer.choices[0]
            if choice.delta.content is None or (not choice.delta.content and choice.finish_reason is None):
                return []  # there is no event for the role
            told: dict[str, Any] = {"delta": {"content": choice.delta.content}}
            if choice.finish_reason is not None:
                # As long as the sound is how long the answer is: it ends by itself unless it was limited.
                reason = "stop" if self._form.max_completion_tokens is None else choice.finish_reason
                told |= {"finish_reason": reason, "stop_reason": choice.stop_reason}
            chunk["choices"] = [told]
        elif not self._form.stream_include_usage:
            return []
        if answer.usage is not None:
            prompt, completion = answer.usage.prompt_tokens, answer.usage.completion_tokens
            if not answer.choices or (self._form.stream_include_usage and self._form.stream_continuous_usage_stats):
                usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
                chunk["usage"] = usage
        return [sse_event(orjson.dumps(chunk))]

    def whole(self, body: bytes, counts: Callable[[], Counts]) -> bytes:
        text = read_answer(body).choices[0].message.content or ""
        if self._form.response_format == "verbose_json":
            told: dict[str, Any] = {
                "duration": self._seconds,
                "language": self._form.language or "en",
                "text": text,
                "segments": [self._segment(text)],
                "words": None,
            }
        else:
            told = {"text": text}
            if not self._translates:
                told["usage"] = {"type": "duration", "seconds": ceil(self._seconds)}
        return orjson.dumps(told)

    def _segment(self, text: str) -> dict[str, Any]:
        raw = text.encode()
        return {
            "id": 0,
            "avg_logprob": -0.5,
            "compression_ratio": len(raw) / len(zlib.compress(raw)),
            "end": self._seconds,
            "no_speech_prob": None,
            "seek": 0,
            "start": 0.0,
            "temperature": self._form.temperature,
            "text": text,
            "tokens": [],
        }
