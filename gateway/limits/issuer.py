"""The keys of a tokens' issuer: fetched beside the requests, again and again.

Where they are the issuer's configuration says (OpenID Connect Discovery), unless it is known. They are read every ten
minutes, so a key that was withdrawn is believed no longer than that; and soon after a token was seen by a key that is
not known, so a new key is known when it is used. What cannot be read changes nothing: the keys there are stay in force
for a day. Then nobody knows any more what the issuer has withdrawn, and they are dropped.

What comes is believed as far as TLS goes, but is bounded in time and size. A redirection is followed on the same host
only, and nothing of the environment applies but where certificates are (`SSL_CERT_FILE`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from ssl import SSLContext
from typing import TypeVar

import httpx2

from gateway.core.cell import Cell
from gateway.core.clock import about
from gateway.limits.jwt import KeySet, keys_of, object_of

ANSWER_SECONDS = 10.0
"""For every byte of it, and of what led to it."""
MAX_ANSWER_BYTES = 1 << 20
MAX_REDIRECTIONS = 3

T = TypeVar("T")
log = logging.getLogger("poolgate.issuer")


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds; each pause is a fifth longer or shorter by chance."""

    refresh: float = 600.0
    first_pause: float = 1.0
    """After a failure; then twice as long each time."""
    longest_pause: float = 60.0
    ask_soon: float = 10.0
    """From one question to the next, at least, if tokens by unknown keys come: anybody can make such a token."""
    trusted: float = 86_400.0
    """So long keys that could not be read again are believed."""


class Unread(Exception):
    """The keys could not be read. The text names no address."""


class Issuer:
    """Keeps the keys up to date. `ask` gets them, or raises `Unread`, after a bounded time."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[KeySet]],
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self.keys: Cell[KeySet | None] = Cell(None)
        """None: nothing is known."""
        self._ask = ask
        self._clock = clock
        self._chance = chance
        self._pace = pace or Pace()
        self._read_at = self._due_at = clock()
        self._soon = asyncio.Event()
        self._well = True

    def ask_soon(self) -> None:
        """A token came by a key that is not known."""
        self._soon.set()

    def retry_after_seconds(self) -> float:
        """In how long keys may be known: a moment after the next question."""
        return max(0.0, self._due_at - self._clock()) + 1.0 + self._chance()

    async def run(self) -> None:
        """Ask for ever; ends by cancellation."""
        pause = self._pace.first_pause
        while True:
            asked_at = self._clock()
            self._soon.clear()
            failure = await self._renew()
            if failure:
                self._miss(failure)
                due = asked_at + about(pause, self._chance)
                pause = min(self._pace.longest_pause, 2 * pause)
            else:
                due = asked_at + about(self._pace.refresh, self._chance)
                pause = self._pace.first_pause
            await self._rest(due, asked_at + self._pace.ask_soon)

    async def _renew(self) -> str:
        """Ask once. Why there is no answer; empty: there is."""
        try:
            keys = await self._ask()
        except Unread as error:
            return str(error)
        except Exception as error:
            # Whoever has a key from the keys file needs no issuer, and shall not end with it.
            log.exception("the issuer's keys could not be asked for")
            return type(error).__name__
        self._read_at = self._clock()
        changed = keys != self.keys.value
        if changed:
            self.keys.set(keys)
        if changed or not self._well:
            log.info("the issuer's keys are read: %d can be used", len(keys))
        self._well = True
        return ""

    def _miss(self, why: str) -> None:
        if self._well:
            until = "no token is taken" if self.keys.value is None else "those that are known stay in force"
            log.warning("the issuer's keys cannot be read, until then %s: %s", until, why)
            self._well = False
        if self.keys.value is not None and self._clock() - self._read_at > self._pace.trusted:
            log.error("the issuer's keys could not be read for too long: no token is taken until they are")
            self.keys.set(None)

    async def _rest(self, due: float, earliest: float) -> None:
        """Wait until the next question is due or, if somebody wants it sooner, until it may be put."""
        self._due_at = due
        with suppress(TimeoutError):
            async with asyncio.timeout(due - self._clock()):
                await self._soon.wait()
                self._due_at = min(due, max(earliest, self._clock()))
                await asyncio.sleep(self._due_at - self._clock())


class Published:
    """The keys as their issuer publishes them, on `jwks_url`, or where its configuration says."""

    def __init__(self, issuer: str, jwks_url: str | None = None, *, seconds: float = ANSWER_SECONDS) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._seconds = seconds
        self._context: SSLContext | None = None

    async def keys(self) -> KeySet:
        """Ask for them.

        Raises `Unread`.
        """
        if self._context is None:
            # It reads every certificate that this machine believes.
            self._context = await asyncio.to_thread(httpx2.create_ssl_context)
        try:
            # A client for each time: no cookie and no connection stays.
            async with (
                asyncio.timeout(self._seconds),
                httpx2.AsyncClient(verify=self._context, trust_env=False, timeout=None) as client,
            ):
                url = self._jwks_url or await self._jwks_uri(client)
                return await _read(keys_of, await _get(client, url, "the answer with the keys"))
        except TimeoutError:
            raise Unread(f"there is no whole answer within {self._seconds:g} seconds") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unread(f"there is no connection, or it breaks ({type(error).__name__})") from None

    async def _jwks_uri(self, client: httpx2.AsyncClient) -> str:
        """Where the issuer says that its keys are.

        Raises `Unread`, and what httpx2 raises.
        """
        url = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
        told = await _read(object_of, await _get(client, url, "the answer with the configuration"))
        # Else it is somebody else's (OpenID Connect Discovery, section 4.3).
        if told.get("issuer") != self._issuer:
            raise Unread("the configuration is of another issuer")
        found = told.get("jwks_uri")
        if not isinstance(found, str) or not found.startswith(("https://", self._issuer.partition("//")[0] + "//")):
            raise Unread("the configuration names no address of keys that may be asked")
        return found


async def _get(client: httpx2.AsyncClient, url: str, what: str) -> bytes:
    """The body of a 200 answer, of `MAX_ANSWER_BYTES` at most.

    Raises `Unread`, and what httpx2 raises.
    """
    place = httpx2.URL(url)
    for _ in range(1 + MAX_REDIRECTIONS):
        # Not compressed: so a small answer cannot become a large one.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        async with client.stream("GET", place, headers=headers) as answer:
            if answer.has_redirect_location:
                before, place = place, place.join(answer.headers["location"])
                if _origin(place) != _origin(before):
                    raise Unread(f"{what} leads to another host")
                continue
            if answer.status_code != 200:
                raise Unread(f"{what} has the status {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise Unread(f"{what} is compressed")
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise Unread(f"{what} is longer than {MAX_ANSWER_BYTES} bytes")
            return bytes(body)
    raise Unread(f"{what} leads on and on")


async def _read(read: Callable[[bytes], T], body: bytes) -> T:
    """What a body says, read beside the loop: a mebibyte takes its time.

    Raises `Unread`.
    """
    try:
        return await asyncio.to_thread(read, body)
    except ValueError as error:
        raise Unread(f"what comes is of no use: {error}") from None


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
