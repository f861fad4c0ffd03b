"""Token → tenant, and for which of its users an application asks.

A token is a JWT (RFC 7519, in compact form) that an OpenID Connect issuer has signed. joserfc has the keys and judges
the signatures; what lies around them is read here, since its own reading warns of every EdDSA token and lets a header
that is nested deeply, or is no object, through to errors of all kinds. What is not exactly as it must be is refused:
an algorithm stands for one kind of key, and none of them is symmetric, so a token can neither be unsigned nor signed
with what everybody may know; `crit` names something that we do not understand; a member stands in an object once.

Verifying costs 0.05 to 0.6 ms, so a token that holds is remembered by the SHA-256 of all of it, until it expires or its
issuer no longer lists the key that signed it. A token that does not hold leaves nothing but a mark against the address
it came from, and only if its signature was looked at: that comes last, behind all that a token's own words refuse.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from re import compile as pattern
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from joserfc.errors import JoseError
from joserfc.jwa import JWS_ALGORITHMS
from joserfc.jwk import Key, OctKey, import_key
from joserfc.util import urlsafe_b64decode

from gateway.core.caller import ISSUED_KEY_ID, MAX_USER_CHARACTERS, Tenant
from gateway.core.cell import Cell
from gateway.core.errors import Busy, InvalidApiKey
from gateway.limits.strangers import Strangers

MAX_TOKEN_BYTES: Final = 8192
MAX_HELD: Final = 4096
MAX_KEYS: Final = 64
MAX_CONTAINERS: Final = 8 * MAX_KEYS
"""Lists and objects in a token's part or a set of keys. A key has three at the most."""
MAX_TEAM_CHARACTERS: Final = 64
LEEWAY_SECONDS: Final = 30.0
"""How far two machines' clocks may be apart."""
RSA_BITS: Final = range(2048, 8193)
"""Shorter keys are broken, longer ones hold up the loop."""
OPEN_WEBUI: Final = "open-webui"
"""The `iss` of the tokens in which it says for whom it asks."""

_SIGNED_BY: Final[Mapping[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""The algorithms that are taken, each with the kind and the curve of the only keys that it is verified with."""
_PUBLIC: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_ALGORITHMS: Final = {algorithm.name: algorithm for algorithm in JWS_ALGORITHMS}
_SHAPE: Final = pattern(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999. What claims to be later is no time."""
_UNKNOWN_SIGNER: Final = "the token was not signed by the issuer that is believed here"


class IssuerKey(NamedTuple):
    """A public key that verifies signatures."""

    kid: str | None
    algorithms: frozenset[str]
    key: Key
    text: str
    """All of it as text, by which two are told apart."""


class KeySet:
    """The keys of an issuer at one time."""

    def __init__(self, keys: Iterable[IssuerKey] = ()) -> None:
        self._named: dict[tuple[str | None, str], IssuerKey] = {}
        self._only: dict[str, IssuerKey | None] = {}
        self._texts = set()
        for key in keys:
            self._texts.add(key.text)
            for algorithm in key.algorithms:
                self._only[algorithm] = None if algorithm in self._only else key
                self._named.setdefault((key.kid, algorithm), key)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, key: IssuerKey) -> bool:
        return key.text in self._texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self._texts == other._texts

    def find(self, kid: str | None, algorithm: str) -> IssuerKey | None:
        """The key that a token names. It may name none if only one fits (OpenID Connect Core, section 10.1)."""
        return self._only.get(algorithm) if kid is None else self._named.get((kid, algorithm))


def keys_of(body: bytes) -> KeySet:
    """The keys in a JWK Set (RFC 7517). Those that cannot be used are passed over, as its section 5 asks.

    Raises `ValueError` for what is no such set, and for one of more than `MAX_KEYS`.
    """
    told = object_of(body)
    keys = told.get("keys")
    if not isinstance(keys, list):
        raise ValueError("it is no set of keys")
    if len(keys) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS} keys")
    return KeySet(filter(None, map(_key_of, keys)))


def object_of(text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 in which, at any depth, each member stands once.

    Raises `ValueError`.
    """
    # From Python 3.12 on a decoder reads as deep as the stack is.
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise ValueError("it holds too many lists and objects")
    try:
        told = _DECODER.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(told, dict):
        raise ValueError("it is no JSON object")
    return told


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands there twice")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once)


def _key_of(told: Any) -> IssuerKey | None:
    """A public key for signatures, without what else is told of it; None: it is none, or not one for us."""
    if not isinstance(told, dict):
        return None
    kind: Any = told.get("kty")
    kid, meant_for = told.get("kid"), told.get("alg")
    kinds = ((kind, None), (kind, told.get("crv")))
    algorithms = [name for name, fits in _SIGNED_BY.items() if fits in kinds and meant_for in (None, name)]
    uses = told.get("key_ops", ["verify"])
    if not algorithms or not (kid is None or isinstance(kid, str)) or told.get("use", "sig") != "sig":
        return None
    if not isinstance(uses, list) or "verify" not in uses:
        return None
    public: dict[str, Any] = {"kty": kind} | {name: told.get(name) for name in _PUBLIC[kind]}
    try:
        if kind == "RSA" and _bits(public["n"]) not in RSA_BITS:
            return None
        key = import_key(public)
    except (JoseError, ValueError):
        return None
    return IssuerKey(kid, frozenset(algorithms), key, json.dumps([kid, algorithms, public]))


def _bits(number: Any) -> int:
    if not isinstance(number, str):
        return 0
    return int.from_bytes(urlsafe_b64decode(number.encode("ascii"))).bit_length()


class _Token(NamedTuple):
    """A token as it came: believed by nobody yet."""

    header: dict[str, Any]
    signed: bytes
    signature: bytes

    def holds(self, algorithm: str, key: Key) -> bool:
        """Whether the key's owner has signed it."""
        return _ALGORITHMS[algorithm].verify(self.signed, self.signature, key)

    def claims(self, name: str) -> dict[str, Any]:
        """What it says. Raises `InvalidApiKey`."""
        try:
            return object_of(urlsafe_b64decode(self.signed.partition(b".")[2]))
        except ValueError:
            raise InvalidApiKey(f"{name} holds no claims that can be read") from None


def _read(token: bytes, name: str) -> _Token:
    """Its parts. Raises `InvalidApiKey`."""
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidApiKey(f"{name} is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        if not (parts := _SHAPE.fullmatch(token)):
            raise ValueError
        header = object_of(urlsafe_b64decode(parts[1]))
        if "crit" in header:
            raise ValueError
        return _Token(header, token[: parts.end(2)], urlsafe_b64decode(parts[3]))
    except ValueError:
        raise InvalidApiKey(f"{name} is no signed JWT that can be read") from None


def _check_times(claims: Mapping[str, Any], now: float, name: str) -> float:
    """From when on it is not valid any more. Raises `InvalidApiKey` if it is not valid now."""
    until = _time(claims, "exp", name) + LEEWAY_SECONDS
    if now >= until:
        raise InvalidApiKey(f"{name} has expired: get a new one")
    if "nbf" in claims and _time(claims, "nbf", name) > now + LEEWAY_SECONDS:
        raise InvalidApiKey(f"{name} is not valid yet")
    return until


def _time(claims: Mapping[str, Any], claim: str, name: str) -> float:
    value: Any = claims.get(claim)
    # A bool is an int to Python, and no comparison holds for what is not a number.
    if type(value) not in (int, float) or not 0 <= value <= _LAST_SECOND:
        raise _unfit(claim, name)
    return float(value)


def _text(claims: Mapping[str, Any], claim: str, most: int, name: str) -> str:
    value: Any = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
        raise _unfit(claim, name)
    return value


def _unfit(claim: str, name: str) -> InvalidApiKey:
    return InvalidApiKey(f"{name} lacks the claim {claim!r}, or has it in a form that cannot be used")


class _Held(NamedTuple):
    """A token that holds."""

    caller: tuple[Tenant, str]
    until: float
    key: IssuerKey


class Tokens:
    """The tokens of one issuer. `keys` None: they are not known, and nobody can be told.

    `unknown_signer` is told of a token by a key that is not known: there may be new ones.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        tenant_claim: str,
        models: tuple[str, ...],
        keys: Cell[KeySet | None],
        unknown_signer: Callable[[], None],
        retry_after_seconds: Callable[[], float],
        wall: Callable[[], float],
        strangers: Strangers | None = None,
        max_held: int = MAX_HELD,
    ) -> None:
        self._strangers = strangers
        self._issuer = issuer
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._models = models
        self._keys = keys
        self._unknown_signer = unknown_signer
        self._retry_after_seconds = retry_after_seconds
        self._wall = wall
        self._max_held = max_held
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        """By their digests, the one that was shown last at the end."""
        self._held_by = keys.value
        self._tenants: WeakValueDictionary[tuple[str, str], Tenant] = WeakValueDictionary()
        """By team and user: several tokens of one caller make one tenant, for as long as anybody holds it."""

    def caller_of(self, token: bytes, address: Callable[[], str] = str) -> tuple[Tenant, str]:
        """(whose token it is, who uses it). `address`: where it comes from; asked for what is not remembered only.

        Raises `InvalidApiKey`, and `Busy` while the issuer's keys are not known, or where too many bad signatures come
        from.
        """
        if self._keys.value is not self._held_by:
            self._keep_only(self._keys.value)
        digest = sha256(token).digest()
        held = self._held.get(digest)
        if held is not None:
            if self._wall() < held.until:
                self._held.move_to_end(digest)
                return held.caller
            del self._held[digest]
        held = self._verified(_read(token, "the token"), address)
        self._held[digest] = held
        if len(self._held) > self._max_held:
            self._held.popitem(last=False)
        return held.caller

    def _keep_only(self, keys: KeySet | None) -> None:
        """The issuer has other keys now: what those signed that are gone holds no longer."""
        for digest, held in list(self._held.items()):
            if keys is None or held.key not in keys:
                del self._held[digest]
        self._held_by = keys

    def _verified(self, token: _Token, address: Callable[[], str]) -> _Held:
        """Raises `InvalidApiKey` and `Busy`."""
        keys = self._keys.value
        if keys is None:
            raise Busy(
                "the keys of the tokens' issuer are not known yet", retry_after_seconds=self._retry_after_seconds()
            )
        kid, algorithm = token.header.get("kid"), token.header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in _SIGNED_BY or not (kid is None or isinstance(kid, str)):
            raise InvalidApiKey(_UNKNOWN_SIGNER)
        key = keys.find(kid, algorithm)
        if key is None:
            self._unknown_signer()
            raise InvalidApiKey(_UNKNOWN_SIGNER)
        claims = token.claims("the token")
        if claims.get("iss") != self._issuer:
            raise InvalidApiKey(_UNKNOWN_SIGNER)
        until = _check_times(claims, self._wall(), "the token")
        if not self._is_for_us(claims.get("aud")):
            raise InvalidApiKey("the token was made for another audience")
        user = _text(claims, "sub", MAX_USER_CHARACTERS, "the token")
        team = _text(claims, self._tenant_claim, MAX_TEAM_CHARACTERS, "the token")
        if not self._is_signed(token, algorithm, key.key, address()):
            if kid is None:
                self._unknown_signer()
            raise InvalidApiKey(_UNKNOWN_SIGNER)
        return _Held((self._tenant(team, user), user), until, key)

    def _is_signed(self, token: _Token, algorithm: str, key: Key, address: str) -> bool:
        """Raises `Busy` where too many bad signatures came from that address of late."""
        strangers = self._strangers
        if strangers is None:
            return token.holds(algorithm, key)
        if wait := strangers.wait_seconds(address):
            raise Busy("too many bad tokens came from your address: send this one again", retry_after_seconds=wait)
        signed = token.holds(algorithm, key)
        if not signed:
            strangers.failed(address)
        return signed

    def _is_for_us(self, audience: object) -> bool:
        """`aud` is one string, or a list of strings."""
        if isinstance(audience, list):
            return all(isinstance(each, str) for each in audience) and self._audience in audience
        return audience == self._audience

    def _tenant(self, team: str, user: str) -> Tenant:
        tenant = self._tenants.get((team, user))
        if tenant is None:
            # Limits go by it, and who can register may choose what `sub` he gets: 32 bits could be made to collide.
            key_id = ISSUED_KEY_ID + sha256(f"{self._issuer}\n{user}".encode()).hexdigest()[:16]
            tenant = self._tenants[team, user] = Tenant(key_id, team, self._models)
        return tenant


class ForwardedUsers:
    """For whom an application asks, as Open WebUI says it: in a token that it signs with a secret we share.

    Not remembered: each has the second it was made in, and verifying one costs less than 20 µs.
    """

    def __init__(self, secret: str, wall: Callable[[], float]) -> None:
        self._key = OctKey.import_key(secret)
        self._wall = wall

    def user_of(self, token: bytes, name: str) -> str:
        """The user. `name` is what to call the token in a refusal.

        Raises `InvalidApiKey`.
        """
        read = _read(token, name)
        if read.header.get("alg") != "HS256" or not read.holds("HS256", self._key):
            raise InvalidApiKey(f"{name} is not signed with the secret that is set here")
        claims = read.claims(name)
        if claims.get("iss") != OPEN_WEBUI:
            raise InvalidApiKey(f"{name} is not of {OPEN_WEBUI}")
        _check_times(claims, self._wall(), name)
        return _text(claims, "sub", MAX_USER_CHARACTERS, name)
