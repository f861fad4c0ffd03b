"""CORS on the wire: off by default, and when on, on every answer that a page may have to read."""

from typing import Any

import pytest

from tests.fakes import STREAM_HEAD, ScriptedPod, answer, chunk
from tests.integration.test_reload import reloaded, text_of
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Side, running

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
STREAM = (
    STREAM_HEAD
    + chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    + b"0\r\n\r\n"
)
PAGE = "https://chat.example.com"
ON = {"cors_origins": [PAGE]}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-evil",
}


def of_cors(found: Answer) -> dict[str, str]:
    return {name: value for name, value in found.headers.items() if name.startswith("access-control-")}


def let_in(found: Answer) -> bool:
    """Whether the page may read it, and a cache knows that others may not."""
    told = of_cors(found)
    return (
        told.get("access-control-allow-origin") == PAGE
        and "x-request-id" in told["access-control-expose-headers"]
        and found.headers["vary"] == "origin"
    )


def options(path: str = "/v1/chat/completions", **fields: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"OPTIONS {path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n".encode()


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_off_there_is_no_header_of_it_and_options_is_not_allowed(side: Side) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        found = await ask(gateway.port, options(**PREFLIGHT))
        assert (found.status, found.headers["allow"], of_cors(found)) == (405, "POST", {})
        found = await ask(gateway.port, request(chat(), key=gateway.key, headers={"Origin": PAGE}))
        assert (found.status, of_cors(found), found.headers.get("vary")) == (200, {}, None)


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_a_preflight_needs_no_key_and_keeps_its_connection(side: Side) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side, server=ON) as gateway:
        client = await RawClient.connect(gateway.port)
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/v1/models/a%2Fb", "GET")):
            client.send(options(path, **PREFLIGHT))
            found = await client.answer()
            assert (found.status, found.body) == (204, b"")
            assert "content-length" not in found.headers
            assert "content-type" not in found.headers
            assert let_in(found)
            told = of_cors(found)
            assert told["access-control-allow-methods"] == method
            assert told["access-control-allow-headers"] == "authorization, content-type, x-stainless-lang"
            assert told["access-control-max-age"] == "7200"
        client.send(request(chat(), key=gateway.key, headers={"Origin": PAGE}))
        found = await client.answer()
        assert found.status == 200
        assert let_in(found)
        client.leave()
        lines = gateway.lines()
        assert [(line["operation"], line["status"], line["outcome"]) for line in lines[:1]] == [
            ("other", 204, "completed")
        ]


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_a_preflight_has_no_body(side: Side) -> None:
    """It needs no key: strangers could fill the room of all bodies with theirs."""
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side, server=ON) as gateway:
        found = await ask(gateway.port, options(**PREFLIGHT, **{"Content-Length": "1000"}) + b"x" * 1000)
        assert (found.status, found.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": PAGE + "/"},
        {"Origin": ""},
        {"Access-Control-Request-Method": None},
    ],
)
async def test_what_is_no_preflight_of_a_listed_page_is_refused_as_ever(changed: dict[str, Any]) -> None:
    fields = {name: value for name, value in {**PREFLIGHT, **changed}.items() if value is not None}
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=ON) as gateway:
        found = await ask(gateway.port, options(**fields))
        assert (found.status, found.headers["allow"]) == (405, "POST")
        assert found.headers["vary"] == "origin"
        assert "access-control-allow-methods" not in found.headers
        assert let_in(found) is (fields["Origin"] == PAGE)


async def test_every_answer_can_be_read_by_the_page() -> None:
    async with (
        ScriptedPod([[GOOD], [STREAM], [answer(b'{"error":{"message":"no"}}', b"400 Bad Request")]]) as pod,
        running([pod], server={**ON, "max_body_bytes": 2048}) as gateway,
    ):
        page = {"Origin": PAGE}
        good = gateway.key
        many = {f"x-{number}": "1" for number in range(120)}
        asked = (
            (200, request(chat(), key=good, headers=page)),
            (200, request(chat(stream=True), key=good, headers=page)),
            (400, request(chat(), key=good, headers=page)),
            (200, request(b"", key=good, headers=page, path="/v1/models", method="GET")),
            (401, request(chat(), headers=page)),
            (401, request(chat(), key="sk-wrong", headers=page)),
            (400, request(b"{", key=good, headers=page)),
            (404, request({**chat(), "model": "nobody"}, key=good, headers=page)),
            (404, request(chat(), key=good, headers=page, path="/v1/nothing")),
            (405, request(chat(), key=good, headers=page, method="PUT")),
            (404, options("/v1/nothing", **PREFLIGHT)),
            (413, request(b" " * 4096, key=good, headers=page)),
            (415, request(chat(), key=good, headers={**page, "Content-Type": "text/plain"})),
            (417, request(chat(), key=good, headers={**page, "Expect": "tea"})),
            (431, request(chat(), key=good, headers={**page, **many})),
        )
        for status, data in asked:
            found = await ask(gateway.port, data)
            assert found.status == status, (status, found)
            assert let_in(found), (status, found.headers)


async def test_a_page_that_is_not_listed_is_told_nothing_but_served_like_anybody() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=ON) as gateway:
        for headers in ({"Origin": "https://evil.example"}, {}):
            found = await ask(gateway.port, request(chat(), key=gateway.key, headers=headers))
            assert (found.status, of_cors(found), found.headers["vary"]) == (200, {}, "origin")


async def test_with_a_star_every_page_is_told_a_star() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server={"cors_origins": ["*"]}) as gateway:
        found = await ask(gateway.port, request(chat(), key=gateway.key, headers={"Origin": "https://any.example"}))
        assert of_cors(found)["access-control-allow-origin"] == "*"
        assert "vary" not in found.headers
        assert "access-control-allow-credentials" not in found.headers


async def test_a_simple_request_of_a_foreign_page_is_no_request() -> None:
    """What a browser sends without asking first has one of three content types, and none of them is JSON."""
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=ON) as gateway:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
            headers = {"Origin": "https://evil.example", "Content-Type": kind}
            assert (await ask(gateway.port, request(chat(), key=gateway.key, headers=headers))).status == 415
        assert not pod.requests


async def test_other_origins_take_effect_while_it_runs(tmp_path: Any) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod]))
        async with running([], file=file) as gateway:
            data = request(chat(), key=gateway.key, headers={"Origin": PAGE})
            assert of_cors(await ask(gateway.port, data)) == {}
            await reloaded(gateway, lambda: file.write_text(text_of([pod], server=ON)))
            assert let_in(await ask(gateway.port, data))


async def test_the_origin_reaches_no_pod() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=ON) as gateway:
        await ask(gateway.port, request(chat(), key=gateway.key, headers={"Origin": PAGE, "Referer": PAGE}))
        assert PAGE.encode() not in pod.requests[0]
