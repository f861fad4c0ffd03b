"""The ops port: probes, metrics, version, status. It never carries a caller's request.

Liveness says that the process turns its loop, whatever the pods do. Readiness says that requests would find their
way: not while draining, and not before every pod of a first list was asked for its models once, or had its time to
answer. Both, and the metrics, are open: kubelet and Prometheus bear no token. The rest wants one if one is set.
"""

import asyncio
import secrets
from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from gateway import __version__
from gateway.api.explanation import explanation
from gateway.api.status import Seen, ejected_pods, models_without_pods, status_of, why_not_ready
from gateway.core.call import Trail
from gateway.core.errors import InvalidApiKey, NotFound, PoolgateError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def ops_app(
    *,
    seen: Callable[[], Seen],
    ops_token: Callable[[], str | None],
    observe: Callable[[], None],
    exposition: Callable[[], bytes],
    recent: Callable[[str], Trail | None],
) -> FastAPI:
    """The application of the ops port. `exposition` runs in a thread, all else on the loop.

    `observe` makes the metrics and the `recent` requests, found by their ids, be those of this moment.
    """
    app = FastAPI(title="Poolgate operations", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz(verbose: str | None = None) -> Response:
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
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        observe()
        return Response(await asyncio.to_thread(exposition), media_type=METRICS_TYPE)

    async def check_token(request: Request) -> None:
        token = ops_token()
        if token is not None and not bears(request.headers.get("authorization"), token):
            raise InvalidApiKey("the ops port wants its token: send 'Authorization: Bearer TOKEN' (server.ops_token)")

    @app.exception_handler(PoolgateError)
    async def refuse(_: Request, error: PoolgateError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        return Response(error.body(), error.http_status, headers, "application/json")

    guarded = APIRouter(dependencies=[Depends(check_token)])

    @guarded.get("/status.json")
    async def status() -> Response:
        return JSONResponse(status_of(seen()))

    @guarded.get("/status/requests/{request_id:path}")
    async def request(request_id: str) -> Response:
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

    app.include_router(guarded)
    return app


def bears(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header (as ASGI servers decode it, by latin-1) bears the token; in constant time."""
    scheme, _, given = (authorization or "").partition(" ")
    # As bytes: texts beyond ASCII cannot be compared so.
    same = secrets.compare_digest(given.strip().encode("latin-1"), token.encode("utf-8"))
    return same and scheme.lower() == "bearer"
