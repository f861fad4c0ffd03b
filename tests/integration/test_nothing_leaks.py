"""No prompt, answer, key, user or pod's address in anything that a gateway emits.

A gateway process with all it may have (Redis, traces, a token for its ops port) is sent requests of every kind, good
and bad, whose every part bears a word of its own, before pods that quote them. Then all that came out is searched.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.integration.test_process import SECONDS, Served, run, started
from tests.raw import RawClient, ask, request
from tests.valkey import Valkey

PROMPT, ANSWER, USER, KEY, PATH, HEADER, FILE, FIELD, TOKEN = (
    f"canary-{word}-5e1f" for word in ("prompt", "answer", "user", "key", "path", "header", "file", "field", "token")
)
CANARIES = (PROMPT, ANSWER, USER, KEY, PATH, HEADER, FILE, FIELD, TOKEN)
MODEL = "canary-model-5e1f"
"""A name that nobody serves: it may stand in an access line and what is made of it, never in a metric."""


def event(content: str, finish: str = "null") -> bytes:
    return chunk(
        b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
        % (content.encode(), finish.encode())
    )


USAGE = b'{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
WHOLE = answer(
    b'{"model":"m","choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"stop"}],"usage":%b}'
    % (ANSWER.encode(), USAGE)
)
STREAM = (
    STREAM_HEAD
    + event(ANSWER)
    + event(ANSWER, '"stop"')
    + chunk(b'data: {"choices":[],"usage":%b}\n\n' % USAGE)
    + chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


def scripts(port: int) -> dict[bytes, Sequence[Step]]:
    """What a pod does when these words stand in a request: it quotes the prompt, and tells where it lives."""
    quote = f"{PROMPT} of {USER} failed at http://127.0.0.1:{port}/v1".encode()
    nested = b'{"error":{"message":"%b","type":"BadRequestError","param":null,"code":400}}' % quote
    return {
        b"do-stream": [STREAM],
        b"do-refuse": [answer(nested, b"400 Bad Request")],
        b"do-detail": [answer(b'{"detail":"%b"}' % quote, b"404 Not Found")],
        b"do-fail": [answer(nested.replace(b"400", b"500"), b"500 Internal Server Error")],
        b"do-junk": [b"%b\r\n\r\n" % quote, Close],
        b"do-html": [answer(b"<html>%b</html>" % quote, b"502 Bad Gateway", b"text/html")],
        b"do-redirect": [
            answer(quote, b"307 Temporary Redirect", more=b"location: http://127.0.0.1:%d/%b\r\n" % (port, quote[:12]))
        ],
        b"do-auth": [answer(nested, b"401 Unauthorized")],
        b"do-reset": [Reset],
        b"do-cut": [STREAM_HEAD + event(ANSWER), Reset],
        b"do-error": [STREAM_HEAD + event(ANSWER) + chunk(b"data: %b\n\n" % nested) + b"0\r\n\r\n"],
        b"do-header": [answer(b"{}", more=b"x-%b: %b\r\n" % (HEADER.encode(), quote))],
        b"do-wait": [STREAM_HEAD + event(ANSWER), Hang],
    }


async def pod() -> ScriptedPod:
    """A pod that is up."""
    made = ScriptedPod()
    await made.start()
    rules = scripts(made.port)
    made.script_of = lambda body: next((script for word, script in rules.items() if word in body), [WHOLE])
    return made


@dataclass
class Collector:
    """Where traces are sent; keeps their bytes."""

    bodies: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
                self.bodies.append(head + await reader.readexactly(length))
                writer.write(answer(b"", content_type=b"application/x-protobuf"))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    yield collector
    server.close()


def chat(say: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [
            {"role": "user", "name": USER, "content": f"{say} {PROMPT}"},
        ],
        "user": USER,
        "metadata": {FIELD: FIELD},
        "tools": [{"type": "function", "function": {"name": FIELD, "parameters": {FIELD: FIELD}}}],
        **more,
    }


FORM = "multipart/form-data; boundary=edge"
HEADERS = {
    "X-OpenWebUI-User-Id": USER,
    "X-OpenWebUI-User-Email": USER,
    "X-OpenWebUI-Task": HEADER,
    "User-Agent": HEADER,
    "Cookie": HEADER,
    "X-Forwarded-For": HEADER,
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Tracestate": f"a={HEADER}",
}


def requests(key: str) -> list[bytes]:
    """One of every kind."""
    says = [word.decode() for word in scripts(0) if word != b"do-wait"]
    form = (
        f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{FILE}"\r\n\r\n{PROMPT}\r\n'
        f'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--edge--\r\n'
    ).encode()
    others: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "m", "prompt": PROMPT, "user": USER},
        "/v1/embeddings": {"model": "m", "input": [PROMPT]},
        "/v1/responses": {"model": "m", "input": PROMPT, "instructions": PROMPT},
        "/v1/messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]},
        "/v1/rerank": {"model": "m", "query": PROMPT, "documents": [PROMPT]},
        "/tokenize": {"model": "m", "prompt": PROMPT},
    }
    # Good ones between the bad, or the pods are ejected before all was tried.
    good = [request(chat("do-stream", stream=True), key=key)] * 4
    at_pods = [
        [request(chat(say, stream=stream), key=key, headers=HEADERS), *good] for say in says for stream in (False, True)
    ]
    return [
        *chain.from_iterable(at_pods),
        *(request(body, key=key, path=path, headers=HEADERS) for path, body in others.items()),
        request(
            form,
            key=key,
            path="/v1/audio/transcriptions",
            headers={"Content-Type": FORM},
        ),
        # Refused on their way in.
        request(f'{{"model": "m", "{PROMPT}'.encode(), key=key),
        request(f'["{PROMPT}"]'.encode(), key=key),
        request(chat("x", model=MODEL), key=key),
        request(chat("x", model=[PROMPT]), key=key),
        request(chat("x", n=PROMPT, stream=PROMPT), key=key),
        request(chat("x", cache_salt=FIELD, session_id=FIELD), key=key),
        request(chat("x", stream_options=PROMPT), key=key),
        request(chat("x"), key=f"sk-pg_{KEY}"),
        request(chat("x"), headers={"X-Api-Key": KEY}),
        request(chat("x"), key=key, headers={"X-Api-Key": KEY}),
        request(chat("x"), key=f"{TOKEN}.{TOKEN}.{TOKEN}"),
        request(chat("x"), key=key, path=f"/v1/{PATH}?key={KEY}"),
        request(chat("x"), key=key, path=f"/v1/chat/completions?prompt={PROMPT}&key={KEY}"),
        request(chat("x"), key=key, headers={"Content-Type": PATH}),
        request(chat("x"), key=key, headers={"Content-Encoding": HEADER}),
        request(chat("x"), key=key, headers={"Expect": HEADER}),
        request(chat("x"), key=key, method="PATCH"),
        request(b"", key=key, path=f"/v1/models/{PATH}", method="GET"),
        request(b"", key=key, path="/v1/models", method="GET"),
        f"{PROMPT} {PATH} {HEADER}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{HEADER} {PROMPT}\r\n\r\n".encode(),
    ]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """(the keys file, a key whose user is believed)."""
    file = tmp_path / "keys.yaml"
    made = run("keys", "create", "--team", "acme", "--forwards-user", "--file", str(file), "--json")
    return file, json.loads(made.stdout)["key"]


async def emitted(gateway: Served, request_ids: Sequence[str]) -> dict[str, str]:
    """All that the ops port tells, by path."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    told = {}
    for path in (
        *("/metrics", "/status", "/status.json", "/readyz?verbose", "/livez", "/version", "/docs"),
        *(f"/status/requests/{request_id}" for request_id in request_ids),
    ):
        came = await ask(gateway.ops_port, request(b"", path=path, method="GET", headers=bearer))
        assert came.status in (200, 404), (path, came.status)
        told[path] = came.body.decode() + str(came.headers)
    client = await RawClient.connect(gateway.ops_port)
    client.send(request(b"", path="/status/events", method="GET", headers=bearer))
    async with asyncio.timeout(SECONDS):
        told["/status/events"] = (await client.reader.readuntil(b"\n\n")).decode()
        told["/status/events"] += (await client.reader.read(65536)).decode()
    client.leave()
    return told


async def test_nothing_of_a_request_leaves_the_gateway_but_to_its_pod_and_its_caller(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    file, key = keys
    pods = [await pod(), await pod()]
    addresses = [f"127.0.0.1:{each.port}" for each in pods]
    said: dict[str, str] = {}
    async with Valkey() as redis, collecting() as collector:
        config = tmp_path / "poolgate.yaml"
        settings = {
            "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, "ops_token": TOKEN, "drain_seconds": 1},
            "discovery": {"mode": "static", "pods": [{"url": each.url, "pool": "chat"} for each in pods]},
            "pools": {"chat": {"policy": "round_robin", "queue_wait_seconds": 1}},
            "auth": {"keys_file": str(file)},
            "limits": {
                "redis_url": redis.url,
                "rules": [{"per": "user", "requests_per_minute": 1000}, {"per": "tenant", "tokens_per_day": 10**9}],
            },
            "tracing": {"endpoint": f"http://127.0.0.1:{collector.port}", "sample_ratio": 1.0},
        }
        config.write_text(yaml.safe_dump(settings))
        async with started("serve", "--config", str(config)) as process:
            gateway = await Served.up(process, key)
            await gateway.until_ready()
            answers = [await ask(gateway.port, each) for each in requests(key)]
            leaving = await RawClient.connect(gateway.port)
            leaving.send(request(chat("do-wait", stream=True), key=key, headers=HEADERS))
            assert ANSWER.encode() in await leaving.reader.readuntil(b"finish_reason")
            leaving.leave()
            # It is let go of before the next look.
            async with asyncio.timeout(SECONDS):
                while not any(each.peer_left.is_set() for each in pods):
                    await asyncio.sleep(0.01)
            said |= await emitted(gateway, [each.headers.get("x-request-id", "none") for each in answers])
            said["explain"] = run(
                *("explain", answers[0].headers["x-request-id"], "--url", f"http://127.0.0.1:{gateway.ops_port}"),
                *("--token", TOKEN),
            ).stdout
            said["pods"] = run(
                "pods", "--once", "--url", f"http://127.0.0.1:{gateway.ops_port}", "--token", TOKEN
            ).stdout
            # On a busy machine Redis may have been too slow for it until now.
            async with asyncio.timeout(SECONDS):
                while not redis.client.keys("poolgate:*"):
                    await ask(gateway.port, request(chat("do-stream", stream=True), key=key))
            said["redis"] = str([(name, redis.client.dump(name)) for name in redis.client.keys("*")])
            gateway.signal(signal.SIGINT)
            assert await gateway.ended() == 0
            said["stdout"], said["stderr"] = "".join(gateway.out), "".join(gateway.err)
        said["traces"] = b"".join(collector.bodies).decode("latin-1")
    for each in pods:
        await each.__aexit__(None, None, None)

    # The search finds what is there: callers were answered, and told by their own words why not.
    heard = b"".join(each.body for each in answers).decode()
    assert {PROMPT, ANSWER} <= {word for word in CANARIES if word in heard}
    assert sum(each.status == 200 for each in answers) > 10
    assert sum(line["outcome"] == "completed" for line in gateway.lines) > 10
    # Each of the places was written to.
    assert all(said.values()), [place for place, text in said.items() if not text]
    assert "poolgate:" in said["redis"]
    assert MODEL in said["stdout"]

    found = [
        (place, word)
        for place, text in said.items()
        for word in (*CANARIES, key, key.split("_")[2], *addresses)
        if word in text
    ]
    assert not found
    assert MODEL not in said["/metrics"]
    assert not [word for word in addresses if word in heard.replace(PROMPT, "")][2:]
