"""A stand-in for an OpenID Connect issuer: its keys, the tokens it signs, and a real socket where it tells of them."""

import asyncio
import base64
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

from joserfc.jwa import JWS_ALGORITHMS
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from tests.fakes import answer

CONFIGURATION = "/.well-known/openid-configuration"
KEYS = "/keys"
AUDIENCE = "poolgate"
NEVER = 253_402_300_799
"""The last second that a token can name."""


def encoded(part: bytes) -> bytes:
    """Base64url, as JWTs have it."""
    return base64.urlsafe_b64encode(part).rstrip(b"=")


@dataclass(frozen=True, eq=False)
class Signer:
    """A private key, and the algorithm and the name that it is used with."""

    algorithm: str
    key: Key
    kid: str | None = None

    def sign(self, claims: Mapping[str, Any] | bytes, header: Mapping[str, Any] | bytes | None = None) -> bytes:
        """A token of these claims; of these very bytes, if they are bytes. Members of the header replace its own."""
        if not isinstance(header, bytes):
            own = {"alg": self.algorithm, "typ": "JWT"} | ({} if self.kid is None else {"kid": self.kid})
            header = json.dumps(own | dict(header or {})).encode()
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        signed = encoded(header) + b"." + encoded(payload)
        return signed + b"." + encoded(_algorithms()[self.algorithm].sign(signed, self.key))

    @property
    def published(self) -> dict[str, Any]:
        """As a JWK, without its private parts."""
        named = {} if self.kid is None else {"kid": self.kid}
        return {**self.key.as_dict(private=False), **named, "use": "sig"}


@cache
def _algorithms() -> dict[str, Any]:
    return {algorithm.name: algorithm for algorithm in JWS_ALGORITHMS}


@cache
def signer(algorithm: str = "ES256", kid: str | None = "one") -> Signer:
    """A signer of its own for each name; making one takes its time."""
    key: Key
    if algorithm.startswith("HS"):
        key = OctKey.generate_key(256)
    elif algorithm.startswith("ES"):
        key = ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm])
    elif algorithm.startswith("Ed"):
        key = OKPKey.generate_key("Ed25519")
    else:
        key = RSAKey.generate_key(2048)
    return Signer(algorithm, key, kid)


def set_of(*signers: Signer) -> bytes:
    """Their keys as a JWK Set."""
    return json.dumps({"keys": [each.published for each in signers]}).encode()


class Hang:
    """No answer at all."""


class Drip:
    """An answer whose end never comes."""


@dataclass
class IssuerServer:
    """Serves its configuration and its keys; or, on a path, what `instead` has for it."""

    signers: list[Signer] = field(default_factory=lambda: [signer()])
    """Those whose keys it lists."""
    instead: dict[str, bytes | type[Hang] | type[Drip]] = field(default_factory=dict)
    """Bytes go out as they are."""
    tls: ssl.SSLContext | None = None
    asked: list[str] = field(default_factory=list)
    """The paths that were asked for."""
    requests: list[bytes] = field(default_factory=list)
    """Whole heads."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _happened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def claims(self, **more: Any) -> dict[str, Any]:
        """What a good token of this issuer says; None takes a claim away."""
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "team": "acme", "exp": NEVER} | more
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, by: Signer | None = None, **claims: Any) -> str:
        """A token that is good but for these claims."""
        return (by or self.signers[0]).sign(self.claims(**claims)).decode()

    async def asked_for(self, path: str, times: int, seconds: float = 5.0) -> None:
        """Wait until a path was asked for so many times."""
        async with asyncio.timeout(seconds):
            while self.asked.count(path) < times:
                self._happened.clear()
                await self._happened.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen; again, after `stop`, on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Listen no more, and end what is going on."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                self.requests.append(head)
                self.asked.append(path)
                self._happened.set()
                said = self.instead.get(path)
                if said is Hang:
                    await reader.read()
                    return
                if said is Drip:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
                    while True:
                        writer.write(b" ")
                        await writer.drain()
                        await asyncio.sleep(0.01)
                writer.write(said if isinstance(said, bytes) else self._page(path))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    def _page(self, path: str) -> bytes:
        if path == CONFIGURATION:
            return answer(json.dumps({"issuer": self.url, "jwks_uri": self.url + KEYS}).encode())
        if path == KEYS:
            return answer(set_of(*self.signers))
        return answer(b"{}", b"404 Not Found")
