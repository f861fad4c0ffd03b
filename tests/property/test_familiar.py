"""Whatever a body is, what is known of its frame says what a look at all of it says, or nothing."""

import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.core.caller import ANONYMOUS
from gateway.pipeline.caps import THE_USUAL_CAPS
from gateway.pipeline.familiar import Familiar
from gateway.pipeline.intake import call_of, check_media, look, renamed
from gateway.pipeline.operations import CHAT, MESSAGES, Operation

MARK = b'"assistant"'

spaces = st.sampled_from(["", "", "", " ", "\n"])
texts = st.one_of(
    st.sampled_from(["", "?", "assistant", "data:a/b;base64,AAAA", 'say "assistant', 'url"', "[", "]}", "é", "a\\"]),
    st.sampled_from(["\x00", "1" * 5000, "assistant" * 900]),
    st.text(max_size=9),
    st.text(max_size=2).map(lambda said: 2500 * said),
)
strings = st.builds(lambda said, plain: json.dumps(said, ensure_ascii=plain), texts, st.booleans())
odd = st.sampled_from(
    [
        *("null", "1", "1e999", "NaN", "[]", "[[]]", '[{"type":"text"}]', '{"url":"http://x/"}'),
        *('"\\ud800"', '"\t"', "", '"'),
    ]
)
roles = st.sampled_from(['"user"', '"system"', '"assistant"', '"assist\\u0061nt"'])
messages = st.builds(
    lambda role, content, more: f'{{"role":{role},"content":{content}{more}}}',
    st.one_of(roles, roles, strings),
    st.one_of(*[strings] * 9, odd),
    st.sampled_from([*[""] * 12, ',"name":"x"', ',"content":"y"', ',"image_url":"http://x/"']),
)
usual = st.sampled_from(
    ['"user":"u"', '"max_tokens":5', '"stream":true', '"n":2', '"temperature":0.5', '"x":"\\u005d"']
)
unusual = st.sampled_from(
    [
        *('"model":"m"', '"model":1', '"stream":null', '"n":99', '"user":"]"', '"max_tokens":"5"', '"stop":["a"]'),
        *('"temperature":1e999', '"x":{}', '"messages":[]', '"messages":"[]"'),
        *('"stream_options":{"include_usage":true}', '"stream_options":{}', '"seed":null', '"priority":1', '"x":"[]"'),
        *('"tools":[]', '"prompt":"p"', '"cache_salt":"s"', '"prompt_cache_key":"k"', '"max_completion_tokens":7'),
    ]
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two that have the same around their messages, or nearly so."""
    more = draw(st.lists(st.one_of(*[usual] * 5, unusual), max_size=3, unique=draw(st.booleans())))
    some = draw(st.integers(0, len(more)))
    name = draw(spaces).join(('"messages"', ":", ""))
    made = []
    for _ in range(2):
        said = f"{name}[{','.join(draw(st.lists(messages, max_size=3)))}]"
        made.append(("{" + ",".join(['"model":"m"', *more[:some], said, *more[some:]]) + "}").encode())
    known, other = made
    if other and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(other) - 1))
        other = other[:at] + draw(st.sampled_from([b"", b'"', b"]", b"[", b"\\", b"\xff", b"\x00"])) + other[at + 1 :]
    return known, other


@pytest.mark.parametrize("operation", [CHAT, MESSAGES], ids=lambda operation: operation.label)
@settings(max_examples=500)
@given(bodies())
def test_what_is_known_is_what_a_look_says(operation: Operation, made: tuple[bytes, bytes]) -> None:
    known, body = made
    familiar = Familiar()
    for _ in range(2):
        familiar.note(known, operation, THE_USUAL_CAPS)
    told = familiar.told(body, operation, THE_USUAL_CAPS)
    event("known" if told is not None else "looked at")
    if told is None:
        return
    seen, call = told
    looked = look(body, operation)
    check_media(looked, THE_USUAL_CAPS)
    expected = call_of(looked, operation, ANONYMOUS)
    assert call._replace(body=[], model_at=None) == expected._replace(
        body=[], prompt_tokens_estimate=call.prompt_tokens_estimate
    )
    # Of a short text in a large body, what looks like an image in base64 is counted as one by the look.
    assert call.prompt_tokens_estimate == expected.prompt_tokens_estimate or b";base64," in body
    # In the same parts: a request that took a pod down is known by a hash of each.
    assert [bytes(part) for part in call.body] == [bytes(part) for part in expected.body]
    assert (seen.body, seen.session, seen.cache_salt) == (body, looked.session, looked.cache_salt)
    prompt, other = seen.prompt, looked.prompt
    assert prompt.text[prompt.start : prompt.end] == other.text[other.start : other.end]
    assert prompt.before(MARK, 512) == other.before(MARK, 512)
    for name in ("another", 'a "third", longer'):
        call, expected = renamed(call, name), renamed(expected, name)
        assert b"".join(call.body) == b"".join(expected.body)
        assert (call.model, call.body_length) == (name, expected.body_length)
