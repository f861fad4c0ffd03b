"""A key opens for its owner, and for nobody else."""

from gateway.core.caller import Tenant
from gateway.limits.keys import MAX_KEY_BYTES, KeyEntry, KeyRing, digest, new_key, well_formed


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
