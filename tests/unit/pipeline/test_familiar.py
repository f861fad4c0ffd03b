"""A body whose frame is known says what a look at it would say; where it might not, it is looked at."""

import json
from typing import Any

import pytest

from gateway.core.call import Call
from gateway.core.caller import ANONYMOUS
from gateway.pipeline.caps import THE_USUAL_CAPS, Caps
from gateway.pipeline.familiar import MAX_FRAMES, MAX_SIDE_BYTES, OFTEN, UNPLAIN, Familiar
from gateway.pipeline.intake import PROMPT_FIELDS, WORTH_CUTTING_BYTES, Look, call_of, look, renamed
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES_API, Operation

WORDS = "Name three colours. "
LENGTHS = (1, 2 * WORTH_CUTTING_BYTES // len(WORDS))
MARK = b'"assistant"'


def said(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def body_of(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": list(messages), **more}, ensure_ascii=False).encode()


def knowing(*bodies: bytes, operation: Operation = CHAT, caps: Caps = THE_USUAL_CAPS) -> Familiar:
    """One to which these came as often as it takes."""
    familiar = Familiar()
    for body in bodies:
        for _ in range(OFTEN):
            familiar.note(body, operation, caps)
    return familiar


def told(familiar: Familiar, body: bytes, operation: Operation = CHAT) -> tuple[Look, Call] | None:
    return familiar.told(body, operation, THE_USUAL_CAPS)


def as_bytes(call: Call) -> Call:
    return call._replace(body=[bytes(part) for part in call.body], model_at=None)


def assert_as_looked_at(known: tuple[Look, Call], body: bytes, operation: Operation = CHAT) -> None:
    """All that anybody asks of them."""
    (seen, call), looked = known, look(body, operation)
    assert as_bytes(call) == as_bytes(call_of(looked, operation, ANONYMOUS))
    assert (seen.body, seen.model, seen.stream, seen.may_name_urls) == (body, looked.model, looked.stream, False)
    assert (seen.session, seen.cache_salt) == (looked.session, looked.cache_salt)
    prompt, other = seen.prompt, looked.prompt
    assert prompt.text[prompt.start : prompt.end] == other.text[other.start : other.end]
    assert prompt.beginning(99) == other.beginning(99)
    assert prompt.before(MARK, 99) == other.before(MARK, 99)


@pytest.mark.parametrize("times", LENGTHS)
@pytest.mark.parametrize("operation", [CHAT, MESSAGES], ids=lambda operation: operation.label)
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"temperature": 0.2, "max_tokens": 256},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"n": 3, "max_completion_tokens": 7, "prompt_cache_key": "k", "user": "ü"},
    ],
    ids=str,
)
def test_what_is_known_is_what_a_look_would_say(beside: dict[str, Any], operation: Operation, times: int) -> None:
    familiar = knowing(body_of(said("?"), **beside), operation=operation)
    for messages in (
        [],
        [said(WORDS * times)],
        [said("be brief", "system"), said(WORDS * times), said('Réd \\ "blue" \'[{', "assistant"), said("?")],
        [said("\U0001f600\n" * times), said(WORDS, "assistant")],
        [said('say "assistant'), said("assistant" * times), said('say "assistant' * times, "assistant")],
        [said("assistant"), said(WORDS * times)],
        [said('a url"' * times + "data:image/png;base64,")],
    ):
        body = body_of(*messages, **beside)
        known = told(familiar, body, operation)
        assert known is not None
        assert_as_looked_at(known, body, operation)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [True, False], ids=["before the messages", "behind them"])
def test_where_the_model_is_named_is_known_if_that_is_before_the_messages(first: bool, stream: bool) -> None:
    members = {"model": "m", "messages": [said(WORDS)], "stream": stream}
    body = json.dumps(members if first else dict(reversed(members.items()))).encode()
    known = told(knowing(body), body)
    assert known is not None
    call = known[1]
    assert (call.model_at is not None) is first
    sent = json.loads(b"".join(renamed(renamed(call, "other"), "ü").body))
    assert sent == members | {"model": "ü"} | ({"stream_options": {"include_usage": True}} if stream else {})


def test_the_spelling_of_the_rest_is_no_matter() -> None:
    for spelling in ({"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,", " : ")}):
        first, second = (
            json.dumps({"max_tokens": 5, "messages": [said(text)], "model": "m"}, **spelling).encode()
            for text in ("one", "another")
        )
        known = told(knowing(first), second)
        assert known is not None
        assert_as_looked_at(known, second)


@pytest.mark.parametrize("times", LENGTHS)
@pytest.mark.parametrize(
    "message",
    [
        said([{"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}]),
        said([{"type": "text", "text": WORDS}]),
        said(None),
        said(5),
        said(WORDS, tool_calls=[]),
        {"role": "user"},
        {"content": "no role"},
        {"role": None, "content": "?"},
        "no message",
        None,
    ],
    ids=str,
)
def test_what_is_not_plain_is_looked_at(message: Any, times: int) -> None:
    for body in (body_of(message, said(WORDS * times)), body_of(said(WORDS * times), message)):
        assert told(knowing(body_of(said("?"))), body) is None


@pytest.mark.parametrize("times", LENGTHS)
@pytest.mark.parametrize(
    "content",
    [
        *(
            b'"\xff"',
            b'"\xc3"',
            b'"\xed\xa0\x80"',
            b'"\\ud800"',
            b'"\\x"',
            b'"\n"',
            b'"\x00"',
            b'"no end',
            b"NaN",
            b"'a'",
            b"",
        ),
        *(b'"a","content":1', b'"a"]}],"x":[{"y":["b"'),
    ],
)
def test_what_is_no_json_is_looked_at(content: bytes, times: int) -> None:
    first = body_of(said(WORDS * times), said("here"))
    assert told(knowing(first), first) is not None
    assert told(knowing(first), first.replace(b'"here"', content)) is None


@pytest.mark.parametrize("times", LENGTHS)
@pytest.mark.parametrize("spelling", [b'"content"', b'"c\\u006fntent"'])
@pytest.mark.parametrize(
    "hidden", [b"[" * 70 + b"]" * 70, b"1" * 5000, b'"a"', b'[{"role": "user", "content": "x"}, {"role": "user"}]']
)
def test_what_a_second_content_hides_is_looked_at(hidden: bytes, spelling: bytes, times: int) -> None:
    for spaces in ((",", ":"), (", ", ": ")):
        first = json.dumps({"model": "m", "messages": [said(WORDS * times), said("here")]}, separators=spaces).encode()
        familiar = knowing(first)
        assert told(familiar, first) is not None
        body = first.replace(b'"content"', spelling + b":" + hidden + b',"content"', 1)
        known = told(familiar, body)
        if known is not None:
            assert_as_looked_at(known, body)


@pytest.mark.parametrize("count", [1, 33, 64])
@pytest.mark.parametrize("spelling", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=str)
def test_a_large_body_is_known_in_any_spelling(spelling: dict[str, Any], count: int) -> None:
    messages = [
        {"content": "[{" * 400 + WORDS * LENGTHS[1], "role": "user"},
        *(said(WORDS, "élève") for _ in range(count - 1)),
    ]
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=False, **spelling).encode()
    known = told(knowing(body), body)
    assert known is not None
    assert_as_looked_at(known, body)


def test_where_the_messages_are_not_all_a_frame_says_nothing() -> None:
    for more in (
        *({name: "you are" for name in PROMPT_FIELDS if name != "messages"}),
        "priority",
        "cache_salt",
    ):
        body = body_of(said("?"), **{more: "1"})
        assert told(knowing(body), body) is None
    for body in (
        body_of(said("?"), stop=["a"]),
        body_of(said("?"), x={"image_url": "y"}),
        body_of(said("?"), x="y" * MAX_SIDE_BYTES),
        body_of(said("?"), x="y" * MAX_SIDE_BYTES).replace(b'{"model"', b'{ "model"'),
        body_of(said("?"), stream=True, stream_options={"include_usage": False}),
        b'{"model":"m","x":{"messages":[]},"messages":{}}',
        b'{"model":"m","messages":"[]"}',
        b'{"model":"[]","messages":[]}',
        b'{"messages":[]}',
        b'{"model":"m","model":"m","messages":[]}',
        b"[]",
        b"",
    ):
        assert told(knowing(body), body) is None


def test_a_list_that_stands_elsewhere_is_not_taken_for_the_messages() -> None:
    frame = b'{"model":"m","messages":%b,"x":1}'
    for body in (
        frame % b'[],"stop":[]',
        b'{"model":"m","messages":[]',
        # The same bytes, parted elsewhere.
        b'{"model":"m","messages":,[]"x":1}',
        b'{"model":"m"[],"messages":,"x":1}',
    ):
        familiar = knowing(frame % b"[]")
        assert told(familiar, frame % b"[]") is not None
        assert told(familiar, body) is None


@pytest.mark.parametrize("operation", [COMPLETIONS, EMBEDDINGS, RESPONSES_API, MESSAGES], ids=lambda each: each.label)
def test_a_frame_holds_for_one_operation(operation: Operation) -> None:
    body = body_of(said("?"), max_completion_tokens=5)
    assert told(knowing(body), body, operation) is None
    assert told(knowing(body, operation=operation), body) is None


def test_other_caps_are_asked_anew() -> None:
    body = body_of(said("?"), n=4)
    familiar = knowing(body)
    assert told(familiar, body) is not None
    other = Caps(max_n=8)
    assert familiar.told(body, CHAT, other) is None
    for _ in range(OFTEN):
        familiar.note(body, CHAT, other)
    assert familiar.told(body, CHAT, other) is not None
    assert told(familiar, body) is None


def test_one_frame_may_be_known_for_two_operations() -> None:
    body = body_of(said("?"), max_completion_tokens=5)
    familiar = knowing(body)
    for _ in range(OFTEN):
        familiar.note(body, MESSAGES, THE_USUAL_CAPS)
    for operation in (CHAT, MESSAGES):
        known = told(familiar, body, operation)
        assert known is not None
        assert_as_looked_at(known, body, operation)


def test_it_is_found_out_once_that_a_frame_says_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counting(body: bytes, operation: Operation) -> Look:
        looks.append(body)
        return look(body, operation)

    monkeypatch.setattr("gateway.pipeline.familiar.look", counting)
    knowing(*[body_of(said("?"), tools=[])] * 5, *[body_of(said("?"), system="you are")] * 5)
    assert len(looks) <= 2


def test_what_came_once_is_not_kept_and_what_is_kept_is_bounded() -> None:
    familiar, often = Familiar(), body_of(said("?"))
    familiar.note(often, CHAT, THE_USUAL_CAPS)
    assert told(familiar, often) is None
    familiar.note(often, CHAT, THE_USUAL_CAPS)
    assert told(familiar, often) is not None
    for seed in range(2 * MAX_FRAMES):
        familiar.note(body_of(said("?"), seed=seed), CHAT, THE_USUAL_CAPS)
    assert told(familiar, often) is not None
    for seed in range(2 * MAX_FRAMES):
        for _ in range(2):
            familiar.note(body_of(said("?"), seed=seed), CHAT, THE_USUAL_CAPS)
    assert len(familiar._frames) <= MAX_FRAMES
    assert len(familiar._times) <= MAX_FRAMES


def test_a_frame_that_comes_with_messages_that_are_not_plain_is_left_alone_for_a_while() -> None:
    plain, other = body_of(said("?")), body_of(said(None))
    familiar = knowing(plain)
    assert told(familiar, other) is None
    for _ in range(UNPLAIN + 1):
        familiar.note(other, CHAT, THE_USUAL_CAPS)
        assert told(familiar, plain) is None
    familiar.note(plain, CHAT, THE_USUAL_CAPS)
    assert told(familiar, plain) is not None
