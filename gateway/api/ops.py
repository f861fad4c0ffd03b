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
from gateway.api.status import Seen, models_without_pods, status_of, why_not_ready
from gateway.core.errors import InvalidApiKey

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def ops_app(
    *,
    seen: Callable[[], Seen],
    ops_token: str | None,
    before_scrape: Callable[[], None],
    exposition: Callable[[], bytes],
) -> FastAPI:
    """The application of the ops port. `before_scrape` and `seen` run on the loop, `exposition` in a thread."""
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
            "pools": now.fleet.pods_by_state(),
            "models_without_pods": models_without_pods(now.fleet),
        }
        return JSONResponse(told, status)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        before_scrape()
        return Response(await asyncio.to_thread(exposition), media_type=METRICS_TYPE)

    async def check_token(request: Request) -> None:
        if ops_token is not None and not bears(request.headers.get("authorization"), ops_token):
            raise InvalidApiKey("the ops port wants its token: send 'Authorization: Bearer TOKEN' (server.ops_token)")

    @app.exception_handler(InvalidApiKey)
    async def refuse(_: Request, error: InvalidApiKey) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        return Response(error.body(), error.http_status, headers, "application/json")

    guarded = APIRouter(dependencies=[Depends(check_token)])

    @guarded.get("/status.json")
    async def status() -> Response:
        return JSONResponse(status_of(seen()))

    app.include_router(guarded)
    return app


def bears(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header (as ASGI servers decode it, by latin-1) bears the token; in constant time."""
    scheme, _, given = (authorization or "").partition(" ")
    # As bytes: texts beyond ASCII cannot be compared so.
    same = secrets.compare_digest(given.strip().encode("latin-1"), token.encode("utf-8"))
    return same and scheme.lower() == "bearer"
