"""Heads that came before: told apart by every byte but those of the key and the length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.known import MAX_HEAD_BYTES, KnownHead, known_head, said_again
from gateway.pipeline.exchange import Head
from gateway.pipeline.operations import CHAT

KEY, OTHER = b"sk-pg_abcdefgh_secret", b"sk-pg_ijklmnop_longersecret"
FIELDS = {b"host": b"x", b"authorization": b"Bearer " + KEY, b"content-length": b"12", b"accept": b"*/*"}
LINES = {
    "key": b"Authorization: Bearer %b\r\n",
    "length": b"Content-Length: %b\r\n",
    "host": b"Host: x\r\n",
    "accept": b"Accept: */*\r\n",
}


def head(
    order: tuple[str, ...] = ("host", "key", "accept", "length"), key: bytes = KEY, length: bytes = b"12"
) -> bytes:
    values = {"key": (key,), "length": (length,)}
    lines = b"".join(LINES[name] % values.get(name, ()) for name in order)
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + lines + b"\r\n"


def known(data: bytes, key: bytes = KEY) -> KnownHead | None:
    return known_head(data, key, Head(b"POST", CHAT.path, FIELDS, frozenset(), 0.0), CHAT)


def known_for_sure(data: bytes) -> KnownHead:
    found = known(data)
    assert found is not None
    return found


@pytest.mark.parametrize("order", [("host", "key", "accept", "length"), ("length", "host", "key", "accept")])
def test_a_head_is_known_again_with_another_key_and_another_length(order: tuple[str, ...]) -> None:
    before = known_for_sure(head(order) + b"x" * 12)
    again = head(order, OTHER, b"3456")
    assert said_again(before, again + b"body") == (OTHER, 3456, len(again))


@pytest.mark.parametrize("name", ["Authorization: Bearer", "authorization: bearer", "x-api-key:", "X-Api-Key:"])
def test_a_key_is_found_in_either_header_however_it_is_written(name: str) -> None:
    data = head().replace(b"Authorization: Bearer", name.encode())
    assert said_again(known_for_sure(data), data) == (KEY, 12, len(data))


def test_nothing_of_the_key_is_kept() -> None:
    assert KEY not in repr(known_for_sure(head())).encode()


@given(st.data())
def test_a_head_with_any_other_byte_anywhere_is_another_one(data: st.DataObject) -> None:
    text = head()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != text[at : at + 1]))
    said = said_again(known_for_sure(text), text[:at] + other + text[at + 1 :])
    if said is not None:
        # It was one of the key's or of the length's.
        key, length, body_at = said
        assert (key != KEY) != (length != 12)
        assert body_at == len(text)
        assert head(key=key, length=b"%d" % length)[: len(text)] == text[:at] + other + text[at + 1 :]


@given(st.integers(0, len(head()) - 1))
def test_a_part_of_a_head_is_not_known(size: int) -> None:
    assert said_again(known_for_sure(head()), head()[:size]) is None


@pytest.mark.parametrize("length", [b"", b"+12", b" 12", b"1 2", b"0x12", "١٢".encode(), b"1234567890", b"-1", b"12;"])
def test_what_is_no_plain_number_is_no_length(length: bytes) -> None:
    assert said_again(known_for_sure(head()), head(length=length)) is None


@pytest.mark.parametrize(
    "data",
    [
        head(("host", "key", "accept")),
        head(("host", "length", "accept")),
        head().replace(b"Bearer ", b"Bearer  "),
        head().replace(b"Bearer " + KEY, b"Basic " + KEY),
        head().replace(b"Accept: */*\r\n", b"X-Api-Key: " + KEY + b"\r\n"),
        head().replace(b"Accept: */*\r\n", b"Content-Length: 12\r\n"),
        head()[:-2],
        head().replace(b"*/*", b"x" * MAX_HEAD_BYTES),
    ],
    ids=["no length", "no key", "odd key", "no bearer", "two keys", "two lengths", "no end", "too long"],
)
def test_what_cannot_be_told_apart_by_its_bytes_is_not_kept(data: bytes) -> None:
    assert known(data) is None


def test_another_key_than_the_one_that_was_looked_up_is_not_left_out() -> None:
    assert known(head(), OTHER) is None
