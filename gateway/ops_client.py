"""Asks a running gateway's ops port; what goes wrong is told in words for the operator."""

import asyncio
from typing import Any

import httpx2

ANSWER_SECONDS = 5.0
MEMBERS = {"ready", "reason", "discovery", "pods", "refused"}


class NoStatus(Exception):
    """The gateway's status cannot be read; the text says what to do next, and holds no token."""


def connect(url: str, token: str | None) -> httpx2.AsyncClient:
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
    # Without limits of its own: read_status has one for the whole answer, where these begin anew with each read.
    return httpx2.AsyncClient(base_url=base, headers=headers, timeout=None, trust_env=False)


async def read_status(client: httpx2.AsyncClient, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What `/status.json` says; its last byte has to come within `seconds`.

    Raises `NoStatus`.
    """
    url = str(client.base_url).rstrip("/")
    try:
        async with asyncio.timeout(seconds):
            answer = await client.get("/status.json")
    except TimeoutError:
        raise NoStatus(f"{url} does not answer within {seconds:g} seconds") from None
    except httpx2.ConnectError:
        raise NoStatus(f"nothing answers at {url}: is the gateway running, and is this its ops port?") from None
    except httpx2.HTTPError as error:
        # Its text may quote a header of ours.
        raise NoStatus(f"{url} breaks off, or does not speak HTTP ({type(error).__name__})") from None
    if answer.status_code == 401:
        raise NoStatus("the ops port wants a token: --token or POOLGATE_OPS_TOKEN")
    if answer.status_code != 200:
        raise NoStatus(f"{url}/status.json answers with status {answer.status_code}: is this the gateway's ops port?")
    try:
        status = answer.json()
    except ValueError:
        status = None
    if not isinstance(status, dict) or not status.keys() >= MEMBERS:
        raise NoStatus(f"{url}/status.json is not a gateway's status: is this the gateway's ops port?")
    return status
