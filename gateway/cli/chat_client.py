"""One streamed chat through a running gateway's public port, as it comes."""

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from gateway.upstream.sse import EventFramer, payload

E = TypeVar("E", bound=Exception)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 180.0
"""From one piece of the answer to the next. A gateway gives up first, and says why: see `pools.NAME.ttft_seconds`."""
MAX_ERROR_BYTES = 65_536
MAX_EVENT_BYTES = 1 << 20


class Unanswered(Exception):
    """There is no answer, or no whole one; the text says why. It holds no key."""


@dataclass
class Answered:
    """What is known of an answer; it grows while the stream lasts."""

    model: str = ""
    request_id: str | None = None
    pod: str | None = None
    """Told to keys that may debug."""
    text: str = ""
    finish: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)


def connect(url: str, key: str | None, silence_seconds: float = SILENCE_SECONDS) -> httpx2.AsyncClient:
    """A client of the public port at `url`, with or without its `/v1`; nothing is sent yet.

    Raises `Unanswered` when that is no URL.
    """
    try:
        base = httpx2.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx2.InvalidURL:
        base = httpx2.URL("")
    if base.scheme not in ("http", "https") or not base.host:
        raise Unanswered(f"{url} is no URL: give the gateway as http://HOST:PORT")
    headers = {} if key is None else {b"authorization": b"Bearer " + key.strip().encode("utf-8")}
    patience = httpx2.Timeout(silence_seconds, connect=CONNECT_SECONDS)
    # Without the environment: a proxy does not reach our loopback, and .netrc would put itself before the key.
    # Which certificates are believed (SSL_CERT_FILE) is all that is taken of it; reading them costs a while.
    believed = httpx2.create_ssl_context() if base.scheme == "https" else True
    return httpx2.AsyncClient(base_url=base, headers=headers, timeout=patience, trust_env=False, verify=believed)


async def first_model(client: httpx2.AsyncClient) -> str:
    """The first that the gateway lists.

    Raises `Unanswered`.
    """
    async with _answer(client, "GET", "/v1/models", None) as answer:
        body = await answer.aread()
    try:
        models = json.loads(body)["data"]
        if not models:
            raise Unanswered("the gateway lists no model for this key: is a pod ready? See 'poolgate pods'")
        return str(models[0]["id"])
    except (ValueError, KeyError, TypeError):
        raise Unanswered(f"{_url(client)} does not list models: is it a gateway's public port?") from None


async def stream(client: httpx2.AsyncClient, body: Mapping[str, Any], answered: Answered) -> AsyncIterator[str]:
    """The pieces of the text as they come; the empty one is a sign of life without text, such as of reasoning.

    Raises `Unanswered`, also in mid-stream.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    framer, done = EventFramer(), False
    async with _answer(client, "POST", "/v1/chat/completions", asked) as answer:
        answered.request_id = answer.headers.get("x-request-id")
        answered.pod = answer.headers.get("x-poolgate-pod")
        async for data in answer.aiter_bytes():
            for event in framer.feed(data):
                told = payload(event)
                done = done or told == b"[DONE]"
                if told is not None and told != b"[DONE]":
                    piece = _read(told, answered)
                    if piece is not None:
                        answered.text += piece
                        yield piece
            if len(framer.tail) > MAX_EVENT_BYTES:
                raise Unanswered("what comes is no stream of events: is this a gateway's public port?")
    if not done:
        raise Unanswered("the answer was cut: it ended before it was whole")


def _read(told: bytes, answered: Answered) -> str | None:
    """The text of an event; None: it is for the books only. Raises `Unanswered` for an error."""
    try:
        event = json.loads(told)
        if "error" in event:
            raise Unanswered(_words(event["error"]))
        answered.model = event.get("model") or answered.model
        answered.usage = event.get("usage") or answered.usage
        for choice in event.get("choices") or ():
            answered.finish = choice.get("finish_reason") or answered.finish
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if delta.get("content") or thought:
                return str(delta.get("content") or "")
    except (ValueError, AttributeError, TypeError):
        raise Unanswered("what comes is no stream of a chat: is this a gateway's public port?") from None
    return None


@asynccontextmanager
async def _answer(
    client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
) -> AsyncIterator[httpx2.Response]:
    """An answer with status 200, its body still to come. Raises `Unanswered`, also for what happens to it later."""
    url = _url(client)
    hint = ": is it https://?" if url.startswith("http://") else ""
    try:
        async with client.stream(method, path, json=body) as answer:
            hint = ""
            if answer.status_code != 200:
                raise Unanswered(await _refusal(answer, url))
            yield answer
    except httpx2.ConnectTimeout:
        raise Unanswered(f"{url} takes no connection within {CONNECT_SECONDS:g} seconds") from None
    except httpx2.ConnectError as error:
        if unbelieved := _of_kind(error, ssl.SSLCertVerificationError):
            raise Unanswered(
                f"the certificate of {url} is not believed here ({unbelieved.verify_message}): name the file with its "
                "issuer's in the environment's SSL_CERT_FILE"
            ) from None
        if _of_kind(error, ssl.SSLError):
            raise Unanswered(f"{url} does not speak TLS: is it http://?") from None
        raise Unanswered(f"nothing answers at {url}: is the gateway running, and is this its public port?") from None
    except httpx2.TimeoutException:
        raise Unanswered(f"nothing came from {url} for {client.timeout.read:g} seconds") from None
    except httpx2.HTTPError as error:
        # Its text may quote a header of ours. A port with TLS says nothing to who speaks without.
        raise Unanswered(f"{url} breaks off, or does not speak HTTP ({type(error).__name__}){hint}") from None


def _of_kind(error: BaseException | None, kind: type[E]) -> E | None:
    """What led to an error, if it was of this kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


async def _refusal(answer: httpx2.Response, url: str) -> str:
    """An error's own words, its code first."""
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MAX_ERROR_BYTES:
            break
    request_id = answer.headers.get("x-request-id")
    about = f" (request {request_id})" if request_id else ""
    try:
        return f"{_words(json.loads(body)['error'], answer.status_code)}{about}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{url} answers with status {answer.status_code}: is this a gateway's public port?{about}"


def _words(error: Mapping[str, Any], status: int | None = None) -> str:
    """`rate_limit_exceeded (429): ...`."""
    code = str(error.get("code") or error.get("type") or "error")
    return f"{code}{f' ({status})' if status is not None else ''}: {error.get('message', '')}"


def _url(client: httpx2.AsyncClient) -> str:
    return str(client.base_url).rstrip("/")
