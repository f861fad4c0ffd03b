"""Asks a running gateway's ops port; what goes wrong is told in words for the operator."""

import asyncio
from typing import Any
from urllib.parse import quote

import httpx2

Client = httpx2.AsyncClient
ANSWER_SECONDS = 5.0
STATUS_MEMBERS = {"ready", "reason", "discovery", "pools", "pods", "refused"}
TRAFFIC_MEMBERS = STATUS_MEMBERS | {"traffic", "tenants", "events"}
REQUEST_MEMBERS = {"request_id", "outcome", "attempts"}


class NoStatus(Exception):
    """The gateway's status cannot be read; the text says what to do next, and holds no token."""


def connect(url: str, token: str | None) -> Client:
    """A client of the ops port at `url`; nothing is sent yet.

    Raises `NoStatus` when that is no URL.
    """
    try:
        base = httpx2.URL(url)
    except httpx2.InvalidURL:
        base = httpx2.URL("")
    if base.scheme not in ("http", "https") or not base.host:
        raise NoStatus(f"{url} is no URL: give the ops port as http://HOST:PORT")
    headers = {} if token is None else {b"authorization": b"Bearer " + token.strip().encode("utf-8")}
    # Without the environment: a proxy does not reach our loopback, and .netrc would put itself before the token.
    # Without limits of its own: _get has one for the whole answer, where these begin anew with each read.
    return Client(base_url=base, headers=headers, timeout=None, trust_env=False)


async def read_status(client: Client, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What `/status.json` says; its last byte has to come within `seconds`.

    Raises `NoStatus`.
    """
    return _told(await _get(client, "/status.json", seconds), STATUS_MEMBERS)


async def read_traffic(client: Client, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """The same, of a gateway that tells of its last minute too.

    Raises `NoStatus`.
    """
    status = await read_status(client, seconds=seconds)
    if not status.keys() >= TRAFFIC_MEMBERS:
        raise NoStatus(f"the gateway at {_url(client)} is older than this command: it tells nothing of its traffic")
    return status


async def read_request(client: Client, request_id: str, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What `/status/requests/{id}` says; its last byte has to come within `seconds`.

    Raises `NoStatus`, also where the gateway does not know that request any more.
    """
    answer = await _get(client, f"/status/requests/{quote(request_id, safe='')}", seconds)
    if answer.status_code == 404 and _param(answer) == "request_id":
        raise NoStatus(
            f"{_url(client)} remembers no request {request_id!r}: only the last ones that have ended are kept, each by "
            "the replica that served it. Ask the others by --url, or look for the id among their access lines"
        )
    return _told(answer, REQUEST_MEMBERS)


async def _get(client: Client, path: str, seconds: float) -> httpx2.Response:
    url = _url(client)
    try:
        async with asyncio.timeout(seconds):
            answer = await client.get(path)
    except TimeoutError:
        raise NoStatus(f"{url} does not answer within {seconds:g} seconds") from None
    except httpx2.ConnectError:
        raise NoStatus(f"nothing answers at {url}: is the gateway running, and is this its ops port?") from None
    except httpx2.HTTPError as error:
        # Its text may quote a header of ours.
        raise NoStatus(f"{url} breaks off, or does not speak HTTP ({type(error).__name__})") from None
    if answer.status_code == 401:
        raise NoStatus("the ops port wants a token: --token or POOLGATE_OPS_TOKEN")
    return answer


def _told(answer: httpx2.Response, members: set[str]) -> dict[str, Any]:
    """The answer's content, if it has these members."""
    if answer.status_code != 200:
        raise NoStatus(f"{answer.url} answers with status {answer.status_code}: is this the gateway's ops port?")
    told = _json(answer)
    if not isinstance(told, dict) or not told.keys() >= members:
        raise NoStatus(f"{answer.url} is not a gateway's status: is this the gateway's ops port?")
    return told


def _param(answer: httpx2.Response) -> object:
    """What an error of a gateway's is about."""
    told = _json(answer)
    error = told.get("error") if isinstance(told, dict) else None
    return error.get("param") if isinstance(error, dict) else None


def _json(answer: httpx2.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return None


def _url(client: Client) -> str:
    return str(client.base_url).rstrip("/")
