"""Bodies of requests: what was checked is what is forwarded, whatever stands there."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import yarl
from urllib3.util import parse_url

from gateway.core.call import Call
from gateway.core.caller import Tenant
from gateway.core.errors import InvalidRequest, PoolgateError, UnsupportedMediaType
from gateway.pipeline.body import MAX_NESTING
from gateway.pipeline.caps import THE_USUAL_CAPS
from gateway.pipeline.checks import GUARDED_FIELDS
from gateway.pipeline.familiar import OFTEN, Familiar
from gateway.pipeline.form import boundary_of, read_form
from gateway.pipeline.intake import (
    FORM_FIELDS,
    call_of,
    call_of_form,
    check_json,
    check_media,
    look,
    renamed,
)
from gateway.pipeline.media import may_be_fetched
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES_API, TOKENIZE
from tests.fuzz.target import Target, first_and_rest

OPERATIONS = (CHAT, COMPLETIONS, RESPONSES_API, MESSAGES, EMBEDDINGS, TOKENIZE)
TRUSTED = Tenant("fuzz", "fuzz", allow_fields=frozenset(GUARDED_FIELDS))
USAGE_ASKED = {"include_usage", "continuous_usage_stats"}
PADDING = b"z" * 70_000
MEDIA = ("image_url", "audio_url", "video_url")
HOSTS = ("media.example", "*.cdn.example")
BOUNDARY = b"fuzz-boundary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY


def pairs(text: bytes) -> list[tuple[str, Any]]:
    """The members of an object by Python's own parser, numbers as they are written. Raises `ValueError`."""

    def refused(word: str) -> Any:
        raise ValueError(word)

    told = json.loads(
        text.decode("utf-8"), object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=refused
    )
    if not isinstance(told, list) or not text.lstrip().startswith(b"{"):
        raise ValueError("no object")
    return told


def call_in(body: bytes, choice: int) -> Call | None:
    """As `serve` reads it; None if it is refused."""
    operation = OPERATIONS[choice % len(OPERATIONS)]
    try:
        seen = look(body, operation)
        if seen.may_name_urls:
            check_media(seen, THE_USUAL_CAPS)
        return call_of(seen, operation, TRUSTED)
    except PoolgateError as refused:
        error = refused
    assert json.loads(error.body())["error"]["code"] == error.code
    return None


def json_body(data: bytes) -> None:
    """What is accepted means one thing to a second parser; what goes on differs from it by our edits alone."""
    choice, body = first_and_rest(data)
    if choice & 64:
        body = body.replace(b"~", PADDING, 2)
    call = call_in(body, choice)
    if call is None:
        return
    told = pairs(body)
    names = [name for name, _ in told]
    assert len(set(names)) == len(names)
    assert dict(told)["model"] == call.model
    assert call.stream <= (dict(told).get("stream") is True)
    assert len(b"".join(call.body)) == call.body_length
    assert depth(told) <= MAX_NESTING
    assert all(url.lower().startswith("data:") for url in urls_of(dict(told).get("messages")))
    sent = pairs(b"".join(call.body))
    asked = call.stream and OPERATIONS[choice % len(OPERATIONS)].asks_usage
    if asked:
        options = dict(sent)["stream_options"]
        if not call.wants_usage:
            assert [value for name, value in options if name == "include_usage"] == [True]
        told_options = dict(told).get("stream_options") or []
        assert [each for each in options if each[0] not in USAGE_ASKED] == [
            each for each in told_options if each[0] not in USAGE_ASKED
        ]
    assert [each for each in sent if each[0] != "stream_options" or not asked] == [
        each for each in told if each[0] != "stream_options" or not asked
    ]
    other = renamed(call, "another/модель")
    named = pairs(b"".join(other.body))
    assert dict(named)["model"] == "another/модель"
    assert [each for each in named if each[0] != "model"] == [each for each in sent if each[0] != "model"]


def familiar_body(data: bytes) -> None:
    """Where its frame is known from a body with no messages, a body is what a look at all of it says, or unknown."""
    choice, body = first_and_rest(data)
    operation = OPERATIONS[choice % len(OPERATIONS)]
    if choice & 64:
        body = body.replace(b"~", PADDING, 2)
    first, last = body.find(b"["), body.rfind(b"]") + 1
    familiar = Familiar()
    for _ in range(OFTEN):
        familiar.note(body[: max(first, 0)] + b"[]" + body[last:], operation, THE_USUAL_CAPS)
    told = familiar.told(body, operation, THE_USUAL_CAPS)
    if told is None:
        return
    seen, call = told
    looked = call_in(body, choice)
    assert looked is not None
    assert call._replace(body=[], model_at=None, prompt_tokens_estimate=0) == looked._replace(
        body=[], prompt_tokens_estimate=0
    )
    assert [bytes(part) for part in call.body] == [bytes(part) for part in looked.body]
    assert call.prompt_tokens_estimate >= looked.prompt_tokens_estimate
    assert seen.prompt.text[seen.prompt.start : seen.prompt.end] == body[first:last]
    json_body(data)


def urls_of(messages: Any) -> Iterator[str]:
    """What stands in messages where everybody puts an image, a sound or a film."""
    for message in messages if isinstance(messages, list) else ():
        content = dict(message).get("content") if is_object(message) else None
        for part in content if isinstance(content, list) else ():
            for name, inner in part if is_object(part) else ():
                url = dict(inner).get("url") if is_object(inner) else inner
                # Numbers come as texts too.
                if name in MEDIA and isinstance(url, str) and url[:1] not in set("-0123456789"):
                    yield url


def is_object(value: Any) -> bool:
    """Of what `pairs` gives."""
    return isinstance(value, list) and all(isinstance(each, tuple) for each in value)


def media_url(data: bytes) -> None:
    """A URL that passes has, to each library that may fetch it, the host that was looked at."""
    url = data.decode("utf-8", "replace")
    if not may_be_fetched(url, HOSTS) or url[:5].lower() == "data:":
        return
    for host in (parse_url(url).host, yarl.URL(url).host, urlsplit(url).hostname):
        assert host is not None
        assert host == "media.example" or host.endswith(".cdn.example"), host


def depth(value: Any) -> int:
    """Of what `pairs` gives: an object is a list of tuples there."""
    if isinstance(value, tuple):
        return depth(value[1])
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def form(data: bytes) -> None:
    """Refused, or read; and with another model's name in it, it reads as before but for that."""
    try:
        found = read_form(data, BOUNDARY, FORM_FIELDS)
        call = call_of_form(found, data, FORM, TRUSTED)
    except PoolgateError:
        return
    assert found.keys() <= FORM_FIELDS
    if call.model == "another":
        return
    again = read_form(b"".join(renamed(call, "another").body), BOUNDARY, FORM_FIELDS)
    assert again == {**found, "model": "another"}


def content_type(data: bytes) -> None:
    """Taken for JSON only where everybody would; a boundary is one that a form can have."""
    try:
        check_json(data)
    except UnsupportedMediaType:
        pass
    else:
        media, _, parameters = data.lower().partition(b";")
        assert media.strip() == b"application/json"
        assert b"charset" not in parameters or b"utf-8" in parameters or b"utf8" in parameters
        assert b"utf-7" not in parameters
    try:
        boundary = boundary_of(data)
    except UnsupportedMediaType:
        return
    assert 0 < len(boundary) <= 70
    assert data.lower().lstrip().startswith(b"multipart/form-data")
    part = b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--%b--\r\n' % (boundary, boundary)
    try:
        assert read_form(part, boundary, ("model",)) == {"model": "m"}
    except InvalidRequest:
        raise AssertionError("a form with this boundary is not read") from None


def field(name: str, value: str) -> bytes:
    return f'--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def form_of(fields: Mapping[str, str]) -> bytes:
    return b"".join(field(*each) for each in fields.items()) + b"--" + BOUNDARY + b"--\r\n"


CHAT_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}]'
TARGETS = {
    "json_body": Target(
        json_body,
        ("gateway.pipeline.intake", "gateway.pipeline.checks", "gateway.pipeline.body", "gateway.pipeline.media"),
        (
            b'\x40{"model":"m","messages":[{"role":"user","content":"~"}],"stream":true,"x":"~"}',
            b'\x41{"prompt":"~","model":"m","mod\\u0065l":"n","prompt":"b"}',
            b'\x40{"a":[{"model":1}],"model":"m","messages":[{"content":[{"type":"image_url","image_url":"~"}]}]}',
            b"\0" + CHAT_BODY + b"}",
            b"\0" + CHAT_BODY + b',"stream":true}',
            b"\0" + CHAT_BODY + b',"stream":true,"stream_options":{"include_usage":false,"x":[1,2]},"n":2}',
            b'\0 {"stream_options" : null , "stream" : true , "model" : "m" , "messages" : [ ] } ',
            b'\0{"mod\\u0065l":"m","model":"m"}',
            b'\0{"model":"m","model":"n"}',
            b'\0{"model":"\\ud800"}',
            b'\0{"model":"m","x":NaN}',
            b'\0{"model":"m","x":1e999,"y":' + b"9" * 5000 + b"}",
            b'\0{"model":"m","a":{"model":"m"},"b":"\\"model\\":\\"m\\""}',
            b"\0" + b"[" * 200 + b"]" * 200,
            b'\0{"model":"m","x":' + b"[" * 70 + b"]" * 70 + b"}",
            b'\0\xef\xbb\xbf{"model":"m"}',
            '\0{"model":"m"}'.encode("utf-16"),
            b"\0null",
            b'\0{"model":"m\\u0000"} trailing',
            b'\1{"model":"m","prompt":["a","b"],"max_tokens":"5","n":3}',
            b'\1{"model":"m","prompt":[1,2],"stream":true,"logprobs":5,"best_of":2,"echo":true}',
            b'\2{"model":"m","input":"x","previous_response_id":null,"background":false,"stream":true}',
            b'\3{"model":"m","system":"s","messages":[],"max_tokens":5,"tools":[{}]}',
            b'\4{"model":"m","input":[[1,2],[3]],"cache_salt":"s","priority":1}',
            (
                b'\0{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":'
                b'{"url":"http://169.254.169.254/"}}]}]}'
            ),
        ),
        tokens=(b'"model"', b'"stream"', b'"stream_options"', b"\\u00", b'"messages"', b"true", b"null", b"{", b"}"),
    ),
    "familiar_body": Target(
        familiar_body,
        ("gateway.pipeline.familiar",),
        (
            b'\x40{"model":"m","messages":[{"role":"user","content":"~"}],"stream":true}',
            b"\0" + CHAT_BODY + b"}",
            b"\0" + CHAT_BODY + b',"stream":true,"stream_options":{"include_usage":true},"n":2}',
            b'\0{"model":"m","messages": [ {"content":"x", "role":"assistant"} , {"role":"a","content":"\\"[{"} ] }',
            b'\3{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00"}],"max_tokens":5}',
            b'\0{"model":"m","messages":[],"x":[{"url":"y"}]}',
            b'\0{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":"~"}]}]}',
            b'\0{"x":{"messages":[{"role":"user","content":"?"}],"model":"m"},"messages":{}}',
        ),
        tokens=(
            b'"messages":',
            b"[",
            b"]",
            b"],",
            b",[",
            b'"role":',
            b'"content":',
            b'"assistant"',
            b"\\",
            b"\xff",
            b"{}",
        ),
    ),
    "form": Target(
        form,
        ("gateway.pipeline.form",),
        (
            form_of({"model": "m", "language": "en"}),
            form_of({"stream": "true", "model": "a/b", "stream_include_usage": "1"}),
            field("file", "x").replace(b'name="file"', b'name="file"; filename="a.wav"') + form_of({"model": "m"}),
            form_of({"model": "m"}).replace(b"form-data;", b"form-data ; name*=utf-8''model;"),
            form_of({"model": "m"}).replace(b"\r\n", b"\n"),
            field("model", "m") + form_of({"model": "n"}),
            form_of({"model": "m"})[:-6],
            b"--" + BOUNDARY + b"--\r\n",
            form_of({"model": ""}),
        ),
        tokens=(b"--" + BOUNDARY, b"\r\n", b"Content-Disposition: form-data; ", b'name="model"', b"filename"),
    ),
    "media_url": Target(
        media_url,
        ("gateway.pipeline.media",),
        (
            b"https://media.example/a.png?x=y",
            b"http://media.example:80/",
            b"HTTPS://a.CDN.example",
            b"https://media.example@evil/",
            b"https://media.example\\@evil/",
            b"https://evil#.cdn.example",
            b"https://evil?.cdn.example/",
            "https://media.example。evil/".encode(),
            b"https://[::1].cdn.example/",
            b"data:image/png;base64,AA",
        ),
        max_bytes=200,
        tokens=(b"media.example", b".cdn.example", b"https://", b"@", b"\\", b"#", b"?", b"%2F", b":80"),
    ),
    "content_type": Target(
        content_type,
        ("gateway.pipeline.intake", "gateway.pipeline.form"),
        (
            b"application/json",
            b"Application/JSON ; charset=UTF-8",
            b'application/json; charset="utf-8"',
            b"application/json; charset=utf-7",
            b"text/plain",
            b"application/json; a=b; charset=utf8",
            FORM,
            b'multipart/form-data; boundary="a b"',
            b"multipart/form-data; boundary=x; charset=latin-1",
            b"multipart/form-data; boundary*=utf-8''x",
        ),
        max_bytes=256,
        tokens=(b"boundary=", b"charset=", b"utf-8", b'"', b";"),
    ),
}
