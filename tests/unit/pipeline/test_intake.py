"""How long an answer may be, as its request says it: what is reserved of the caller's limits goes by it."""

import json
from typing import Any

import pytest

from gateway.core.call import Call
from gateway.core.caller import ANONYMOUS
from gateway.core.errors import InvalidJson, InvalidRequest
from gateway.pipeline.intake import (
    BYTES_PER_AUDIO_TOKEN,
    MAX_ESTIMATED_MEDIA,
    TOKENS_PER_IMAGE,
    call_of,
    call_of_form,
    look,
)
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES_API, Operation
from gateway.upstream.usage import BYTES_PER_TOKEN, MAX_TOKENS

LONG = "once upon a time " * 1000


def call(operation: Operation, fields: str) -> Call:
    body = f'{{"model":"m",{fields}}}'.encode()
    return call_of(look(body, operation), operation, ANONYMOUS)


def most(operation: Operation, **fields: Any) -> int | None:
    return call(operation, json.dumps(fields)[1:-1]).max_tokens


def test_of_media_without_end_so_many_are_looked_for() -> None:
    """What is beyond counts as text. To look for each of the 800,000 that a body can hold held the loop for 0.5 s."""
    size = 2 * BYTES_PER_TOKEN * TOKENS_PER_IMAGE
    piece = ";base64," + "x" * size
    told = call(CHAT, f'"messages":{json.dumps([piece] * (MAX_ESTIMATED_MEDIA + 10))}')
    text = told.body_length - MAX_ESTIMATED_MEDIA * size
    assert told.prompt_tokens_estimate == text // BYTES_PER_TOKEN + MAX_ESTIMATED_MEDIA * TOKENS_PER_IMAGE


def test_stream_options_are_short() -> None:
    """They are walked through token by token: 8 MiB of them held the loop for 2.7 s."""
    with pytest.raises(InvalidRequest, match="stream_options"):
        call(CHAT, '"stream":true,"stream_options":{"a":[' + ",".join(["[]"] * 3000) + "]}")


@pytest.mark.parametrize(
    ("operation", "spellings"),
    [
        (CHAT, ("max_tokens", "max_completion_tokens")),
        (COMPLETIONS, ("max_tokens",)),
        (MESSAGES, ("max_tokens",)),
        (RESPONSES_API, ("max_output_tokens",)),
    ],
    ids=lambda value: value.label if isinstance(value, Operation) else "",
)
class TestSpellings:
    def test_a_maximum_is_read_in_the_operations_own_spellings(
        self, operation: Operation, spellings: tuple[str, ...]
    ) -> None:
        for spelling in spellings:
            assert most(operation, **{spelling: 7}) == 7
            assert most(operation, messages=[LONG], prompt=LONG, input=LONG, **{spelling: 7}) == 7

    def test_what_its_pods_do_not_heed_is_no_maximum(self, operation: Operation, spellings: tuple[str, ...]) -> None:
        """Or who said it would reserve little, and his long answers would pass for miscounted."""
        for spelling in {"max_tokens", "max_completion_tokens", "max_output_tokens"} - set(spellings):
            assert most(operation, **{spelling: 1}) is None
            assert most(operation, **{spelling: 1, spellings[0]: 500}) == 500

    def test_without_one_nothing_is_said(self, operation: Operation, spellings: tuple[str, ...]) -> None:
        assert most(operation, messages=[]) is None
        for spelling in spellings:
            assert most(operation, **{spelling: None}) is None


class TestBothOfAChat:
    def test_of_two_the_larger_is_reserved_whichever_the_pod_heeds(self) -> None:
        assert most(CHAT, max_tokens=7, max_completion_tokens=9) == 9
        assert most(CHAT, max_tokens=9, max_completion_tokens=7) == 9

    def test_null_is_none(self) -> None:
        assert most(CHAT, max_tokens=None, max_completion_tokens=9) == 9
        assert most(CHAT, max_tokens=9, max_completion_tokens=None) == 9

    def test_one_that_cannot_be_read_may_be_the_one_that_is_heeded(self) -> None:
        assert call(CHAT, r'"max_tokens":1,"max_completion_tokens":"\u0035000"').max_tokens is None
        assert call(CHAT, r'"max_tokens":{},"max_completion_tokens":1').max_tokens is None


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("1", 1),
        ("4096", 4096),
        # Pods take these for whole numbers.
        ("7.0", 7),
        ("7e2", 700),
        ('"7"', 7),
        ('"7.0"', 7),
        ('" 7 "', 7),
        ('"1_000"', 1000),
        # And these for none: they refuse the request.
        ("0", None),
        ("-5", None),
        ("0.5", None),
        ("true", None),
        ('""', None),
        ('"seven"', None),
        ('"0x10"', None),
        ('"nan"', None),
        ("[7]", None),
        ('{"a":7}', None),
        ('"７"', None),
        # More than there can be is bounded.
        (str(MAX_TOKENS + 1), MAX_TOKENS),
        ("1e300", MAX_TOKENS),
        ("9" * 400, MAX_TOKENS),
        ('"inf"', MAX_TOKENS),
        ('"-inf"', None),
    ],
)
def test_a_number_counts_in_each_form_that_a_pod_takes(said: str, tokens: int | None) -> None:
    assert call(CHAT, f'"max_tokens":{said}').max_tokens == tokens


def test_two_of_one_spelling_are_refused() -> None:
    with pytest.raises(InvalidJson):
        call(CHAT, '"max_tokens":1,"max_tokens":9')


def test_what_says_it_in_another_place_does_not_say_it() -> None:
    assert call(CHAT, '"stop":"\\"max_tokens\\":1","metadata":{"max_tokens":1}').max_tokens is None


def test_it_is_said_where_nothing_is_generated_too_and_in_no_form() -> None:
    assert most(EMBEDDINGS, max_tokens=7) == 7
    form = call_of_form({"model": "m"}, b"", b"multipart/form-data; boundary=x", ANONYMOUS)
    assert form.max_tokens is None


def test_the_number_of_answers_is_told_beside_it() -> None:
    several = call(COMPLETIONS, '"prompt":["a","b"],"n":3,"max_tokens":5')
    assert (several.choices, several.max_tokens) == (6, 5)


class TestMediaInAPrompt:
    IMAGE = "iVBORw0KGgo" * 50_000
    SOUND = "UklGRiQAAABXQVZF" * 40_000

    def prompt_tokens(self, *parts: Any, separators: tuple[str, str] | None = None) -> int:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}, separators=separators)
        return call_of(look(body.encode(), CHAT), CHAT, ANONYMOUS).prompt_tokens_estimate

    def test_an_image_is_a_number_of_tokens_and_not_its_bytes(self) -> None:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{self.IMAGE}"}}
        one = self.prompt_tokens({"type": "text", "text": LONG}, image)
        both = self.prompt_tokens({"type": "text", "text": LONG}, image, image)
        assert len(LONG) // 4 + TOKENS_PER_IMAGE < one < len(LONG) // 4 + TOKENS_PER_IMAGE + 60
        assert TOKENS_PER_IMAGE < both - one < TOKENS_PER_IMAGE + 30

    @pytest.mark.parametrize("separators", [None, (",", ":")])
    def test_sound_is_tokens_by_its_length(self, separators: tuple[str, str]) -> None:
        sound = {"type": "input_audio", "input_audio": {"data": self.SOUND, "format": "wav"}}
        told = self.prompt_tokens(sound, separators=separators)
        assert len(self.SOUND) // BYTES_PER_AUDIO_TOKEN < told < len(self.SOUND) // BYTES_PER_AUDIO_TOKEN + 60

    def test_text_does_not_pass_for_an_image(self) -> None:
        assert self.prompt_tokens({"type": "text", "text": f"see ;base64,{LONG}"}) >= len(LONG) // 4

    def test_what_is_cut_off_is_left_as_it_is(self) -> None:
        assert self.prompt_tokens({"type": "text", "text": LONG + ";base64,"}) >= len(LONG) // 4


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "it is empty"),
        (b'\xef\xbb\xbf{"model":"m"}', "byte order mark"),
        (b'{"model":"m",}', "trailing comma in object (byte 13)"),
        (b"{'model':'m'}", "object keys must be strings (byte 1)"),
        (b'{"model":"m"', "ends too early"),
        (b'{"model":"m","user":"cut within \\ud83d"}', "half a surrogate pair"),
        (b'{"model":"m","user":"cut within \\ud83d","messages":[]}', "half a surrogate pair"),
        (b'{"model":"m","user":"\xff"}', "not valid UTF-8 (byte 21)"),
    ],
)
def test_why_a_body_is_no_json_is_told_by_kind_and_place(body: bytes, told: str) -> None:
    with pytest.raises(InvalidJson) as refused:
        look(body, CHAT)
    assert told in refused.value.message


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xff"])
def test_nothing_of_a_body_is_told(mark: bytes) -> None:
    for length in range(60):
        broken = mark + b'{"model":"m","messages":[{"content":"CANARY \\ud83d"},]'[:length]
        with pytest.raises(InvalidJson) as refused:
            look(broken, CHAT)
        assert "CANARY" not in refused.value.message
