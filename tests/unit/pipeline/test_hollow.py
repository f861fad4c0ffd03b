"""A large body is looked at without what its long messages say: nothing else of it goes unseen."""

import json
from typing import Any

import pytest

from gateway.balancing.affinity import KEY_BYTES, beginning_key, blocks_of
from gateway.core.caller import ANONYMOUS
from gateway.core.errors import InvalidJson, InvalidRequest
from gateway.pipeline.body import MAX_NESTING, Hollow, Prompt, members, members_of, places_of
from gateway.pipeline.caps import LENGTHS, THE_USUAL_CAPS
from gateway.pipeline.intake import (
    LONG_STRING_BYTES,
    WORTH_CUTTING_BYTES,
    Look,
    call_of,
    check_media,
    look,
    looking,
)
from gateway.pipeline.operations import CHAT, COMPLETIONS, MESSAGES, RESPONSES_API, Operation
from gateway.upstream.usage import BYTES_PER_TOKEN

LONG = 'He said: "\\ 1234 [{ é \U0001f600".\n' * 300
PLAIN = "once upon a time " * 500
SPELLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"separators": (",", ":")},
    {"indent": 2},
    {"separators": (" ,", " : ")},
    {"ensure_ascii": False},
)


def said(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def raw(body: Any, **spelling: Any) -> bytes:
    return json.dumps(body, **spelling).encode()


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


def hollow_of(seen: Look) -> Hollow:
    assert seen.hollow is not None
    return seen.hollow


def emptied(value: Any, most: int = LONG_STRING_BYTES) -> Any:
    """The value with nothing in its long strings."""
    if isinstance(value, dict):
        return {key: emptied(each, most) for key, each in value.items()}
    if isinstance(value, list):
        return [emptied(each, most) for each in value]
    return "" if isinstance(value, str) and len(value) > most else value


LARGE: tuple[tuple[Operation, dict[str, Any]], ...] = (
    (CHAT, chat(said(LONG))),
    (CHAT, chat(said("be brief", "system"), said(LONG), said("yes", "assistant"), said(PLAIN), seed=1, stream=True)),
    (CHAT, chat(said([{"type": "text", "text": LONG}, {"type": "text", "text": "?"}]), said(LONG, "assistant"))),
    (CHAT, chat(said(None, "assistant", tool_calls=[{"id": "a"}]), said(LONG, "tool", tool_call_id="a"))),
    (CHAT, {"messages": [said(LONG), said(LONG), said(LONG)], "user": "u", "model": "m"}),
    (MESSAGES, {"system": LONG, **chat(said(PLAIN), said([{"type": "text", "text": LONG}]))}),
    (MESSAGES, {**chat(said(LONG), said("yes", "assistant"), said("?")), "max_tokens": 5, "system": PLAIN}),
    (CHAT, {**chat(said("?"), said(LONG, "assistant"), said("?")), "tools": [{"name": "t" * 600}]}),
    (COMPLETIONS, {"prompt": LONG, "model": "m"}),
    (RESPONSES_API, {"model": "m", "instructions": PLAIN, "input": LONG}),
)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
@pytest.mark.parametrize(("operation", "body"), LARGE)
def test_what_is_left_out_are_long_words_and_nothing_else(
    operation: Operation, body: dict[str, Any], spelling: dict[str, Any]
) -> None:
    text = raw(body, **spelling)
    seen = look(text, operation)
    hollow = hollow_of(seen)
    assert json.loads(hollow.text) == emptied(body)
    assert len(text) - len(hollow.text) == sum(count for _, count in hollow.gaps)
    told = json.loads(text)
    for name, (start, end) in places_of(hollow.text, seen.members).items():
        assert hollow.text[start:end] == bytes(seen.members[name])
        assert json.loads(text[hollow.in_whole(start) : hollow.in_whole(end)]) == told[name]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
@pytest.mark.parametrize(("operation", "body"), LARGE)
def test_the_prompt_is_that_of_the_whole_body(
    operation: Operation, body: dict[str, Any], spelling: dict[str, Any]
) -> None:
    text = raw(body, **spelling)
    values = {member.key: text[member.value_start : member.value_end] for member in members(text)}
    order = ("tools", "system", "instructions", "messages", "prompt", "input")
    parts = [values[name] for name in order if name in values]
    whole, prompt, seed = b"".join(parts), look(text, operation).prompt, ("m", b"")
    assert prompt.text[prompt.start : prompt.end] == whole
    assert blocks_of(prompt.text, seed, prompt.start, prompt.end) == blocks_of(whole, seed)
    assert prompt.beginning(KEY_BYTES) == whole[:KEY_BYTES]
    mark = b'"assistant"'
    assert prompt.before(mark, KEY_BYTES) == Prompt.of(parts).before(mark, KEY_BYTES)
    if mark in whole:
        assert whole[: whole.index(mark)].endswith(prompt.before(mark, KEY_BYTES))
    assert beginning_key(prompt.before(mark, KEY_BYTES), seed)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_usage_is_asked_for_beside_a_long_message(spelling: dict[str, Any]) -> None:
    options = {"include_usage": False, "other": [1]}
    for body in (
        chat(said(LONG), stream=True, stream_options=options),
        {"stream_options": options, **chat(said(LONG), stream=True)},
        chat(said(LONG), said(PLAIN), stream=True),
    ):
        seen = look(raw(body, **spelling), CHAT)
        assert hollow_of(seen).gaps
        call = call_of(seen, CHAT, ANONYMOUS)
        sent = json.loads(b"".join(call.body))
        assert sent.pop("stream_options")["include_usage"] is True
        body.pop("stream_options", None)
        assert sent == body


def test_words_are_tokens_by_their_length_whatever_they_look_like() -> None:
    """A text that quotes an image is read as text."""
    text = raw(chat(said("see ;base64," + "x" * 100_000)))
    assert call_of(look(text, CHAT), CHAT, ANONYMOUS).prompt_tokens_estimate == len(text) // BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('"user":"a","user":"b"', "twice"),
        ('"messages":[]', "'messages' stands in the body twice"),
        (f'"x":{"[" * MAX_NESTING}{"]" * MAX_NESTING}', "nests deeper"),
        (f'"x":{"9" * 5000}', "too many digits"),
        ('"seed":1e999', "out of range"),
        ('"x":"\\ud800"', "half a surrogate pair"),
        ('"x":nul', "not valid JSON"),
    ],
)
def test_what_is_wrong_beside_a_long_message_is_found(more: str, told: str) -> None:
    message = json.dumps(said(LONG))
    for text in (
        f'{{"model":"m","messages":[{message}],{more}}}',
        f'{{{more},"model":"m","messages":[{message}]}}',
    ):
        with pytest.raises((InvalidJson, InvalidRequest), match=told):
            call_of(look(text.encode(), CHAT), CHAT, ANONYMOUS)


def test_what_is_wrong_within_a_long_message_is_found_and_its_place_told() -> None:
    text = raw(chat(said(PLAIN), said(PLAIN)))
    at = text.rindex(b"once")
    for broken, told in ((b"\x01nce", f"byte {at}"), (b"\\x31ce", "byte"), (b"\xffnce", f"byte {at}")):
        with pytest.raises(InvalidJson, match=told):
            look(text[:at] + broken + text[at + 4 :], CHAT)


def test_media_beside_a_long_message_are_looked_at() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    seen = look(raw(chat(said([{"type": "text", "text": LONG}, image]))), CHAT)
    assert hollow_of(seen).gaps
    assert seen.may_name_urls
    with pytest.raises(InvalidRequest, match="may not fetch"):
        check_media(seen, THE_USUAL_CAPS)


@pytest.mark.parametrize("elsewhere", ["before", "behind"])
@pytest.mark.parametrize(
    "decoy",
    [
        {"content": PLAIN},
        {"metadata": {"content": PLAIN}},
        {"response_format": {"schema": {"content": PLAIN}}},
        {"x": [{"messages": [said(PLAIN)]}]},
    ],
    ids=lambda decoy: str(next(iter(decoy))),
)
def test_the_same_words_elsewhere_are_never_left_out(decoy: dict[str, Any], elsewhere: str) -> None:
    body = chat(said(PLAIN))
    body = {**decoy, **body} if elsewhere == "before" else {**body, **decoy}
    seen = look(raw(body), CHAT)
    (name,) = decoy
    assert json.loads(bytes(seen.members[name])) == decoy[name]
    assert json.loads(seen.prompt.text[seen.prompt.start : seen.prompt.end]) == body["messages"]


def test_no_cap_on_a_fields_length_is_passed_under_by_saying_it_in_a_message_too() -> None:
    words = "x" * (LENGTHS["text"] + 10)
    for part in (words, [{"type": "text", "text": words}]):
        body = raw({"text": words, **chat(said(part))})
        with pytest.raises(InvalidRequest, match="'text' may be"):
            call_of(look(body, CHAT), CHAT, ANONYMOUS)


@pytest.mark.parametrize(
    "messages",
    [
        '{"role":"user","content":LONG},{"role":"user","content":"a","content":LONG}',
        '{"role":"user","content":LONG,"content":"a"}',
        '{"content":{"content":LONG}}',
        '{"content":[{"text":{"text":LONG}}]}',
        '{"content":["text",LONG]}',
        '{"\\"content":LONG,"content":LONG}',
        '{"con\\u0074ent":LONG}',
        "LONG,LONG",
        "[LONG]",
        "null",
    ],
)
def test_odd_messages_are_looked_at_as_they_are(messages: str) -> None:
    text = f'{{"model":"m","messages":[{messages}],"user":LONG}}'.replace("LONG", json.dumps(LONG)).encode()
    seen = look(text, CHAT)
    assert seen.model == "m"
    hollow = seen.hollow or Hollow(text)
    assert [member.key for member in members(hollow.text)] == ["model", "messages", "user"]
    assert members_of(hollow.text, seen.members) == members(hollow.text)
    for start, count in hollow.gaps:
        # A whole string, but for its quotes.
        json.loads(text[start - 1 : start + count + 1])
    assert bytes(seen.members["user"]) == json.dumps(LONG).encode()


def test_many_messages_are_looked_at_whole() -> None:
    """To leave each of them out would cost more than to look at it, or keep too much in memory."""
    assert look(raw(chat(*[said("x" * 1100)] * 40)), CHAT).hollow is None
    assert look(raw(chat(*[said("x" * 300)] * 3000)), CHAT).hollow is None
    assert hollow_of(look(raw(chat(*[said("x" * 300)] * 2000)), CHAT)).gaps


def test_a_small_body_is_looked_at_whole() -> None:
    text = raw(chat(said("x" * (WORTH_CUTTING_BYTES - len(raw(chat(said(""))))))))
    assert len(text) == WORTH_CUTTING_BYTES
    assert look(text, CHAT).hollow is None
    assert hollow_of(look(text.replace(b'"x', b'"xx', 1), CHAT)).gaps


def test_keys_that_are_looked_for_in_vain_bound_the_search() -> None:
    """Each costs a step of Python's."""
    long = raw(LONG)
    many = b",".join(b'{"content":"%d"}' % number for number in range(1000))
    text = b'{"a":[%b],"b":{"content":%b}}' % (many, long)
    assert Hollow(text).without([(b'"content"', long)], misses=999) == Hollow(text)
    assert Hollow(text).without([(b'"content"', long)], misses=1001).gaps == [(text.index(long) + 1, len(long) - 2)]


@pytest.mark.parametrize("kind", ["words", "brackets", "numbers", "messages"])
def test_a_large_body_is_looked_at_in_steps(kind: str) -> None:
    inner = {
        "words": json.dumps(said("x" * 1_000_000)),
        "brackets": ",".join(["[[]]"] * 60_000),
        "numbers": "[" + ",".join(["1"] * 500_000) + "]",
        "messages": ",".join([json.dumps(said("Hello there"))] * 20_000),
    }[kind]
    body = f'{{"model":"m","messages":[{inner}]}}'.encode()
    steps, count, seen = looking(body, CHAT), 0, None
    while seen is None:
        try:
            next(steps)
            count += 1
        except StopIteration as last:
            seen = last.value
    assert seen == look(body, CHAT)
    assert count >= 5


@pytest.mark.parametrize("length", [1, WORTH_CUTTING_BYTES], ids=["small", "large"])
def test_a_message_that_ends_with_the_word_is_no_answer(length: int) -> None:
    mark = b'"assistant"'
    question, answer = said("?" * length + 'say "assistant'), said("yes", "assistant")
    for messages, end in (((question,), KEY_BYTES), ((question, answer), -1), ((answer, question), -1)):
        whole = raw(list(messages))
        if end < 0:
            end = whole.index(b'"role": "assistant"') + len(b'"role": ')
        assert look(raw(chat(*messages)), CHAT).prompt.before(mark, KEY_BYTES) == whole[max(0, end - KEY_BYTES) : end]
