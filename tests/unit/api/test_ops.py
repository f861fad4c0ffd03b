"""The ops port's answers: who may read what, and what probes are told."""

import json
from typing import Any

import httpx2
import pytest

from gateway import __version__
from gateway.api.ops import bears, ops_app
from gateway.api.status import Seen, status_of
from gateway.core.fleet import Fleet
from tests.seeing import seen

OPEN = ("/livez", "/readyz", "/readyz?verbose", "/version", "/metrics")
TOKEN = "ünïque-token"


async def get(
    path: str, *, token: str | None = None, authorization: bytes | None = None, now: Seen | None = None
) -> httpx2.Response:
    """One request to an ops port with this token, at a gateway that sees this."""
    scrapes: list[str] = []
    app = ops_app(
        seen=lambda: now or seen(),
        ops_token=token,
        before_scrape=lambda: scrapes.append("observed"),
        exposition=lambda: ",".join(scrapes).encode(),
    )
    headers = {} if authorization is None else {b"authorization": authorization}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://ops") as client:
        return await client.get(path, headers=headers)


async def test_the_status_is_open_while_no_token_is_set() -> None:
    answer = await get("/status.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == json.loads(json.dumps(status_of(seen())))


async def test_the_status_is_told_to_who_bears_the_token() -> None:
    answer = await get("/status.json", token=TOKEN, authorization=f"Bearer {TOKEN}".encode())
    assert (answer.status_code, answer.json()["version"]) == (200, __version__)


@pytest.mark.parametrize(
    "authorization",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer other", b"Bearer \xff\xfe", "Bearer ünïque-toke".encode(), b"\xff"],
)
async def test_the_status_is_refused_to_everyone_else_in_openais_shape(authorization: bytes | None) -> None:
    answer = await get("/status.json", token=TOKEN, authorization=authorization)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "server.ops_token" in error["message"]
    assert TOKEN not in answer.text


@pytest.mark.parametrize("path", OPEN)
async def test_probes_version_and_metrics_need_no_token(path: str) -> None:
    assert (await get(path, token=TOKEN)).status_code == 200


async def test_a_scrape_sees_what_was_noted_before_it() -> None:
    answer = await get("/metrics")
    assert answer.text == "observed"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("fleet", "draining", "status", "words"),
    [
        (Fleet(listed=True, asked=True), False, 200, "ok"),
        (Fleet(), False, 503, "waiting for the first list of pods"),
        (Fleet(listed=True), False, 503, "asking pods for their models"),
        (Fleet(listed=True, asked=True), True, 503, "draining"),
    ],
)
async def test_readiness_is_told_by_status_and_in_words(fleet: Fleet, draining: bool, status: int, words: str) -> None:
    now = seen(fleet=fleet, draining=draining)
    answer, verbose, told = [await get(path, now=now) for path in ("/readyz", "/readyz?verbose", "/status.json")]
    assert (answer.status_code, answer.text) == (status, f"{words}\n")
    reason = "" if status == 200 else words
    for said in (verbose, told):
        assert (said.json()["ready"], said.json()["reason"]) == (status == 200, reason)
    assert (verbose.status_code, told.status_code) == (status, 200)
    assert (await get("/livez", now=now)).status_code == 200


async def test_verbose_readiness_tells_of_pools_and_of_models_without_pods() -> None:
    told: dict[str, Any] = (await get("/readyz?verbose")).json()
    assert told["pools"]["chat"] == {"ready": 1, "starting": 1, "draining": 1, "asleep": 1}
    assert told["models_without_pods"] == ["llama-3.1-8b"]


@pytest.mark.parametrize("path", ["/", "/status", "/docs", "/openapi.json", "/v1/models"])
async def test_there_is_nothing_else(path: str) -> None:
    assert (await get(path)).status_code == 404


@pytest.mark.parametrize(
    ("header", "same"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("BEARER   secret ", True),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer secret2", False),
        ("Bearer secre", False),
        ("Bearersecret", False),
        (None, False),
    ],
)
def test_a_header_bears_the_token_or_not(header: str | None, same: bool) -> None:
    assert bears(header, "secret") is same
