"""The ops port: probes, metrics, version. It never carries a caller's request.

Liveness says that the process turns its loop, whatever the pods do. Readiness says that requests would find their
way: not before every pod was asked for its models once (or ten seconds have passed), not while draining.
"""

import asyncio
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from gateway import __version__
from gateway.core.fleet import Fleet, PodState

GRACE_SECONDS = 10.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def ops_app(
    *,
    fleet: Callable[[], Fleet],
    draining: Callable[[], bool],
    uptime: Callable[[], float],
    before_scrape: Callable[[], None],
    exposition: Callable[[], bytes],
) -> FastAPI:
    """The application of the ops port. `before_scrape` runs on the loop, `exposition` in a thread."""
    app = FastAPI(title="Poolgate operations", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz(verbose: str | None = None) -> Response:
        now = fleet()
        reason = "draining" if draining() else ""
        if not reason and not now.asked and uptime() < GRACE_SECONDS:
            reason = "asking pods for their models"
        status = 503 if reason else 200
        if verbose is None:
            return PlainTextResponse(f"{reason or 'ok'}\n", status)
        pools: dict[str, dict[str, int]] = {}
        for pod in now.pods:
            counts = pools.setdefault(pod.pool, {state.value: 0 for state in PodState})
            counts[pod.state.value] += 1
        without = sorted(name for name, route in now.routes.items() if not route.pods)
        told = {"ready": not reason, "reason": reason, "pools": pools, "models_without_pods": without}
        return JSONResponse(told, status)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        before_scrape()
        return Response(await asyncio.to_thread(exposition), media_type=METRICS_TYPE)

    return app
