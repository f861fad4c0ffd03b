"""The ops port's answers: who may read what, and what probes are told."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from gateway import __version__
from gateway.api.explanation import explanation
from gateway.api.ops import bears, ops_app
from gateway.api.page.document import HEADERS, page
from gateway.api.page.live import LivePage
from gateway.api.seen import Seen
from gateway.api.status import status_of
from gateway.core.call import Trail
from gateway.core.fleet import Fleet, PodHealth
from gateway.telemetry.recent import Recent
from tests.seeing import seen
from tests.unit.telemetry.trails import trail

OPEN = ("/livez", "/readyz", "/readyz?verbose", "/version", "/metrics")
TOKEN = "ünïque-token"


async def get(
    path: str,
    *,
    token: str | None = None,
    authorization: bytes | None = None,
    now: Seen | None = None,
    ended: Sequence[Trail] = (),
) -> httpx2.Response:
    """One request to an ops port with this token, at a gateway that sees this, and where these have just ended."""
    recent = Recent()

    def observe() -> None:
        for each in ended:
            recent.add(each)

    async def exposition() -> bytes:
        return b"the text"

    app = ops_app(
        seen=lambda: now or seen(),
        ops_token=lambda: token,
        observe=observe,
        exposition=exposition,
        recent=recent.find,
        live=LivePage(lambda: status_of(now or seen())),
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


def basic(user: str, password: str) -> str:
    """As a browser sends what its user typed in."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


GUARDED = ("/status", "/status.json", "/status/events", "/status/requests/id-1", "/docs")
PAGES = ("/status", "/docs")


@pytest.mark.parametrize("path", PAGES)
async def test_a_browser_may_send_the_token_as_a_password(path: str) -> None:
    answer = await get(path, token=TOKEN, authorization=basic("anyone", TOKEN).encode())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_the_page_is_made_of_what_the_json_says() -> None:
    assert (await get("/status")).text == page(status_of(seen()))


@pytest.mark.parametrize("path", PAGES)
async def test_pages_are_under_a_strict_policy(path: str) -> None:
    answer = await get(path)
    assert HEADERS.items() <= dict(answer.headers).items()
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert "http" not in answer.text.partition("</style>")[2]


async def test_the_docs_list_every_route_with_what_it_answers() -> None:
    text = (await get("/docs")).text
    for path in (*GUARDED, *OPEN):
        assert f"<code>GET {path.partition('?')[0].replace('id-1', '{request_id}')}</code>" in text
    assert "<td></td>" not in text


async def test_a_name_that_is_no_utf_8_breaks_no_page() -> None:
    answer = await get("/status", now=seen(replica="\ud800"))
    assert "\\ud800" in answer.text


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "authorization",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer other", b"Bearer \xff\xfe", "Bearer ünïque-toke".encode(), b"\xff"],
)
async def test_the_status_is_refused_to_everyone_else_in_openais_shape(authorization: bytes | None, path: str) -> None:
    answer = await get(path, token=TOKEN, authorization=authorization, ended=[trail()])
    assert answer.status_code == 401
    assert answer.headers.get_list("www-authenticate") == [
        "Bearer",
        'Basic realm="Poolgate operations", charset="UTF-8"',
    ]
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "server.ops_token" in error["message"]
    assert TOKEN not in answer.text


async def test_a_request_that_has_just_ended_is_told_by_its_id() -> None:
    answer = await get("/status/requests/id-1", token=TOKEN, authorization=f"Bearer {TOKEN}".encode(), ended=[trail()])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    now = seen()
    assert answer.json() == json.loads(json.dumps(explanation(trail(), now.wall - now.now)))


@pytest.mark.parametrize("request_id", ["unknown", "", "a/b", "%2E%2E%2Fstatus.json", "%FF"])
async def test_a_request_that_nobody_knows_is_a_404_in_openais_shape(request_id: str) -> None:
    answer = await get(f"/status/requests/{request_id}", ended=[trail()])
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "not_found", "request_id")
    assert "remembered" in error["message"]


@pytest.mark.parametrize("path", OPEN)
async def test_probes_version_and_metrics_need_no_token(path: str) -> None:
    assert (await get(path, token=TOKEN)).status_code == 200


async def test_metrics_are_prometheus_plain_text() -> None:
    answer = await get("/metrics")
    assert answer.text == "the text"
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
    assert told["pools"]["chat"] == {"ready": 1, "starting": 1, "draining": 1, "asleep": 1, "ejected": 0}
    assert told["models_without_pods"] == ["llama-3.1-8b"]


async def test_probes_ask_for_nothing_of_each_pod() -> None:
    def never(uid: str) -> Any:
        raise AssertionError(f"{uid} was asked for")

    now = seen(load_of=never, health_of=never, in_flight=never)
    assert (await get("/livez", now=now)).status_code == 200
    assert (await get("/readyz", now=now)).status_code == 200
    with pytest.raises(AssertionError):
        await get("/status.json", now=now)


async def test_verbose_readiness_counts_an_ejected_pod_as_that() -> None:
    now = seen(health_of=lambda uid: PodHealth("ejected" if "chat-0" in uid else "healthy"))
    told: dict[str, Any] = (await get("/readyz?verbose", now=now)).json()
    assert (told["pools"]["chat"]["ready"], told["pools"]["chat"]["ejected"]) == (0, 1)


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/redoc", "/docs/oauth2-redirect", "/v1/models"])
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
        (basic("", "secret"), True),
        (basic("me", "secret"), True),
        (basic("me", "secret").replace("Basic", "BASIC"), True),
        (basic("me", "secret:"), False),
        (basic("secret", ""), False),
        (basic("me:secret", ""), False),
        ("Basic c2VjcmV0", False),
        ("Basic ", False),
        ("Basic é", False),
        (f"Bearer {base64.b64encode(b'me:secret').decode()}", False),
    ],
)
def test_a_header_bears_the_token_or_not(header: str | None, same: bool) -> None:
    assert bears(header, "secret") is same
