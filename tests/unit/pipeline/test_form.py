"""The fields of a form: those that vLLM's own reader finds, or a refusal."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.core.caller import ANONYMOUS
from gateway.core.errors import InvalidRequest, UnsupportedMediaType
from gateway.pipeline.form import boundary_of, form_asking_for_model, read_form
from gateway.pipeline.intake import call_of_form, renamed

WANTED = ("model", "stream")


def part(head: bytes, value: bytes) -> bytes:
    """One part of a form whose boundary is `b`."""
    return b"--b\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def field(name: str, value: str, more: str = "") -> bytes:
    """A part as clients write it."""
    return part(f'Content-Disposition: form-data; name="{name}"{more}'.encode(), value.encode())


END = b"--b--\r\n"
FORM = b"multipart/form-data; boundary=b"


def starlette_reads(body: bytes) -> list[tuple[str, object]]:
    """What vLLM's framework makes of it; the value of a file is None."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    async def parse() -> list[tuple[str, object]]:
        parser = MultiPartParser(Headers({"content-type": "multipart/form-data; boundary=b"}), stream())
        form = await parser.parse()
        try:
            return [(name, value if isinstance(value, str) else None) for name, value in form.multi_items()]
        finally:
            await form.close()

    return asyncio.run(parse())


def test_wanted_fields_are_read_and_all_else_is_passed_over() -> None:
    body = field("file", "x" * 9999, '; filename="a.wav"\r\nContent-Type: audio/wav') + field("language", "de" * 9999)
    body += field("model", "acme/whisper") + field("stream", "true") + END
    assert read_form(body, b"b", WANTED) == {"model": "acme/whisper", "stream": "true"}


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"content-disposition: form-data; name=model", "model"),
        (b"CONTENT-DISPOSITION:form-data;name=model", "model"),
        (b'Content-Disposition: form-data; name="model"; x=y', "model"),
        (b'X: 1\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain', "model"),
        (b'Content-Disposition: form-data; name="mod\\el"', None),
        (b'Content-Disposition: form-data; name="Model"', None),
        (b'Content-Disposition: form-data; name="model "', None),
        (b"X: form-data; name=model", None),
    ],
)
def test_a_fields_name_is_what_the_reader_behind_us_takes_for_it(head: bytes, name: str | None) -> None:
    body = part(head, b"m") + END
    assert read_form(body, b"b", WANTED) == ({} if name is None else {name: "m"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--c--\r\n",
        field("model", "m"),
        field("model", "m") + b"--b",
        field("model", "m") + field("model", "m") + END,
        field("model", "m") + field("stream", "1", '; filename="x"') + END,
        field("model", "m" * 4097) + END,
        part(b"\x00: y", b"") + END,
        part(b"x" * 20_000 + b": y", b"") + END,
        field("x", "y") * 101 + END,
        field("model", "m", "; filename*=utf-8''x") + END,
        field("model", "m", "; FileName=x") + END,
        field("model", "m", '; name="x"') + END,
        field("x", "m", '; name="model"') + END,
        field("x", "m", "; NAME = model") + END,
        field("x", "m", "; name*=utf-8''model") + END,
        part(b"Content-Disposition: form-data; name*=utf-8''model", b"m") + END,
        part(b'Content-Disposition: form-data; name*0="mo"; name*1="del"', b"m") + END,
        part(b"Content-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=model", b"m") + END,
        part(b"Content-Disposition: form-data; name=model\r\nContent-Transfer-Encoding: base64", b"bQ==") + END,
    ],
)
def test_what_does_not_mean_one_thing_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_form(body, b"b", WANTED)


def test_a_file_may_be_called_anything() -> None:
    for said in ('; filename="name=model; name*=x"', "; filename*=utf-8''n%20ame", '; filename="\\"; name=model"'):
        assert read_form(field("file", "x", said) + field("model", "m") + END, b"b", WANTED) == {"model": "m"}


def test_what_stands_before_the_first_boundary_and_behind_the_last_is_no_part() -> None:
    """Where the reader takes it at all: it is as little a field to it as to us."""
    for body in (b"\r\n" + field("model", "m") + END, field("model", "m") + END + field("model", "n")):
        try:
            assert read_form(body, b"b", WANTED) == {"model": "m"}
        except InvalidRequest:
            continue
        assert starlette_reads(body) == [("model", "m")]


def test_a_form_asks_for_no_more_answers_than_a_body() -> None:
    for said in ("8", "1", "08"):
        assert call_of_form({"model": "m", "n": said}, b"", FORM, ANONYMOUS).model == "m"
    for said in ("9", "1000000", "9" * 4000, "8.0", "1_0", "-1", " 9", "x", "", "８"):
        with pytest.raises(InvalidRequest) as refused:
            call_of_form({"model": "m", "n": said}, b"", FORM, ANONYMOUS)
        assert refused.value.param == "n"


names = st.sampled_from(["model", "stream", "file", "prompt", "mödel", 'a"b', "", "model\\"])
values = st.text(max_size=20) | st.sampled_from(["--b", "\r\n--b", "\r\n--b--", "\r\n", "b"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Forms as clients write them, and some that are a little off."""
    out = b""
    for name, value, kind in draw(st.lists(st.tuples(names, values, st.integers(0, 5)), max_size=4)):
        out += field(name, value, '; filename="f"' if kind == 0 else "")
    out += draw(st.sampled_from([END, b"--b--", b"", b"--b\r\n", END + b"epilogue"]))
    if draw(st.integers(0, 3)) == 0 and out:
        at = draw(st.integers(0, len(out) - 1))
        out = out[:at] + draw(st.binary(max_size=2)) + out[at + 1 :]
    return out


@settings(max_examples=1500)
@given(bodies())
def test_whatever_is_read_is_what_starlette_reads(body: bytes) -> None:
    try:
        found = read_form(body, b"b", WANTED)
    except InvalidRequest:
        return
    try:
        theirs = starlette_reads(body)
    except (MultiPartException, KeyError):
        return  # a pod refuses it: nothing was read in two ways
    for name in WANTED:
        there = [value for each, value in theirs if each == name]
        assert there == ([found[name]] if name in found else [])


@settings(max_examples=1000)
@given(bodies(), st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20))
def test_another_model_in_a_form_changes_its_name_and_no_other_byte(body: bytes, other: str) -> None:
    try:
        found = read_form(body, b"b", WANTED)
    except InvalidRequest:
        return
    if not found.get("model"):
        return
    parts = form_asking_for_model(body, b"b", other)
    before, name, after = (bytes(each) for each in parts)
    assert name == other.encode()
    for old in (found["model"].encode("utf-8"), found["model"].encode("latin-1", "replace")):
        if before + old + after == body:
            break
    else:
        raise AssertionError(parts)
    assert read_form(b"".join(parts), b"b", WANTED) == found | {"model": other}
    try:
        theirs = starlette_reads(body)
    except (MultiPartException, KeyError):
        return
    assert starlette_reads(b"".join(parts)) == [(key, other if key == "model" else value) for key, value in theirs]


def test_a_recording_before_or_after_the_model_is_not_copied() -> None:
    file = field("file", "x" * 9999, '; filename="a.wav"')
    body = file + field("model", "alias") + file + END
    call = call_of_form({"model": "alias"}, body, b"multipart/form-data; boundary=b", ANONYMOUS)
    sent = renamed(call, "acme/whisper")
    assert b"".join(sent.body) == file + field("model", "acme/whisper") + file + END
    assert (sent.model, sent.body_length) == ("acme/whisper", len(body) + len("acme/whisper") - len("alias"))
    assert [isinstance(part, memoryview) and part.obj is body for part in sent.body] == [True, False, True]
    assert call.body == []


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=b", b"b"),
        (b'Multipart/Form-Data;boundary="a b"', b"a b"),
        (b"multipart/form-data; charset=UTF-8; boundary=----WebKitFormBoundaryX", b"----WebKitFormBoundaryX"),
    ],
)
def test_the_boundary_is_read(content_type: bytes, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@given(st.binary(max_size=60))
def test_any_content_type_is_read_or_refused(raw: bytes) -> None:
    for content_type in (raw, b"multipart/form-data; " + raw, b"multipart/form-data; boundary=" + raw):
        with suppress(UnsupportedMediaType):
            assert boundary_of(content_type)


def test_a_file_in_a_form_is_not_kept() -> None:
    big = b"\r\n-" * 200_000
    body = part(b'Content-Disposition: form-data; name="file"; filename="a"', big) + field("model", "m") + END
    assert read_form(body, b"b", WANTED) == {"model": "m"}
