"""Heads that came before: told apart by every byte but those of the length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.caller import Tenant
from gateway.edge.known import MAX_HEAD_BYTES, KnownHead, known_head, said_again
from gateway.limits.keys import KeyEntry, KeyRing, digest
from gateway.pipeline.body_budget import BodyBudget
from gateway.pipeline.exchange import Head
from gateway.pipeline.operations import CHAT
from gateway.pipeline.reception import Regular

KEY, OTHER = b"sk-pg_abcdefgh_secret", b"sk-pg_ijklmnop_others"
ORDERS = [("host", "key", "accept", "length"), ("length", "host", "key", "accept"), ("host", "length", "key", "accept")]
LINES = {
    "key": b"Authorization: Bearer %b\r\n",
    "length": b"Content-Length: %b\r\n",
    "host": b"Host: x\r\n",
    "accept": b"Accept: */*\r\n",
}
TENANTS = {key: Tenant(key.decode(), "team") for key in (KEY, OTHER)}
KEYS = KeyRing([KeyEntry(digest(key), tenant) for key, tenant in TENANTS.items()], lambda: 0.0)


ACCOUNT = BodyBudget(1000).anybody


def regular(key: bytes) -> Regular:
    return Regular(Head(b"POST", CHAT.path, {b"host": b"x"}, frozenset(), 0.0), CHAT, TENANTS[key], 0, KEYS)


def head(order: tuple[str, ...] = ORDERS[0], key: bytes = KEY, length: bytes = b"12") -> bytes:
    values = {"key": (key,), "length": (length,)}
    lines = b"".join(LINES[name] % values.get(name, ()) for name in order)
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + lines + b"\r\n"


def known(data: bytes, key: bytes = KEY) -> KnownHead:
    found = known_head(data, regular(key), ACCOUNT)
    assert found is not None
    return found


def said(data: bytes, last: KnownHead, *others: KnownHead) -> tuple[Regular, int, int] | None:
    found = said_again({(each.digest, *each[:3]): each for each in (last, *others)}, last, data)
    return None if found is None else (found[0], *found[2:])


@pytest.mark.parametrize("order", ORDERS)
def test_a_head_is_known_again_with_another_length(order: tuple[str, ...]) -> None:
    before = known(head(order) + b"x" * 12)
    again = head(order, length=b"3456")
    assert said(again + b"body", before) == (before.regular, 3456, len(again))


@pytest.mark.parametrize("order", ORDERS)
def test_with_another_key_it_is_another_one(order: tuple[str, ...]) -> None:
    before, other = known(head(order)), known(head(order, OTHER), OTHER)
    assert said(head(order, OTHER), before) is None
    assert said(head(order, OTHER), before, other) == (other.regular, 12, len(head(order)))


def test_nothing_of_the_key_is_kept() -> None:
    kept = known(head())
    assert KEY not in repr(kept._replace(regular=regular(OTHER))).encode()


@given(st.data())
def test_a_head_with_any_other_byte_anywhere_is_another_one(data: st.DataObject) -> None:
    text = head(data.draw(st.sampled_from(ORDERS)))
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != text[at : at + 1]))
    changed = text[:at] + other + text[at + 1 :]
    before = known(text)
    found = said(changed, before)
    if found is not None:
        # It was one of the length's.
        _, length, body_at = found
        assert length != 12
        assert body_at == len(text)
        assert text.replace(b"Length: 12", b"Length: %d" % length) == changed.replace(b"Length: 0", b"Length: ")


@given(st.integers(0, len(head()) - 1), st.sampled_from(ORDERS))
def test_a_part_of_a_head_is_not_known(size: int, order: tuple[str, ...]) -> None:
    assert said(head(order)[:size], known(head(order))) is None


@pytest.mark.parametrize("name", ["Authorization: Bearer", "authorization: bearer", "x-api-key:", "X-Api-Key:"])
def test_a_key_is_found_in_either_header_however_it_is_written(name: str) -> None:
    data = head().replace(b"Authorization: Bearer", name.encode())
    before = known(data)
    assert said(data, before) == (before.regular, 12, len(data))


@pytest.mark.parametrize("length", [b"", b"+12", b" 12", b"1 2", b"0x12", "١٢".encode(), b"1234567890", b"-1", b"12;"])
def test_what_is_no_plain_number_is_no_length(length: bytes) -> None:
    assert said(head(length=length), known(head())) is None


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
    assert known_head(data, regular(KEY), ACCOUNT) is None


def test_another_key_than_the_one_that_told_the_caller_is_not_left_out() -> None:
    assert known_head(head(), regular(OTHER), ACCOUNT) is None
