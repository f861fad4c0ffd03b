"""Who calls, for whom, and how urgently: decided on the head alone."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.caller import ANONYMOUS, MAX_USER_CHARACTERS, Tenant
from gateway.core.errors import Busy, InvalidApiKey, PoolgateError
from gateway.limits.keys import KeyEntry, KeyRing, digest, new_key
from gateway.pipeline.exchange import Head
from gateway.pipeline.reception import BACKGROUND, MAX_PRIORITY, Reception, Visit

TOKEN = b"eyJhbGciOiJFUzI1NiJ9.e30.c2ln"
SUBJECT = Tenant("jwt-1", "issued")


class Tokens:
    """Takes one token, and remembers what it was shown."""

    def __init__(self, refusal: PoolgateError | None = None) -> None:
        self.shown: list[bytes] = []
        self._refusal = refusal

    def caller_of(self, token: bytes, address: Callable[[], str]) -> tuple[Tenant, str]:
        self.shown.append(token)
        if self._refusal is not None:
            raise self._refusal
        if token != TOKEN:
            raise InvalidApiKey("not this one")
        return SUBJECT, "ann"


class Users:
    """Takes what begins with `signed-`."""

    def user_of(self, token: bytes, name: str) -> str:
        if not token.startswith(b"signed-"):
            raise InvalidApiKey(f"{name} is not signed")
        return token.removeprefix(b"signed-").decode()


def receive(reception: Reception, fields: dict[bytes, bytes], repeated: frozenset[bytes] = frozenset()) -> Visit:
    return reception.receive(Head(b"GET", b"/v1/models", fields, repeated, 1.0))


def reception(*tenants: Tenant, **more: Any) -> tuple[Reception, list[bytes]]:
    """A reception that knows these tenants, and their keys."""
    keys = [new_key()[1].encode() for _ in tenants]
    ring = KeyRing([KeyEntry(digest(key), tenant) for key, tenant in zip(keys, tenants, strict=True)], lambda: 0.0)
    return Reception(ring, 1024, 2048, **more), keys


def bearer(key: bytes, **more: bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key} | {name.replace("_", "-").encode(): said for name, said in more.items()}


def test_a_token_opens_like_a_key_in_either_header() -> None:
    tokens = Tokens()
    here, _ = reception(tokens=tokens)
    for fields in (bearer(TOKEN), {b"x-api-key": TOKEN}, bearer(TOKEN) | {b"x-api-key": TOKEN}):
        visit = receive(here, fields)
        assert visit.error is None
        assert (visit.tenant, visit.trail.tenant, visit.user) == (SUBJECT, SUBJECT, "ann")
    assert tokens.shown == [TOKEN] * 3


@pytest.mark.parametrize(
    "key",
    [b"sk-pg_x", b"sk-a.b.c", b"a.b", b"a.b.c.d.e", b"abc", b"."],
)
def test_what_has_not_a_tokens_form_is_looked_up_as_a_key_only(key: bytes) -> None:
    tokens = Tokens()
    here, _ = reception(tokens=tokens)
    visit = receive(here, bearer(key))
    assert isinstance(visit.error, InvalidApiKey)
    assert visit.error.message == "this API key is unknown, disabled or expired"
    assert not tokens.shown


def test_a_key_of_the_file_in_a_tokens_form_is_a_key() -> None:
    tokens = Tokens()
    own = Tenant("k", "acme")
    here = Reception(KeyRing([KeyEntry(digest(TOKEN), own)], lambda: 0.0), 1024, 2048, tokens=tokens)
    visit = receive(here, bearer(TOKEN))
    assert (visit.tenant, visit.user, tokens.shown) == (own, "", [])


def test_without_an_issuer_a_token_is_an_unknown_key() -> None:
    here, _ = reception()
    error = receive(here, bearer(TOKEN)).error
    assert isinstance(error, InvalidApiKey)
    assert error.message == "this API key is unknown, disabled or expired"


@pytest.mark.parametrize("refusal", [InvalidApiKey("expired"), Busy("no keys yet", retry_after_seconds=1.0)])
def test_a_token_that_is_refused_leaves_nobody_in_the_trail(refusal: PoolgateError) -> None:
    here, _ = reception(tokens=Tokens(refusal))
    visit = receive(here, bearer(TOKEN))
    assert visit.error is refusal
    assert visit.trail.tenant is None
    assert (visit.tenant, visit.user) == (ANONYMOUS, "")


def test_without_authentication_nobody_is_asked_who_he_is() -> None:
    tokens = Tokens()
    here = Reception(None, 1024, 2048, tokens=tokens, forwarded_users=Users())
    visit = receive(here, bearer(TOKEN, x_openwebui_user_id=b"bob", x_openwebui_user_jwt=b"signed-bob"))
    assert (visit.error, visit.tenant, visit.user, tokens.shown) == (None, ANONYMOUS, "", [])


SPEAKER = Tenant("app", "acme", forwards_user=True)


@pytest.mark.parametrize(
    ("said", "user"),
    [
        (b"3f0c8f6e-9f5c", "3f0c8f6e-9f5c"),
        (b"ann%20lee", "ann lee"),
        (b"J%C3%BCrgen", "Jürgen"),
        ("Jürgen".encode(), "Jürgen"),
        (b"100%", "100%"),
        (b"%25", "%"),
        (b"x" * MAX_USER_CHARACTERS, "x" * MAX_USER_CHARACTERS),
        (b"%E5%8C%97" * MAX_USER_CHARACTERS, "北" * MAX_USER_CHARACTERS),
        (b"", ""),
    ],
)
def test_an_application_that_may_say_for_whom_it_asks_is_believed(said: bytes, user: str) -> None:
    here, [key] = reception(SPEAKER)
    visit = receive(here, bearer(key, x_openwebui_user_id=said))
    assert visit.error is None
    assert (visit.tenant, visit.user) == (SPEAKER, user)


@pytest.mark.parametrize(
    "said", [b"x" * (MAX_USER_CHARACTERS + 1), b"a%0Ab", b"%00", b"a\tb", b"%FF", b"\xff", b"%ED%A0%80", b"%E2%80%AE"]
)
def test_a_user_who_cannot_be_named_is_a_fault_that_names_the_header(said: bytes) -> None:
    here, [key] = reception(SPEAKER)
    visit = receive(here, bearer(key, x_openwebui_user_id=said))
    assert visit.error is not None
    assert (visit.error.http_status, visit.error.code) == (400, "invalid_request")
    assert visit.error.message.startswith("the header x-openwebui-user-id names no user")
    assert said.decode("latin-1") not in visit.error.message
    assert visit.trail.tenant is SPEAKER


def test_who_may_not_speak_for_others_speaks_for_himself() -> None:
    tokens, users = Tokens(), Users()
    own = Tenant("k", "acme")
    odd = {"x_openwebui_user_id": b"\xff", "x_openwebui_user_jwt": b"junk"}
    for more in ({}, {"forwarded_users": users}):
        here, [key] = reception(own, tokens=tokens, **more)
        twice = frozenset((b"x-openwebui-user-id", b"x-openwebui-user-jwt"))
        visit = receive(here, bearer(key, **odd), twice)
        assert (visit.error, visit.user) == (None, "")
        assert (receive(here, bearer(TOKEN, **odd)).error, receive(here, bearer(TOKEN, **odd)).user) == (None, "ann")


def test_with_a_secret_only_the_signed_header_is_believed() -> None:
    here, [key] = reception(SPEAKER, forwarded_users=Users())
    for fields, user in (
        (bearer(key, x_openwebui_user_jwt=b"signed-ann", x_openwebui_user_id=b"bob"), "ann"),
        (bearer(key, x_openwebui_user_id=b"bob"), ""),
        (bearer(key, x_openwebui_user_id=b"\xff"), ""),
        (bearer(key), ""),
    ):
        visit = receive(here, fields)
        assert (visit.error, visit.user) == (None, user)
    error = receive(here, bearer(key, x_openwebui_user_jwt=b"ann")).error
    assert isinstance(error, InvalidApiKey)
    assert error.message == "the header x-openwebui-user-jwt is not signed"


@pytest.mark.parametrize(
    ("name", "more"), [("x-openwebui-user-id", {}), ("x-openwebui-user-jwt", {"forwarded_users": Users()})]
)
def test_an_application_asks_for_one_user_at_a_time(name: str, more: dict[str, Any]) -> None:
    here, [key] = reception(SPEAKER, **more)
    error = receive(here, bearer(key) | {name.encode(): b"signed-ann"}, frozenset((name.encode(),))).error
    assert error is not None
    assert (error.http_status, error.message) == (400, f"the header {name} came more than once")


@pytest.mark.parametrize(
    ("own", "task", "priority"),
    [
        (0, None, 0),
        (0, b"", 0),
        (0, b"  ", 0),
        (0, b"{{TASK}}", 0),
        (0, b"title_generation", BACKGROUND),
        (0, b"anything else", BACKGROUND),
        (-5, None, -5),
        (-5, b"tags_generation", BACKGROUND - 5),
        (7, b"", 7),
        (100, b"title_generation", 100 + BACKGROUND),
        (5000, None, MAX_PRIORITY),
        (MAX_PRIORITY, b"title_generation", MAX_PRIORITY),
        (-5000, b"title_generation", -MAX_PRIORITY),
    ],
)
def test_a_request_has_its_keys_priority_and_comes_later_if_it_says_that_it_is_a_task(
    own: int, task: bytes | None, priority: int
) -> None:
    here, [key] = reception(Tenant("k", "acme", priority=own))
    assert receive(here, bearer(key) | ({} if task is None else {b"x-openwebui-task": task})).priority == priority


def test_everybody_may_put_his_own_requests_behind_others() -> None:
    def priority(here: Reception, fields: dict[bytes, bytes]) -> int:
        return receive(here, fields | {b"x-openwebui-task": b"query_generation"}).priority

    assert priority(Reception(None, 1024, 2048), {}) == BACKGROUND
    assert priority(reception(tokens=Tokens())[0], bearer(TOKEN)) == BACKGROUND


def test_the_path_of_a_plain_key_asks_nothing_of_tokens_and_users() -> None:
    def nobody(*_: object) -> Any:
        raise AssertionError("asked")

    class Nobody:
        caller_of: Callable[..., Any] = nobody
        user_of: Callable[..., Any] = nobody

    here, [key] = reception(Tenant("k", "acme"), tokens=Nobody(), forwarded_users=Nobody())
    visit = receive(here, bearer(key))
    assert visit.error is None
    assert not {"user", "priority"} & vars(visit).keys()
