"""A body is refused, or it means the same to every reader, us among them, before and after our edits.

vLLM reads with Python's `json`, through Starlette; the others are what a pod may read with tomorrow.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pydantic_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.call import Call
from gateway.core.caller import Tenant
from gateway.core.errors import PoolgateError
from gateway.pipeline.checks import GUARDED_FIELDS
from gateway.pipeline.intake import call_of, look, renamed
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES_API, Operation

TRUSTED = Tenant("key", "team", allow_fields=frozenset(GUARDED_FIELDS))
OPERATIONS = (CHAT, COMPLETIONS, RESPONSES_API, MESSAGES, EMBEDDINGS)
READERS: tuple[Callable[[bytes], Any], ...] = (
    json.loads,
    pydantic_core.from_json,
    orjson.loads,
    msgspec.json.Decoder(float_hook=float).decode,
)

spaces = st.sampled_from(["", "", " ", "\n", "\t", "\r\n", "  "])
strings = st.sampled_from(["model", "stream", "m", "", "\x00", "é", "\U0001f600", '"', "\\", "/", "true", "url"])
right = st.sampled_from(
    [
        *("null", "true", "false", "0", "-0", "-0.0", "1", "8.0", "8", "1e2", "1E+2", "1e-400", "9" * 20, "9" * 400),
        *('"\\ud83d\\ude00"', '"\\u0000"', '"\\/"', "1" + "0" * 4299, "[" * 60 + "]" * 60),
    ]
)
odd = st.sampled_from(
    [
        *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "9" * 5000, "[" * 70 + "]" * 70),
        *('"\\ud800"', '"\\udc00\\ud800"', '"\\x"', "'a'", "[1,]", "{,}", "undefined", "", "// x", '"\t"', '"\x00"'),
    ]
)
literals = st.integers(0, 24).flatmap(lambda how: right if how else odd)


@st.composite
def texts(draw: st.DrawFn, plain: st.SearchStrategy[str] = strings) -> str:
    """A string as JSON, its letters escaped or not."""
    said = draw(plain)
    how = draw(st.integers(0, 5))
    if how == 0 and said.isascii():
        return '"' + "".join(f"\\u{ord(letter):04X}" for letter in said) + '"'
    return json.dumps(said, ensure_ascii=how < 3)


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 9))
    if kind < 3 or not depth:
        return draw(literals)
    if kind < 6:
        return draw(texts())
    inner = draw(st.lists(values(depth - 1), max_size=3))
    if kind < 8:
        return f"[{','.join(inner)}]"
    return "{" + ",".join(f"{draw(texts())}{draw(spaces)}:{each}" for each in inner) + "}"


KEYS = st.sampled_from(
    [
        *("stream", "stream_options", "stream_options", "n", "messages", "prompt", "input", "user", "max_tokens"),
        *("Model", "MODEL", "modeL", "cache_salt", "priority", "previous_response_id", "background", "logprobs", "x"),
        *("best_of", "tools", "stop", "response_format", "", "\x00", "é", 'a"model', "model\x00", "model "),
        *("temperature", "top_p", "seed"),
    ]
)
USUAL = {
    "stream": st.sampled_from(["true", "true", "false", "null"]),
    "stream_options": st.sampled_from(
        ['{"include_usage":true}', '{"include_usage": false , "x":1}', "null", "{}", '{"include_usage":true,"a":[{}]}']
    ),
    "n": st.sampled_from(["1", "2", "null", "8"]),
    "logprobs": st.sampled_from(["true", "5", "-1"]),
    "best_of": st.sampled_from(["1", "8", "9"]),
    "previous_response_id": st.just("null"),
    "background": st.sampled_from(["false", "null"]),
    "temperature": st.sampled_from(["0", "0.7", "1e0"]),
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies that are mostly right, and odd in one place or another."""
    pairs = [(draw(texts(st.just("model"))), draw(texts(st.sampled_from(["m", "acme/m", "é", "m\x00", 'a"b']))))]
    if draw(st.booleans()):
        pairs.append((draw(texts(st.just("stream"))), "true"))
    for key in draw(st.lists(KEYS, max_size=5, unique=draw(st.integers(0, 5)) > 0)):
        usual = USUAL.get(key)
        value = draw(usual) if usual is not None and draw(st.integers(0, 9)) else draw(values())
        pairs.append((draw(texts(st.just(key))), value))
    if draw(st.integers(0, 5)) == 0:
        pairs.append(draw(st.sampled_from(pairs)))
    between = draw(st.sampled_from([(",", ":"), (", ", ": "), None]))
    parts = []
    for key, value in draw(st.permutations(pairs)):
        if between is None:
            parts.append(f"{draw(spaces)}{key}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}")
        else:
            parts.append(f"{key}{between[1]}{value}")
    text = "{" + (between or (",", ""))[0].join(parts) + "}"
    how = draw(st.integers(0, 30))
    if how == 0:
        return text.encode(draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])), "replace")
    tail = draw(st.sampled_from([b" x", b"\x00", b"{}", b"\xff", b","])) if how == 1 else b""
    return (draw(spaces) + text + draw(spaces)).encode() + tail


def alike(one: Any, other: Any) -> bool:
    """Equal, where a whole number beyond 64 bits may have become a float, as with some readers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or not isinstance(one, int | float):
        return type(one) is type(other) and bool(one == other)
    return isinstance(other, int | float) and (one == other or as_double(one) == as_double(other))


def as_double(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def read_by_all(raw: bytes) -> Any:
    """What the body says, by Python's reader, which every other one that reads it bears out."""
    told = json.loads(raw)
    for reader in READERS[1:]:
        try:
            other = reader(raw)
        except (ValueError, msgspec.MsgspecError):
            continue  # it refuses what others read: no second meaning
        assert alike(told, other), reader
    return told


def accepted(raw: bytes, operation: Operation) -> Call | None:
    try:
        return call_of(look(raw, operation), operation, TRUSTED)
    except PoolgateError as refused:
        error = refused
    assert error.http_status in (400, 403)
    assert json.loads(error.body())["error"]["code"] == error.code
    return None


@settings(max_examples=3000)
@given(bodies(), st.sampled_from(OPERATIONS))
def test_a_body_is_refused_or_means_one_thing(raw: bytes, operation: Operation) -> None:
    call = accepted(raw, operation)
    if call is None:
        return
    told = read_by_all(raw)
    assert call.model == told["model"]
    assert call.stream is (told.get("stream") is True and operation.streams)
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice[:] = [key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1]
        return dict(pairs)

    json.loads(raw, object_pairs_hook=once)  # the outermost object comes last
    assert twice == []
    sent = b"".join(call.body)
    assert len(sent) == call.body_length
    expected = dict(told)
    if call.stream and operation.asks_usage:
        options = dict(told.get("stream_options") or {})
        assert call.wants_usage is (options.get("include_usage") is True)
        if not call.wants_usage:
            options.pop("continuous_usage_stats", None)
            expected["stream_options"] = {**options, "include_usage": True}
    assert alike(read_by_all(sent), expected)
    if call.model != "other/модель":
        again = b"".join(renamed(call, "other/модель").body)
        assert alike(read_by_all(again), {**expected, "model": "other/модель"})
    for name in ("n", "best_of"):
        assert told.get(name) is None or (type(told[name]) is int and told[name] <= 8)
    if type(told.get("logprobs")) is int:
        assert 0 <= told["logprobs"] <= 20


@settings(max_examples=1500)
@given(st.binary(max_size=40) | bodies().flatmap(lambda raw: st.integers(0, len(raw)).map(lambda at: raw[:at])))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    if accepted(raw, CHAT) is not None:
        read_by_all(raw)


@pytest.mark.parametrize("size", [100, 70_000, 300_000])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
def test_a_key_is_found_twice_in_a_body_of_any_size(size: int, separators: tuple[str, str]) -> None:
    between, behind = separators
    prompt = json.dumps([{"role": "user", "content": 'say "messages": [] and \\u0041 ' * (size // 30)}])
    pairs = [('"tools"', '[{"messages":1}]'), ('"messages"', prompt), ('"model"', '"m"'), ('"stream"', "true")]

    def body(more: list[tuple[str, str]]) -> bytes:
        return ("{" + between.join(f"{key}{behind}{value}" for key, value in pairs + more) + "}").encode()

    assert accepted(body([]), CHAT) is not None
    assert accepted(body([('"metadata"', prompt)]), CHAT) is not None
    for key, value in [*pairs, ('"str\\u0065am"', "false"), ('"\\u006dessages"', "[]")]:
        assert accepted(body([(key, value)]), CHAT) is None
    for key in ("user", "whatever"):
        assert accepted(body([(f'"{key}"', "1"), (f'"{key}"', "2")]), CHAT) is None
