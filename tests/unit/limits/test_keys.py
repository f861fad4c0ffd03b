"""A key opens for its owner, and for nobody else."""

from dataclasses import fields, replace
from typing import Any

import pytest

from gateway.core.caller import Tenant
from gateway.limits.keys import (
    MAX_KEY_BYTES,
    KeyEntry,
    KeyRing,
    checksum,
    digest,
    judge,
    new_key,
    well_formed,
    with_known_tenants,
)


def ring(**more: object) -> tuple[KeyRing, bytes, Tenant]:
    key_id, key = new_key()
    tenant = Tenant(key_id, "acme", **more)  # type: ignore[arg-type]
    return KeyRing([KeyEntry(digest(key.encode()), tenant)], lambda: 1000.0), key.encode(), tenant


def test_a_key_has_the_published_form_and_a_checksum_that_finds_typing_errors() -> None:
    key_id, key = new_key()
    assert key.startswith(f"sk-pg_{key_id}_")
    assert len(key) == 6 + 8 + 1 + 32 + 6
    assert well_formed(key.encode())
    typo = key[:20] + ("a" if key[20] != "a" else "b") + key[21:]
    assert not well_formed(typo.encode())
    assert not well_formed(b"sk-other")


def test_a_key_finds_its_owner_and_no_other_text_does() -> None:
    keys, key, tenant = ring()
    assert keys.tenant_of(key) is tenant
    for other in (b"", key[:-1], key + b"x", key.swapcase(), b"\xff" * 50, b"x" * (MAX_KEY_BYTES + 1)):
        assert keys.tenant_of(other) is None


def test_a_key_that_is_disabled_or_expired_opens_nothing() -> None:
    _, key, _ = ring()
    tenant = Tenant("id", "acme")
    assert KeyRing([KeyEntry(digest(key), tenant, disabled=True)], lambda: 0.0).tenant_of(key) is None
    keys, key, tenant = ring(expires_at=1000.0)
    assert keys.tenant_of(key) is None
    keys, key, tenant = ring(expires_at=1000.5)
    assert keys.tenant_of(key) is tenant


def test_keys_are_all_different_and_random() -> None:
    assert len({new_key()[1] for _ in range(200)}) == 200


def test_globs_say_which_models() -> None:
    tenant = Tenant("id", "acme", models=("qwen*", "exact"))
    assert [tenant.may_use(name) for name in ("qwen3-8b", "exact", "exact2", "Qwen")] == [True, True, False, False]


def entry(tenant: Tenant, key: bytes = b"key", **more: Any) -> KeyEntry:
    return KeyEntry(digest(key), tenant, **more)


@pytest.mark.parametrize(
    ("expires_at", "disabled", "state"),
    [
        (None, False, "active"),
        (1000.5, False, "active"),
        (1000.0, False, "expired"),
        (None, True, "disabled"),
        (999.0, True, "disabled"),
    ],
)
def test_an_entry_opens_until_it_expires_or_is_disabled(expires_at: float | None, disabled: bool, state: str) -> None:
    """What is told of it agrees with whom it lets in."""
    one = entry(Tenant("a", "acme", expires_at=expires_at), disabled=disabled)
    assert one.state(1000.0) == state
    assert (KeyRing([one], lambda: 1000.0).tenant_of(b"key") is not None) == (state == "active")


def test_a_key_is_judged_by_its_entry_else_by_its_form() -> None:
    _, text = new_key()
    key, of_another_form = text.encode(), b"hunter2"
    entries = [
        entry(Tenant("a", "acme"), key),
        entry(Tenant("b", "acme"), of_another_form),
        entry(Tenant("c", "acme", expires_at=9.0), b"old"),
        entry(Tenant("d", "acme"), b"off", disabled=True),
    ]
    verdicts = {
        key: ("good", "a"),
        of_another_form: ("good", "b"),
        b"old": ("expired", "c"),
        b"off": ("disabled", "d"),
        new_key()[1].encode(): ("unknown", None),
        key[:20] + (b"a" if key[20:21] != b"a" else b"b") + key[21:]: ("mistyped", None),
        key[:-1]: ("malformed", None),
        key + b"\n": ("malformed", None),
        b"sk-proj-somebody-elses": ("malformed", None),
        b"": ("malformed", None),
        b"\xff" * (MAX_KEY_BYTES + 1): ("malformed", None),
    }
    for each, told in verdicts.items():
        verdict, found = judge(each, entries, 10.0)
        assert (verdict, found and found.tenant.key_id) == told, each


def test_two_letters_that_changed_places_and_every_wrong_letter_are_found() -> None:
    key = new_key()[1].encode()
    for at in range(15, len(key)):
        for letter in b"0Oo1lIzZ":
            wrong = key[:at] + bytes([letter]) + key[at + 1 :]
            assert well_formed(wrong) == (wrong == key)
        swapped = key[: at - 1] + key[at : at + 1] + key[at - 1 : at] + key[at + 1 :]
        assert well_formed(swapped) == (swapped == key)


def test_who_is_behind_an_entry_stays_the_same_object_until_a_value_of_it_changes() -> None:
    old = [entry(Tenant("a", "acme", ("x",), priority=1), b"1"), entry(Tenant("b", "acme"), b"2")]
    new = [
        entry(Tenant("b", "others"), b"2"),
        entry(Tenant("a", "acme", ("x",), priority=1), b"1"),
        entry(Tenant("c", "acme"), b"3"),
    ]
    others, same, added = with_known_tenants(new, old)
    assert same.tenant is old[0].tenant
    assert (others.tenant, added.tenant) == (new[0].tenant, new[2].tenant)


def test_a_key_that_is_given_another_secret_or_is_disabled_is_still_the_same_caller() -> None:
    old = entry(Tenant("a", "acme"), b"1")
    again = Tenant("a", "acme")
    for new in (entry(again, b"2"), entry(again, b"1", disabled=True), entry(again, b"1", note="x")):
        (kept,) = with_known_tenants([new], [old])
        assert kept == replace(new, tenant=old.tenant)


@pytest.mark.parametrize("name", [field.name for field in fields(Tenant) if field.name != "key_id"])
def test_every_value_of_a_caller_counts(name: str) -> None:
    old = Tenant("a", "acme")
    another: dict[str, Any] = {name: "another value"}
    new = replace(old, **another)
    (kept,) = with_known_tenants([entry(new)], [entry(old)])
    assert kept.tenant is new


def test_bad_keys_are_told_by_their_digest_alone_and_leave_nothing() -> None:
    """The form is not looked at, so a key with a right checksum takes no longer than one without."""
    keys, _, _ = ring()
    before = dict(vars(keys))
    stem = b"sk-pg_AAAAAAAA_" + b"B" * 32
    for key in (stem + checksum(stem).encode(), stem + b"000000"):
        assert keys.tenant_of(key) is None
    assert vars(keys) == before
