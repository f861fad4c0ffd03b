"""Every route of the contract: what its pod gets, what its caller gets, and how its errors are told."""

import json
from typing import Any

import pytest

from gateway.pipeline.operations import OPERATIONS, Body
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.raw import Answer, ask, chat, request
from tests.running import Side, captured, captured_events, running

LAST = b"0\r\n\r\n"
JSON_ROUTES = [operation for operation in OPERATIONS if operation.body is Body.JSON]
FORM_ROUTES = [operation for operation in OPERATIONS if operation.body is Body.FORM]
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
AUDIO = bytes(range(256)) * 64
USAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("reported", {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}),
    "responses": ("reported", {"input_tokens": 7, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}),
    "anthropic": ("reported", {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4}),
    "audio": ("estimated", {"type": "duration", "seconds": 12}),
}


def form(*parts: tuple[str, bytes] | tuple[str, bytes, str], boundary: str = BOUNDARY) -> bytes:
    """A multipart form; a part of three has a file name."""
    out = b""
    for name, value, *file in parts:
        named = f'; filename="{file[0]}"\r\nContent-Type: audio/wav' if file else ""
        out += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"
        )
    return out + f"--{boundary}--\r\n".encode()


def upload(body: bytes, key: str, path: str = "/v1/audio/transcriptions", **headers: str) -> bytes:
    """A request that brings a form."""
    told = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} | headers
    return request(body, key=key, path=path, headers=told)


async def through(
    side: Side, script: Any, path: str, body: dict[str, Any] | None = None, **more: Any
) -> tuple[Answer, dict[str, Any], ScriptedPod]:
    """One JSON request on a route: (its answer, its access line, its pod)."""
    async with ScriptedPod([script]) as pod, running([pod], side=side, **more) as gateway:
        came = await ask(gateway.port, request(body or {"model": "m"}, key=gateway.key, path=path))
        return came, await gateway.last_line(), pod


# What every route has in common


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.label)
async def test_a_pod_gets_the_body_on_its_own_path_and_its_answer_comes_back(side: Side, route: Any) -> None:
    said = b'{"object":"x","data":[1,2.5],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    body = {"model": "m", "input": ["a"], "documents": ["b"], "no_such_field": {"a": [1, None]}}
    came, line, pod = await through(side, [answer(said)], route.path.decode(), body)

    assert (came.status, came.body, came.headers["content-type"]) == (200, said, "application/json")
    head, _, sent = pod.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST %b HTTP/1.1\r\n" % route.path)
    assert sent == json.dumps(body).encode()
    assert (line["operation"], line["status"], line["outcome"], line["stream"]) == (
        route.label,
        200,
        "completed",
        False,
    )
    expected = 7 if route.takes_tokens else None
    assert (line["prompt_tokens"], line["usage_source"]) == (expected, "reported" if route.takes_tokens else None)


@pytest.mark.parametrize("route", JSON_ROUTES + FORM_ROUTES, ids=lambda route: route.label)
async def test_a_route_that_a_models_pod_lacks_is_a_clean_404(side: Side, route: Any) -> None:
    script = [answer(b'{"detail":"Not Found"}', b"404 Not Found")]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        path = route.path.decode()
        if route.body is Body.FORM:
            data = upload(form(("model", b"m"), ("file", AUDIO, "a.wav")), gateway.key, path)
        else:
            data = request({"model": "m"}, key=gateway.key, path=path)
        came = await ask(gateway.port, data)
        assert len(pod.requests) == 1
    assert came.status == 404
    if path.startswith("/v1/messages"):
        assert json.loads(came.body)["type"] == "error"
        assert (came.error["type"], came.error["code"]) == ("not_found_error", "not_found")
    else:
        assert (came.error["type"], came.error["code"]) == ("invalid_request_error", "not_found")
    assert "pods do not serve this route" in came.error["message"]


@pytest.mark.parametrize("route", OPERATIONS, ids=lambda route: route.label)
async def test_another_method_is_a_405_that_names_the_right_one(side: Side, route: Any) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(b"", key=gateway.key, path=route.path.decode(), method="PUT"))
    assert (came.status, came.headers["allow"]) == (405, route.method.decode())
    assert came.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.label)
async def test_guarded_fields_are_refused_on_every_route(side: Side, route: Any) -> None:
    body = {"model": "m", "cache_salt": "x"}
    came, _, pod = await through(side, [], route.path.decode(), body)
    assert (came.status, came.error["code"], pod.requests) == (403, "field_not_allowed", [])


@pytest.mark.parametrize("spelling", USAGE)
async def test_usage_is_read_in_each_spelling(side: Side, spelling: str) -> None:
    source, usage = USAGE[spelling]
    said = json.dumps({"usage": usage}).encode()
    async with ScriptedPod([[answer(said)]]) as pod, running([pod], side=side) as gateway:
        if spelling == "audio":
            await ask(gateway.port, upload(form(("model", b"m"), ("file", AUDIO, "a.wav")), gateway.key))
        else:
            path = {"responses": "/v1/responses", "anthropic": "/v1/messages"}.get(spelling, "/v1/embeddings")
            await ask(gateway.port, request({"model": "m"}, key=gateway.key, path=path))
        line = await gateway.last_line()
    assert line["usage_source"] == source
    if source == "reported":
        assert line["prompt_tokens"] == 7
        assert line["cached_tokens"] == (0 if spelling == "openai" else 4)
    else:
        assert 20 < line["prompt_tokens"] < 40  # 16 kB of audio, half a second
        assert line["completion_tokens"] > 0


# Answers that are not streams, large ones too


async def test_a_large_answer_passes_as_it_comes_and_its_usage_is_read_off_its_end(side: Side) -> None:
    vector = ",".join(["0.0123456789"] * 1024)
    data = ",".join(f'{{"index":{i},"embedding":[{vector}]}}' for i in range(300))
    said = f'{{"object":"list","data":[{data}],"usage":{{"prompt_tokens":11,"total_tokens":11}}}}'.encode()
    assert len(said) > 3 << 20
    came, line, _ = await through(side, [answer(said)], "/v1/embeddings")
    assert (came.status, came.clean, came.body == said) == (200, True, True)
    assert (line["prompt_tokens"], line["usage_source"], line["outcome"]) == (11, "reported", "completed")


async def test_what_only_looks_like_a_usage_at_the_end_is_not_believed(side: Side) -> None:
    filler = "x" * (2 << 20)
    said = json.dumps({"text": filler, "last": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}}).encode()
    _, line, _ = await through(side, [answer(said)], "/v1/embeddings")
    assert line["usage_source"] == "estimated"


async def test_a_large_answer_that_is_cut_never_ends_cleanly(side: Side) -> None:
    said = b'{"data":"' + b"x" * (2 << 20) + b'"}'
    head = answer(said).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    came, line, _ = await through(side, [head, said[:-9], Close], "/v1/embeddings")
    assert (came.status, came.clean) == (200, False)
    assert line["outcome"] == "truncated"


async def test_embeddings_as_bytes_pass_with_their_description(side: Side) -> None:
    described = '{"data": [{"index": 0, "start": 0, "end": 8}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}'
    script = [
        answer(bytes(range(256)), content_type=b"application/octet-stream", more=f"metadata: {described}\r\n".encode())
    ]
    came, line, _ = await through(side, script, "/v1/embeddings", {"model": "m", "encoding_format": "bytes"})
    assert (came.headers["content-type"], came.body) == ("application/octet-stream", bytes(range(256)))
    assert came.headers["metadata"] == described
    assert (line["prompt_tokens"], line["usage_source"]) == (2, "reported")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/chat/completions"])
async def test_bytes_from_any_other_route_are_not_what_was_asked_for(side: Side, path: str) -> None:
    came, _, _ = await through(side, [answer(b"\x00\x01", content_type=b"application/octet-stream")], path)
    assert (came.status, came.error["code"]) == (502, "upstream_bad_response")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize"])
async def test_stream_means_nothing_where_nothing_streams(side: Side, path: str) -> None:
    came, line, pod = await through(side, [answer(b'{"data":[]}')], path, {"model": "m", "stream": True})
    assert (came.status, line["stream"]) == (200, False)
    assert b"stream_options" not in pod.requests[0]


# Forms


@pytest.mark.parametrize("route", FORM_ROUTES, ids=lambda route: route.label)
async def test_a_form_reaches_its_pod_byte_for_byte_with_its_boundary(side: Side, route: Any) -> None:
    body = form(("file", AUDIO, "a.wav"), ("model", b"m"), ("language", "ελ".encode()), ("temperature", b"0"))
    async with ScriptedPod([[answer(b'{"text":"hello there"}')]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, upload(body, gateway.key, route.path.decode()))
        line = await gateway.last_line()
    assert (came.status, json.loads(came.body)) == (200, {"text": "hello there"})
    head, _, sent = pod.requests[0].partition(b"\r\n\r\n")
    assert sent == body
    assert b"\r\ncontent-type: multipart/form-data; boundary=%b\r\n" % BOUNDARY.encode() in head
    assert (line["operation"], line["model"], line["usage_source"]) == (route.label, "m", "estimated")


async def test_a_large_form_passes_within_its_own_bound_and_not_beyond(side: Side) -> None:
    bounds = {"max_body_bytes": 4096, "max_upload_bytes": 1 << 20}
    async with ScriptedPod([[answer(b'{"text":""}')]]) as pod, running([pod], side=side, server=bounds) as gateway:
        within = form(("model", b"m"), ("file", AUDIO * 60, "a.wav"))
        beyond = form(("model", b"m"), ("file", AUDIO * 70, "a.wav"))
        assert len(within) > 4096 * 100 > 262_144
        came = await ask(gateway.port, upload(within, gateway.key))
        assert came.status == 200
        assert pod.requests[0].endswith(within)
        for path, body in (("/v1/audio/transcriptions", beyond), ("/v1/chat/completions", b" " * 5000)):
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            data = upload(body, gateway.key, path, **({} if path.endswith("s") and b"--" in body else _JSON))
            chunked = data.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
            for sent in (data, chunked[: -len(body)] + framed):
                came = await ask(gateway.port, sent)
                assert (came.status, came.error["code"]) == (413, "body_too_large")
        assert len(pod.requests) == 1


_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("parts", "status", "code", "param"),
    [
        ((("file", AUDIO, "a.wav"),), 400, "invalid_request", "model"),
        ((("model", b""), ("file", AUDIO, "a.wav")), 400, "invalid_request", "model"),
        ((("model", b"m", "m.txt"),), 400, "invalid_request", "model"),
        ((("model", b"m"), ("model", b"other")), 400, "invalid_request", "model"),
        ((("model", b"m"), ("stream", b"true"), ("stream", b"false")), 400, "invalid_request", "stream"),
        ((("model", b"m"), ("stream", b"perhaps")), 400, "invalid_request", "stream"),
        ((("model", b"m" * 5000),), 400, "invalid_request", "model"),
        ((("model", b"m"), *[("x", b"1")] * 100), 400, "invalid_request", None),
        ((("model", b"m"), ("vllm_xargs", b"{}")), 403, "field_not_allowed", "vllm_xargs"),
        ((("model", b"nope"),), 404, "model_not_found", "model"),
    ],
)
async def test_a_form_that_cannot_be_routed_is_refused(
    side: Side, parts: Any, status: int, code: str, param: str | None
) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, upload(form(*parts), gateway.key))
        assert (came.status, came.error["code"], came.error["param"]) == (status, code, param)
        assert pod.requests == []


@pytest.mark.parametrize("body", [b"", b"--", b"hello", form(("model", b"m"))[:-6], b"x" + form(("model", b"m"))])
async def test_what_is_no_whole_form_is_refused(side: Side, body: bytes) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, upload(body, gateway.key))
        assert (came.status, came.error["code"], pod.requests) == (400, "invalid_request", [])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="a\tb"',
        f"multipart/mixed; boundary={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY}; charset=utf-16",
    ],
)
async def test_a_recording_comes_as_a_form_or_not_at_all(side: Side, content_type: str) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side) as gateway:
        data = upload(form(("model", b"m")), gateway.key, **{"Content-Type": content_type})
        came = await ask(gateway.port, data)
        assert (came.status, came.error["code"], pod.requests) == (415, "unsupported_media_type", [])


PIECE = (
    b'data: {"id":"trsc-1","object":"transcription.chunk","created":1,"model":"m",'
    b'"choices":[{"delta":{"content":" a"}}]}\n\n'
)
HEARD = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"stop","stop_reason":null}]}\n\n'
TOLD = b'data: {"choices":[],"usage":{"prompt_tokens":50,"total_tokens":52,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("usage_asked", [False, True])
async def test_a_transcript_is_whole_at_its_end_mark_alone(side: Side, usage_asked: bool) -> None:
    # Two parts of a recording, each with a finish reason; then one without, as it may be.
    events = [PIECE, HEARD, PIECE, HEARD, PIECE, *([TOLD] if usage_asked else []), DONE]
    fields = [("model", b"m"), ("stream", b"True"), ("stream_include_usage", b"1" if usage_asked else b"")]
    script = [STREAM_HEAD, *map(chunk, events), LAST]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, upload(form(*fields), gateway.key))
        line = await gateway.last_line()
    assert (came.status, came.clean, came.body) == (200, True, b"".join(events))
    assert (line["outcome"], line["stream"]) == ("completed", True)
    if usage_asked:
        assert (line["prompt_tokens"], line["completion_tokens"], line["usage_source"]) == (50, 2, "reported")
    else:
        assert (line["completion_tokens"], line["usage_source"]) == (5, "estimated")


async def test_a_transcript_without_its_end_mark_is_told_as_cut(side: Side) -> None:
    script = [STREAM_HEAD, chunk(PIECE), chunk(HEARD), LAST]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, upload(form(("model", b"m"), ("stream", b"true")), gateway.key))
    assert came.events[:2] == [PIECE, HEARD]
    assert b"upstream_truncated" in came.events[2]
    assert came.events[3] == DONE


# Streams whose events bear names


CAPTURED = {
    name: (path, captured_events(name))
    for name, path in (("75-responses-stream.http", "/v1/responses"), ("79-messages-stream.http", "/v1/messages"))
}
STREAM = {"model": "m", "stream": True}
both = pytest.mark.parametrize("name", CAPTURED)


@both
async def test_a_captured_stream_passes_unchanged_with_its_usage_noted(side: Side, name: str) -> None:
    path, events = CAPTURED[name]
    came, line, pod = await through(side, [STREAM_HEAD, *map(chunk, events), LAST], path, STREAM)
    assert (came.status, came.clean, came.body) == (200, True, b"".join(events))
    assert (line["outcome"], line["operation"]) == ("completed", path.rpartition("/")[2])
    assert (line["prompt_tokens"], line["completion_tokens"], line["usage_source"]) == (33, 12, "reported")
    assert line["finish"] == ("incomplete" if "responses" in path else "max_tokens")
    assert line["ttft_ms"] is not None
    assert b"stream_options" not in pod.requests[0]


@both
@pytest.mark.parametrize(
    ("ending", "code"),
    [((LAST,), "truncated"), ((Close,), "truncated"), ((Reset,), "reset"), ((chunk(b"event: con"), LAST), "truncated")],
    ids=["ended", "closed", "reset", "inside an event"],
)
async def test_a_cut_is_told_in_the_streams_own_words(side: Side, name: str, ending: Any, code: str) -> None:
    path, events = CAPTURED[name]
    came, line, _ = await through(side, [STREAM_HEAD, *map(chunk, events[:8]), *ending], path, STREAM)
    assert came.clean
    assert came.events[:8] == events[:8]
    (last,) = came.events[8:]
    assert last.startswith(b"event: error\ndata: {")
    told = json.loads(last.partition(b"data: ")[2])
    assert told["type"] == "error"
    if "responses" in path:
        assert (told["code"], told["sequence_number"]) == (f"upstream_{code}", 8)
        assert told["message"]
    else:
        assert (told["error"]["type"], told["error"]["code"]) == ("api_error", f"upstream_{code}")
        assert told["error"]["message"]
    assert (line["outcome"], line["code"], line["usage_source"]) == ("truncated", f"upstream_{code}", "estimated")


@both
async def test_silence_before_the_first_content_is_a_true_504(side: Side, name: str) -> None:
    path, events = CAPTURED[name]
    # What comes before the answer itself: `message_start`, or `response.created` and `in_progress`.
    before = events[: 1 if "messages" in path else 2]
    came, line, _ = await through(
        side, [STREAM_HEAD, *map(chunk, before), Hang], path, STREAM, pool={"ttft_seconds": 0.3}
    )
    assert (came.status, came.error["code"]) == (504, "upstream_ttft_timeout")
    assert line["outcome"] == "upstream_timeout"


@both
async def test_a_cut_before_the_first_content_is_tried_again_elsewhere(side: Side, name: str) -> None:
    path, events = CAPTURED[name]
    cut: list[Step] = [STREAM_HEAD, chunk(events[0]), Close]
    whole: list[Step] = [STREAM_HEAD, *map(chunk, events), LAST]
    async with (
        ScriptedPod([cut]) as first,
        ScriptedPod([whole]) as second,
        running([first, second], side=side) as gateway,
    ):
        while not first.requests:
            came = await ask(gateway.port, request(STREAM, key=gateway.key, path=path))
            assert came.body == b"".join(events)


FAILED = (
    b'event: response.failed\ndata: {"type":"response.failed","sequence_number":%d,"response":{"status":"failed",'
    b'"error":{"code":"server_error","message":"the grammar at /models/x broke"},"usage":null}}\n\n'
)
ERRORS = {
    "/v1/messages": b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"it broke"}}\n\n',
    "/v1/responses": FAILED % 2,
}


@both
async def test_an_error_as_first_event_is_a_true_status(side: Side, name: str) -> None:
    path, events = CAPTURED[name]
    for before in ([], events[:1]):
        came, line, _ = await through(side, [STREAM_HEAD, *map(chunk, before), chunk(ERRORS[path]), LAST], path, STREAM)
        assert (came.status, came.error["code"], line["outcome"]) == (500, "upstream_failed", "upstream_failed")
        assert came.error["type"] == ("api_error" if "messages" in path else "server_error")
        assert "broke" in came.error["message"]
        assert "/models" not in came.error["message"]


@both
async def test_a_pods_own_error_in_a_stream_is_relayed_once_and_ours_is_not_added(side: Side, name: str) -> None:
    path, events = CAPTURED[name]
    said = [*events[:6], ERRORS[path]]
    came, line, _ = await through(side, [STREAM_HEAD, *map(chunk, said), LAST], path, STREAM)
    assert (came.status, came.clean, came.body) == (200, True, b"".join(said))
    assert (line["outcome"], line["code"]) == ("upstream_failed", "upstream_failed")


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_response_that_closes_without_content_is_whole_all_the_same(side: Side, status: str) -> None:
    _, events = CAPTURED["75-responses-stream.http"]
    closing = (
        f'event: response.{status}\ndata: {{"type":"response.{status}","response":{{"status":"{status}",'
        f'"usage":{{"input_tokens":4,"output_tokens":0}}}}}}\n\n'
    ).encode()
    said = [*events[:2], closing]
    came, line, _ = await through(side, [STREAM_HEAD, *map(chunk, said), LAST], "/v1/responses", STREAM)
    assert (came.status, came.body) == (200, b"".join(said))
    assert (line["outcome"], line["prompt_tokens"], line["finish"]) == ("completed", 4, status)


async def test_a_message_without_content_is_whole_all_the_same(side: Side) -> None:
    _, events = CAPTURED["79-messages-stream.http"]
    said = [events[0], *events[-2:]]
    came, line, _ = await through(side, [STREAM_HEAD, *map(chunk, said), LAST], "/v1/messages", STREAM)
    assert (came.status, came.body, line["outcome"]) == (200, b"".join(said), "completed")


@pytest.mark.parametrize(
    ("field", "value"), [("previous_response_id", "resp_1"), ("background", True)], ids=lambda value: str(value)
)
async def test_what_one_pod_would_have_to_remember_is_refused_plainly(side: Side, field: str, value: Any) -> None:
    came, _, pod = await through(side, [], "/v1/responses", {"model": "m", "input": "x", field: value})
    assert (came.status, came.error["code"], came.error["param"]) == (400, "unsupported", field)
    assert pod.requests == []


@pytest.mark.parametrize("more", [{"previous_response_id": None}, {"background": False}, {"background": None}])
async def test_what_asks_for_no_memory_passes(side: Side, more: dict[str, Any]) -> None:
    came, _, _ = await through(side, [answer(b'{"status":"completed"}')], "/v1/responses", {"model": "m", **more})
    assert came.status == 200


# Anthropic's callers


@pytest.mark.parametrize(
    ("path", "key", "body", "status", "kind", "code"),
    [
        ("/v1/messages", "wrong", {"model": "m"}, 401, "authentication_error", "invalid_api_key"),
        ("/v1/messages", None, {"model": "nope"}, 404, "not_found_error", "model_not_found"),
        ("/v1/messages", None, {}, 400, "invalid_request_error", "invalid_request"),
        ("/v1/messages/count_tokens", None, {"model": 1}, 400, "invalid_request_error", "invalid_request"),
        ("/v1/messages/batches", None, {"model": "m"}, 404, "not_found_error", "not_found"),
        ("/v1/messages", None, {"model": "m", "priority": 1}, 403, "permission_error", "field_not_allowed"),
        ("/v1/messages", None, {"model": "m", "x": "x" * 5000}, 413, "request_too_large", "body_too_large"),
    ],
)
async def test_refusals_on_messages_are_in_anthropics_shape(
    side: Side, path: str, key: str | None, body: Any, status: int, kind: str, code: str
) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side, server={"max_body_bytes": 4096}) as gateway:
        raw = json.dumps(body).encode()
        came = await ask(gateway.port, request(raw, path=path, headers={"x-api-key": key or gateway.key}))
    assert came.status == status
    told = json.loads(came.body)
    assert set(told) == {"type", "error"}
    assert told["type"] == "error"
    assert set(told["error"]) == {"type", "message", "code"}
    assert (told["error"]["type"], told["error"]["code"]) == (kind, code)
    assert came.headers["x-request-id"]


async def test_a_pods_refusal_on_messages_passes_byte_for_byte(side: Side) -> None:
    _, raw = captured("81-messages-err.http")
    body = raw.partition(b"\r\n\r\n")[2]
    came, line, pod = await through(side, [answer(body, b"404 Not Found")], "/v1/messages")
    assert (came.status, came.body, line["outcome"]) == (404, body, "refused")
    assert len(pod.requests) == 1


async def test_a_model_that_one_pod_has_lost_is_looked_for_at_another_one(side: Side) -> None:
    _, raw = captured("81-messages-err.http")
    lost = [answer(raw.partition(b"\r\n\r\n")[2], b"404 Not Found")]
    async with (
        ScriptedPod([lost]) as first,
        ScriptedPod([[answer(b"{}")]]) as second,
        running([first, second], side=side) as gateway,
    ):
        while not first.requests:
            came = await ask(gateway.port, request({"model": "m"}, key=gateway.key, path="/v1/messages"))
            assert came.status == 200
    assert second.requests


async def test_a_pods_failure_on_messages_is_told_in_anthropics_shape(side: Side) -> None:
    body = b'{"type":"error","error":{"type":"InternalServerError","message":"no luck at 10.0.0.7:8000"}}'
    came, _, _ = await through(side, [answer(body, b"500 Internal Server Error")], "/v1/messages")
    assert (came.status, came.error["type"], came.error["code"]) == (500, "api_error", "upstream_failed")
    assert "10.0.0.7" not in came.error["message"]


async def test_a_busy_pod_on_messages_is_overloaded_with_a_hint(side: Side) -> None:
    came, _, _ = await through(side, [answer(b"{}", b"503 Service Unavailable")], "/v1/messages")
    assert (came.status, came.error["type"], came.error["code"]) == (503, "overloaded_error", "overloaded")
    assert came.headers["retry-after-ms"]


async def test_chat_keeps_openais_words(side: Side) -> None:
    async with ScriptedPod([[]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key="wrong"))
    assert set(json.loads(came.body)) == {"error"}
    assert set(came.error) == {"message", "type", "param", "code"}
