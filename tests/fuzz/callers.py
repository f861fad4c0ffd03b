"""Keys, tokens and passwords: nobody comes in but who was given one, and what is no key never raises."""

import base64
import json
from functools import cache

from gateway.api.ops import bears
from gateway.core.caller import Tenant
from gateway.core.cell import Cell
from gateway.core.errors import InvalidApiKey
from gateway.limits.jwt import ForwardedUsers, KeySet, Tokens, keys_of
from gateway.limits.keys import KeyEntry, KeyRing, checksum, digest, id_in, judge, well_formed
from tests.fuzz.target import Target, first_and_rest
from tests.issuer import NEVER, encoded, set_of, signer

STEM = b"sk-pg_abcdefgh_" + b"0123456789abcdef" * 2
KEY = STEM + checksum(STEM).encode()
ENTRIES = (KeyEntry(digest(KEY), Tenant("abcdefgh", "fuzz")),)
RING = KeyRing(ENTRIES, lambda: 0.0)
CLAIMS = {"iss": "https://login.example", "aud": "poolgate", "sub": "ann", "team": "acme", "exp": NEVER}
OPS_TOKEN = "pässword"


def key(data: bytes) -> None:
    """One key opens; no other text does, whatever it looks like."""
    assert (RING.tenant_of(data) is not None) == (data == KEY)
    verdict, entry = judge(data, ENTRIES, 0.0)
    assert (verdict == "good") == (data == KEY) == (entry is not None)
    if well_formed(data):
        assert id_in(data) is not None
        assert data[-6:] == checksum(data[:-6]).encode()
    else:
        assert verdict in ("malformed", "mistyped")


@cache
def issuer() -> tuple[Tokens, ForwardedUsers, frozenset[bytes]]:
    """What judges tokens, and the only ones that were ever signed: by chance, and so anew in each run."""
    good = tuple(signer().sign(CLAIMS) for _ in range(2))
    told = Tokens(
        issuer="https://login.example",
        audience="poolgate",
        tenant_claim="team",
        models=("*",),
        keys=Cell[KeySet | None](keys_of(set_of(signer(), signer("EdDSA", "two")))),
        unknown_signer=lambda: None,
        retry_after_seconds=lambda: 1.0,
        wall=lambda: 1000.0,
    )
    return told, ForwardedUsers("s" * 32, lambda: 1000.0), frozenset(good)


def token(data: bytes) -> None:
    """Nothing opens that was not signed: a forged token has one answer, and no error of another kind."""
    choice, rest = first_and_rest(data)
    tokens, users, good = issuer()
    # The mutations begin at a token that is good, which no corpus can hold: its key is drawn for each run.
    made = changed(min(good), rest) if choice & 1 else rest
    try:
        if choice & 2:
            users.user_of(made, "the header")
        else:
            tokens.caller_of(made)
    except InvalidApiKey:
        return
    assert not choice & 2, "forged"
    signed = {(each.rpartition(b".")[0]) for each in good}
    assert made.rpartition(b".")[0] in signed, "forged"


def changed(text: bytes, how: bytes) -> bytes:
    """A text with some of its bytes replaced: three bytes of `how` say where, and by what."""
    made = bytearray(text)
    for at in range(0, len(how) - 2, 3):
        made[int.from_bytes(how[at : at + 2], "big") % len(made)] = how[at + 2]
    return bytes(made)


def key_set(data: bytes) -> None:
    """Keys that verify, or `ValueError`."""
    try:
        found = keys_of(data)
    except ValueError:
        return
    assert len(found) <= 64
    assert isinstance(json.loads(data)["keys"], list)


def ops_password(data: bytes) -> None:
    """The ops port opens to its token, as a bearer's or as a password, and to nothing else."""
    said = data.decode("latin-1")
    if not bears(said, OPS_TOKEN):
        return
    scheme, _, rest = said.partition(" ")
    if scheme.lower() == "bearer":
        assert rest.strip().encode("latin-1") == OPS_TOKEN.encode()
    else:
        assert scheme.lower() == "basic"
        assert base64.b64decode(rest).partition(b":")[2] == OPS_TOKEN.encode()


def parts(header: object, claims: object = CLAIMS) -> bytes:
    """An unsigned token."""
    return b".".join((encoded(json.dumps(header).encode()), encoded(json.dumps(claims).encode()), encoded(b"x" * 64)))


TARGETS = {
    "key": Target(
        key,
        ("gateway.limits.keys",),
        (KEY, KEY[:-1], KEY + b"\n", b"sk-pg_", KEY.upper(), b"\xff" * 60, b"x" * 4097, b""),
        tokens=(b"sk-pg_", STEM),
    ),
    "token": Target(
        token,
        ("gateway.limits.jwt",),
        (
            b"\0" + parts({"alg": "none"}),
            b"\0" + parts({"alg": "ES256", "kid": "one"}),
            b"\0" + parts({"alg": "EdDSA", "kid": "two"}),
            b"\0" + parts({"alg": "HS256", "kid": "one"}),
            b"\0" + parts({"alg": "ES256", "crit": ["x"]}),
            b"\0" + parts({"alg": ["ES256"], "kid": {}}),
            b"\0" + parts([]),
            b"\0" + parts({"alg": "ES256"}, []),
            b"\1",
            b"\1" + b"\0\5A",
            b"\2" + parts({"alg": "HS256"}),
            b"\2" + parts({"alg": "none"}),
            b"\0" + encoded(b"[" * 3000) + b".e30.e30",
            b"\0a.b.c",
            b"\0..",
        ),
        tokens=(b".", encoded(b'{"alg":"ES256"}'), encoded(b'{"alg":"none"}'), b"=="),
    ),
    "key_set": Target(
        key_set,
        ("gateway.limits.jwt",),
        (
            b'{"keys":[]}',
            b'{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"a"}]}',
            b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","use":"sig","alg":"RS256"}]}',
            b'{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}',
            b'{"keys":[null,1,{"kty":["EC"]},{"kty":"oct","k":"AA"},{"kty":"EC","crv":[]}]}',
            b'{"keys":[{"kty":"RSA","n":"\xc3\xa9","e":5}]}',
        ),
        tokens=(b'"kty":', b'"crv":', b'"n":', b'"x":', b'"EC"', b'"RSA"', b'"OKP"', b'"P-256"', b"null"),
    ),
    "ops_password": Target(
        ops_password,
        ("gateway.api.ops",),
        (
            b"Bearer " + OPS_TOKEN.encode(),
            b"Basic " + base64.b64encode(b"any:" + OPS_TOKEN.encode()),
            b"Basic \xff",
            b"Basic ====",
            b"Digest x",
            b"",
        ),
        max_bytes=512,
        tokens=(b"Basic ", b"Bearer ", b"="),
    ),
}
