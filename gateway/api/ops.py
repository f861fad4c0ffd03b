"""The ops port: probes, metrics, version, and the status as a page and as JSON. It never carries a caller's request.

Liveness says that the process turns its loop, whatever the pods do. Readiness says that requests would find their
way: not while draining, and not before every pod of a first list was asked for its models once, or had its time to
answer. Both, and the metrics, are open: kubelet and Prometheus bear no token. The rest wants one if one is set. A
browser cannot be told to bear one, but it asks its user for a name and a password: with the token as password it may.
"""

import asyncio
import secrets
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from gateway import __version__
from gateway.api.explanation import explanation
from gateway.api.page.docs import docs_page
from gateway.api.page.document import HEADERS, page
from gateway.api.page.live import LivePage
from gateway.api.seen import Seen
from gateway.api.status import ejected_pods, models_without_pods, status_of, why_not_ready
from gateway.core.call import Trail
from gateway.core.errors import InvalidApiKey, NotFound, PoolgateError
from gateway.telemetry.exposition import CONTENT_TYPE

_Responses = dict[int | str, dict[str, Any]]
_VERBOSE: dict[str, Any] = {"content": {"text/plain": {}, "application/json": {}}}
_READINESS: _Responses = {200: _VERBOSE, 503: {"description": "Not ready", **_VERBOSE}}
_REFUSED: _Responses = {401: {"description": "The token is missing", "content": {"application/json": {}}}}
_UNKNOWN: _Responses = {404: {"description": "Not remembered", "content": {"application/json": {}}}}
"""What the routes say beside their 200, for the application's OpenAPI document."""


def ops_app(
    *,
    seen: Callable[[], Seen],
    ops_token: Callable[[], str | None],
    observe: Callable[[], None],
    exposition: Callable[[], Awaitable[bytes]],
    recent: Callable[[str], Trail | None],
    live: LivePage,
) -> FastAPI:
    """The application of the ops port. `exposition` gives the text of `/metrics`, `live` what open pages are sent.

    `observe` makes the `recent` requests, found by their ids, be those of this moment.
    """
    app = FastAPI(
        title="Poolgate operations",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # By itself it makes spans for whatever provider a process has. Ours are of requests to models alone.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )

    @app.get("/livez", response_class=PlainTextResponse)
    async def livez() -> PlainTextResponse:
        """Whether the process turns its loop: `ok`."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", response_class=PlainTextResponse, responses=_READINESS)
    async def readyz(verbose: str | None = None) -> Response:
        """Whether requests should come here: `ok`, or a 503 that says why not; with `?verbose`, more of it as JSON."""
        now = seen()
        reason = why_not_ready(now.fleet, draining=now.draining)
        status = 503 if reason else 200
        if verbose is None:
            return PlainTextResponse(f"{reason or 'ok'}\n", status)
        told = {
            "ready": not reason,
            "reason": reason,
            "pools": now.fleet.pods_by_state(ejected_pods(now)),
            "models_without_pods": models_without_pods(now.fleet),
        }
        return JSONResponse(told, status)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version, as JSON."""
        return {"version": __version__}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What Prometheus scrapes."""
        return Response(await exposition(), media_type=CONTENT_TYPE)

    async def check_token(request: Request) -> None:
        token = ops_token()
        if token is not None and not bears(request.headers.get("authorization"), token):
            raise WantsToken(
                "the ops port wants its token (server.ops_token): send 'Authorization: Bearer TOKEN', or in a browser "
                "any user name and the token as password"
            )

    @app.exception_handler(PoolgateError)
    async def refuse(_: Request, error: PoolgateError) -> Response:
        answer = Response(error.body(), error.http_status, media_type="application/json")
        for name, value in error.headers():
            answer.headers.append(name.decode(), value.decode())
        return answer

    guarded = APIRouter(dependencies=[Depends(check_token)], responses=_REFUSED)

    @guarded.get("/status", response_class=HTMLResponse)
    async def status_page() -> Response:
        """What goes on here, for people: what needs an eye, pools and pods, tenants, the last requests, events."""
        html = await asyncio.to_thread(page, status_of(seen()))
        return page_response(html)

    @guarded.get("/status/events")
    async def events() -> Response:
        """What changes on that page, once a second, as server-sent events; 503 when too many look on."""
        return live.answer()

    @guarded.get("/status.json")
    async def status() -> Response:
        """The same as JSON."""
        # With a thousand pods writing it takes 25 ms. What there is to say is found on the loop: it must not change.
        return await asyncio.to_thread(JSONResponse, status_of(seen()))

    @guarded.get("/status/requests/{request_id:path}", responses=_UNKNOWN)
    async def request(request_id: str) -> Response:
        """How one of the last requests fared, and why it went where it went, as JSON."""
        observe()
        trail = recent(request_id)
        if trail is None:
            # `param` tells it from the answer of a port that has no such path.
            raise NotFound(
                "no such request is remembered: it runs, or is not among the last ones, or came to another replica",
                param="request_id",
            )
        now = seen()
        return JSONResponse(explanation(trail, now.wall - now.now))

    @guarded.get("/docs", response_class=HTMLResponse)
    async def docs() -> Response:
        """This page."""
        return page_response(docs_page(app.openapi()["paths"]))

    app.include_router(guarded)
    return app


def page_response(html: str) -> Response:
    """A page, under its policy."""
    return Response(html.encode("utf-8", "backslashreplace"), 200, HEADERS, "text/html; charset=utf-8")


class WantsToken(InvalidApiKey):
    """Tells programs and browsers in which ways the token can be sent."""

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        # A line for each: not every browser finds the second one in a list.
        basic = b'Basic realm="Poolgate operations", charset="UTF-8"'
        return (*super().headers(), (b"www-authenticate", basic))


def bears(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header (as ASGI servers decode it, by latin-1) bears the token; in constant time.

    As `Bearer TOKEN`, or as RFC 7617's `Basic` with any user name and the token as password.
    """
    scheme, _, given = (authorization or "").partition(" ")
    kind, borne = scheme.lower(), given.strip().encode("latin-1")
    if kind == "basic":
        try:
            borne = b64decode(borne, validate=True).partition(b":")[2]
        except NotBase64:
            return False
    # As bytes: texts beyond ASCII cannot be compared so.
    same = secrets.compare_digest(borne, token.encode("utf-8"))
    return same and kind in ("bearer", "basic")
