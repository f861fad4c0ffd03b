"""A server that notes what its parser made of what came: `recorder.py KIND PORT FILE`, with nothing else of ours.

A line of JSON in FILE for each request: the client's port, the method and the body. All that it says is `{}`, and to a
GET what a pod lists, so that it can stand behind a gateway.
"""

import json
import os
import sys
from typing import Any

MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"vllm"}]}'
ANSWER = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


class Notes:
    """Appends to a file, from any thread."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def take(self, port: int, method: str, body: bytes) -> bytes:
        """Note a request; gives the answer's body."""
        if method == "GET" and not body:
            return MODELS
        line = json.dumps({"port": port, "method": method, "body": body.decode("latin-1")})
        os.write(self._file, line.encode() + b"\n")
        return ANSWER


def asgi(notes: Notes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        said = notes.take(scope["client"][1], scope["method"], body)
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": said})

    return app


def wsgi(notes: Notes) -> Any:
    def app(environ: Any, start: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        said = notes.take(int(environ["REMOTE_PORT"]), environ["REQUEST_METHOD"], body)
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(said)))])
        return [said]

    return app


def uvicorn(parser: str, port: int, notes: Notes) -> None:
    import uvicorn

    uvicorn.run(asgi(notes), port=port, http=parser, ws="none", lifespan="off", log_level="critical")


def aiohttp(port: int, notes: Notes) -> None:
    import asyncio

    from aiohttp import web

    async def answer(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        said = notes.take(int(request.headers.get("x-real-port", peer[1])), request.method, body)
        return web.Response(body=said, content_type="application/json")

    async def run() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    asyncio.run(run())


def gunicorn(port: int, notes: Notes) -> None:
    from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]  # lives in another environment

    class Application(BaseApplication):  # type: ignore[misc]  # not known here
        def load_config(self) -> None:
            for name, value in {
                "bind": f"127.0.0.1:{port}",
                "worker_class": "gthread",
                "threads": 8,
                "keepalive": 5,
                "loglevel": "critical",
            }.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return wsgi(notes)

    Application().run()


def waitress(port: int, notes: Notes) -> None:
    from waitress import serve  # type: ignore[import-untyped]  # lives in another environment

    serve(wsgi(notes), host="127.0.0.1", port=port, threads=8)


def main() -> None:
    kind, port, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    notes = Notes(file)
    if kind in ("h11", "httptools"):
        uvicorn(kind, port, notes)
    else:
        {"aiohttp": aiohttp, "gunicorn": gunicorn, "waitress": waitress}[kind](port, notes)


if __name__ == "__main__":
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    main()
