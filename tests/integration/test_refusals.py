"""Bad input gets the contract's error and leaves no trace: no pod is asked, no series made, nothing kept."""

import json
from typing import Any

import pytest

from tests.fakes import ScriptedPod, answer
from tests.raw import RawClient, ask, chat, request
from tests.running import Running, Side, captured, running

WHOLE = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')


async def refused(side: Side, body: bytes | dict[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
    """(status, error) of one request that no pod may see."""
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(body, key=gateway.key, **more))
        assert pod.requests == []
        assert came.headers["content-type"] == "application/json"
        assert came.headers["x-request-id"]
        assert set(came.error) == {"message", "type", "param", "code"}
        line = await gateway.last_line()
        assert (line["status"], line["outcome"], line["code"]) == (came.status, "refused", came.error["code"])
        return came.status, came.error


DEEP = b'{"model":"m","messages":' + b"[" * 70 + b"]" * 70 + b"}"
BOTTOMLESS = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model": "m",', "invalid_json"),
        (b'{"model": "m"} x', "invalid_json"),
        (b'{"model": "m", "temperature": NaN}', "invalid_json"),
        (b'{"model": "m", "temperature": Infinity}', "invalid_json"),
        (b'\xef\xbb\xbf{"model": "m"}', "invalid_json"),
        ('{"model": "m"}'.encode("utf-16"), "invalid_json"),
        (b'{"model": "m", "messages": "\xff"}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"model": "m", "model": "other"}', "invalid_json"),
        (b'{"mod\\u0065l": "m", "model": "other"}', "invalid_json"),
        (b'{"model": "m", "stream": true, "stream": false}', "invalid_json"),
        (b'{"model": "m", "stream": true, "stream_options": {}, "stream_options": null}', "invalid_json"),
        (b'{"model": "m", "stream": true, "stream_options": {"include_usage": true, "include_usage": false}}', None),
        (DEEP, "invalid_json"),
        (BOTTOMLESS, "invalid_json"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"model": 7}', "invalid_request"),
        (b'{"model": "m", "stream": "yes"}', "invalid_request"),
        (b'{"model": "m", "n": 1.5}', "invalid_request"),
        (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"model": "m", "n": ' + b"9" * 50 + b"}", "invalid_request"),
        (b'{"model": "m", "seed": [' + b"9" * 5000 + b"]}", "invalid_json"),
        (b'{"model": "m", "temperature": 1e999}', "invalid_json"),
        (b'{"model": "m", "messages": "\\ud800"}', "invalid_json"),
        (b'{"model": "m", "unknown": 1, "unknown": 2}', "invalid_json"),
        (b'{"model": "m", "user": "a", "us\\u0065r": "b"}', "invalid_json"),
        (b'{"model": "m", "' + b"k" * 100_000 + b'": 1}', "invalid_json"),
        (b'{"model": "m"' + b"".join(b',"k%d":1' % each for each in range(300)) + b"}", "invalid_json"),
        (b'{"model": "m"' + b"".join(b',"k%d":1' % each for each in range(30_000)) + b"}", "invalid_request"),
        (b'{"model": "m", "stream": true, "stream_options": {"include_usage": 1}}', "invalid_request"),
    ],
)
async def test_a_body_that_is_not_json_with_one_meaning_is_refused(side: Side, body: bytes, code: str | None) -> None:
    status, error = await refused(side, body)
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", code or "invalid_json")


@pytest.mark.parametrize("name", ["nope", "m\x00", "", 'm"}\n# HELP', "é" * 1000])
async def test_an_unknown_model_is_a_404(side: Side, name: str) -> None:
    status, error = await refused(side, chat() | {"model": name})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert len(error["message"]) < 1200


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/json; charset=utf-7", ""])
async def test_only_json_is_read(side: Side, content_type: str) -> None:
    status, error = await refused(side, chat(), headers={"Content-Type": content_type})
    assert (status, error["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body_is_refused(side: Side) -> None:
    status, _ = await refused(side, chat(), headers={"Content-Encoding": "gzip"})
    assert status == 415


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_beyond_the_bound_is_refused(side: Side, chunked: bool) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side, server={"max_body_bytes": 2048}) as gateway:
        body = json.dumps(chat(more="x" * 4096)).encode()
        data = request(body, key=gateway.key)
        if chunked:
            framing = b"Transfer-Encoding: chunked"
            data = data.replace(b"Content-Length: %d" % len(body), framing)
            data = data[: -len(body)] + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        came = await ask(gateway.port, data)
        assert (came.status, came.error["code"]) == (413, "body_too_large")
        assert came.error["message"].endswith("2048 bytes: the operator raises that with server.max_body_bytes")
        assert pod.requests == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer "}, 401, "invalid_api_key"),
        ({"Authorization": "Basic KEY"}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer sk-pg_AAAAAAAA_" + "B" * 38}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer " + "x" * 8000}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer \xff\xfe"}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer KEY", "x-api-key": "other"}, 401, "invalid_api_key"),
        ({"x-api-key": "KEY"}, 200, ""),
        ({"Authorization": "bearer KEY", "x-api-key": "KEY"}, 200, ""),
    ],
)
async def test_a_caller_needs_one_good_key(side: Side, headers: dict[str, str], status: int, code: str) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        named = {name: value.replace("KEY", gateway.key) for name, value in headers.items()}
        came = await ask(gateway.port, request(chat(), headers=named))
        assert came.status == status
        if code:
            assert (came.error["type"], came.error["code"]) == ("authentication_error", code)
            assert pod.requests == []


async def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod]) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(b"", headers={"Content-Length": "1000000"}))
        came = await client.answer()
        assert came.status == 401
        client.leave()


async def test_a_key_may_use_only_its_models_and_fields(side: Side) -> None:
    async with (
        ScriptedPod([[WHOLE]]) as pod,
        running([pod], side=side, tenant={"models": ("other*",), "allow_fields": frozenset(["priority"])}) as gateway,
    ):
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.error["code"]) == (403, "model_not_allowed")
        listed = await ask(gateway.port, request(b"", key=gateway.key, path="/v1/models", method="GET"))
        assert json.loads(listed.body)["data"] == []
        salted = await ask(gateway.port, request(chat(cache_salt="x"), key=gateway.key))
        assert (salted.status, salted.error["code"], salted.error["param"]) == (403, "field_not_allowed", "cache_salt")
        allowed = await ask(gateway.port, request(chat(priority=1), key=gateway.key))
        assert allowed.error["code"] == "model_not_allowed"
        assert pod.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/completions", 405),
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/invocations", 404),
        ("POST", "/sleep", 404),
        ("POST", "/v1/../v1/chat/completions", 404),
        ("POST", "/v1%2fchat/completions", 404),
        ("POST", "/V1/chat/completions", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/chat/completions;x", 404),
        ("GET", "/v1/models%00", 404),
    ],
)
async def test_what_is_not_in_the_table_of_operations_reaches_no_pod(
    side: Side, method: str, path: str, status: int
) -> None:
    came, error = await refused(side, chat(), method=method, path=path)
    assert came == status
    assert error["code"] == ("method_not_allowed" if status == 405 else "not_found")


async def test_repeated_slashes_and_a_query_are_the_same_route_and_the_query_stays_here(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key, path="//v1///chat/completions?x=secret"))
        assert came.status == 200
        assert pod.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_a_method_that_is_not_allowed_names_those_that_are(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(b"", key=gateway.key, method="GET"))
        assert came.headers["allow"] == "POST"


async def test_nothing_of_the_caller_reaches_a_pod_but_what_the_contract_names(side: Side) -> None:
    sent = {
        "Cookie": "canary",
        "X-Forwarded-For": "canary",
        "Connection": "X-Request-Id",
        "OpenAI-Organization": "canary",
        "X-Vllm-Priority": "canary",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "Accept": "application/json",
        "X-Request-Id": "mine-1",
    }
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key, headers=sent))
        assert came.headers["x-request-id"] == "mine-1"
        head, _, body = pod.requests[0].partition(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert set(lines) == {
            b"host",
            b"content-type",
            b"content-length",
            b"x-request-id",
            b"accept",
            b"accept-encoding",
            b"traceparent",
            b"tracestate",
        }
        assert lines[b"x-request-id"].startswith(b"mine-1-")
        assert b"canary" not in head
        assert json.loads(body) == chat()


async def test_no_two_requests_bear_the_same_id_at_a_pod(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        for _ in range(3):
            await ask(gateway.port, request(chat(), key=gateway.key, headers={"X-Request-Id": "same"}))
        ids = {head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0] for head in pod.requests}
        assert len(ids) == 3
        assert all(found.startswith(b"same-") for found in ids)


async def test_the_refusal_of_head_has_no_body(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(b"", key=gateway.key, method="HEAD", path="/v1/models"))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        client.writer.write_eof()
        assert await client.closed()
        client.leave()


async def test_an_odd_request_id_is_replaced(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        for odd in ("x" * 65, "a b", "a\tb", "é"):
            came = await ask(gateway.port, request(chat(), key=gateway.key, headers={"X-Request-Id": odd}))
            assert came.status == 200
            assert came.headers["x-request-id"].isalnum()


def _series(gateway: Running) -> int:
    gateway.gateway.journal.observe()
    return gateway.gateway.metrics.exposition().count(b"\n")


async def test_unknown_models_paths_and_keys_make_no_series(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)

        async def junk(number: int) -> None:
            client.send(request(chat() | {"model": f"m-{number}"}, key=gateway.key))
            assert (await client.answer()).status == 404

        await junk(0)
        await ask(gateway.port, request(chat(), key="sk-none"))
        await ask(gateway.port, request(chat(), key=gateway.key, path="/none"))
        before = _series(gateway)
        for number in range(1, 300):
            await junk(number)
        for number in range(20):
            await ask(gateway.port, request(chat(), key=f"sk-{number}"))
            await ask(gateway.port, request(chat(), key=gateway.key, path=f"/none/{number}"))
        assert _series(gateway) == before
        client.leave()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "name", ["44-err-context-too-long.http", "46-err-wrong-type-temp.http", "40-err-unknown-model.http"]
)
async def test_a_pods_own_4xx_passes_byte_for_byte(side: Side, name: str, stream: bool) -> None:
    _, raw = captured(name)
    async with ScriptedPod([[raw]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=stream), key=gateway.key))
        assert came.body == raw.partition(b"\r\n\r\n")[2]
        assert b"%d" % came.status in raw.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (captured("e01-unauth.http")[1], 502, "upstream_auth"),
        (captured("52-err-path.http")[1], 404, "not_found"),
        (captured("e22-overload-5.http")[1], 503, "overloaded"),
        (captured("h01-kill9-enginecore-nonstream.http")[1], 500, "upstream_failed"),
        (answer(b'{"detail":"There was an error parsing the body"}', b"400 Bad Request"), 400, "invalid_request"),
        (answer(b"slow down", b"429 Too Many Requests", b"text/plain", b"retry-after: 7\r\n"), 503, "overloaded"),
        (answer(b"", b"302 Found", more=b"location: http://127.0.0.1:1/\r\n"), 502, "upstream_redirect"),
        (answer(b"<html>10.1.2.3", b"502 Bad Gateway", b"text/html"), 502, "upstream_bad_response"),
        (answer(b'{"error":{"message":"in /usr/lib/x.py at 10.1.2.3:80"}}', b"500 Oh"), 500, "upstream_failed"),
    ],
)
async def test_a_pods_other_errors_are_put_into_our_shape(side: Side, raw: bytes, status: int, code: str) -> None:
    async with ScriptedPod([[raw]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.error["code"]) == (status, code)
        assert b"10.1.2.3" not in came.body
        assert b"/usr" not in came.body
        if status == 503:
            assert int(came.headers["retry-after"]) >= 1
            assert int(came.headers["retry-after-ms"]) >= 1


async def test_a_key_that_may_debug_learns_where_its_request_went(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side, tenant={"debug": True}) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.headers["x-poolgate-pod"], came.headers["x-poolgate-attempts"]) == ("chat-0", "1")


async def test_no_prompt_key_or_address_is_logged_or_counted(side: Side) -> None:
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        canary = chat() | {"messages": [{"role": "user", "content": "canary-prompt"}], "user": "canary-user"}
        await ask(gateway.port, request(canary, key=gateway.key))
        await ask(gateway.port, request(canary | {"model": "nope"}, key=gateway.key))
        await ask(gateway.port, request(canary, key="canary-key"))
        assert len(gateway.lines()) == 3
        told = gateway.out.getvalue() + gateway.gateway.metrics.exposition()
        for secret in (b"canary", gateway.key.encode(), b"127.0.0.1", b"%d" % pod.port):
            assert secret not in told
