"""What of a caller's head reaches a pod, and what a head may do to the gateway: the contract's list, and nothing."""

import json

import pytest

from tests.fakes import ScriptedPod, answer
from tests.raw import ask, chat, request
from tests.running import Side, running

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
CANARY = "c4n4ry"
FOREIGN = (
    "Cookie", "Cookie2", "Set-Cookie", "Proxy-Authorization", "Proxy-Connection", "Proxy-Authenticate", "Proxy",
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix",
    "X-Forwarded-Server", "X-Forwarded-User", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP",
    "CF-Connecting-IP", "X-Original-URL", "X-Original-Host", "X-Rewrite-URL", "X-Host", "Via", "Keep-Alive", "TE",
    "Trailer", "X-Vllm-Priority", "x-vllm-cache-salt", "X-Vllm-Anything", "X-HTTP-Method-Override", "X-HTTP-Method",
    "X-Method-Override", "x_request_id", "content_length", "transfer_encoding", "x_api_key", "X-API-Key2", "Origin",
    "Referer", "User-Agent", "Accept-Encoding", "Accept-Language", "If-None-Match", "Range", "Cache-Control", "Pragma",
    "X-Data-Parallel-Rank", "X-Session-ID", "X-OpenWebUI-Chat-Id", "X-OpenWebUI-User-Email", "X-Stainless-Lang",
    "OpenAI-Organization", "Idempotency-Key", "Anthropic-Version", "baggage", "b3", "X-Amzn-Trace-Id", "Early-Data",
    "Max-Forwards", "HTTP2-Settings", "Sec-Fetch-Site", "X-Poolgate-Pod", "X-Correlation-ID",
)  # fmt: skip
OURS = {"host", "content-type", "content-length", "x-request-id", "accept-encoding"}
NOMINATED = "Authorization, X-Request-Id, Host, Content-Type, Content-Length, X-Api-Key, Accept, traceparent"


def fields_of(raw: bytes) -> dict[str, str]:
    """What a pod was sent, each field once."""
    head = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    told = [line.partition(": ") for line in head]
    assert len({name for name, _, _ in told}) == len(told)
    return {name: value for name, _, value in told}


@pytest.mark.parametrize("side", ["edge", "asgi"])
@pytest.mark.parametrize("api_key", [None, "the-pods-own"])
async def test_nothing_but_the_contracts_fields_reaches_a_pod(side: Side, api_key: str | None) -> None:
    passed = {"Accept": "application/json", "traceparent": f"00-{'a' * 32}-{'b' * 16}-00", "tracestate": "v=1"}
    strange = {name: f"{CANARY}{number}" for number, name in enumerate(FOREIGN)}
    assert len(strange) > 40
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        gateway.gateway.pools.use(connect_seconds=1, idle_seconds=3, api_key=api_key)
        raw = request(chat(), key=gateway.key, headers={**strange, **passed, "X-Request-Id": "mine"})
        found = await ask(gateway.port, raw)
        assert (found.status, found.headers["x-request-id"]) == (200, "mine")
        sent = pod.requests[0]
    told = fields_of(sent)
    assert set(told) == OURS | {name.lower() for name in passed} | ({"authorization"} if api_key else set())
    assert {name: told[name.lower()] for name in passed} == passed
    assert told.get("authorization") == (f"Bearer {api_key}" if api_key else None)
    assert told["x-request-id"].startswith("mine-")
    assert told["accept-encoding"] == "identity"
    assert told["host"] == f"127.0.0.1:{pod.port}"
    assert CANARY.encode() not in sent
    assert gateway.key.encode() not in sent


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_what_connection_nominates_strips_nothing_of_ours_and_opens_nothing(side: Side) -> None:
    nominated = {"Connection": NOMINATED, "Accept": CANARY, "traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        gateway.gateway.pools.use(connect_seconds=1, idle_seconds=3, api_key="the-pods-own")
        mine = {**nominated, "X-Request-Id": "mine"}
        found = await ask(gateway.port, request(chat(), key=gateway.key, headers=mine))
        assert (found.status, found.headers["x-request-id"]) == (200, "mine")
        told = fields_of(pod.requests[0])
        # What is for this hop goes no further; what is ours goes all the same.
        assert set(told) == OURS | {"authorization"}
        assert told["authorization"] == "Bearer the-pods-own"
        assert told["x-request-id"].startswith("mine-")
        assert json.loads(pod.requests[0].partition(b"\r\n\r\n")[2]) == chat()
        # The key counts, as if it were not nominated; and so does its want.
        assert (await ask(gateway.port, request(chat(), key="sk-wrong", headers=nominated))).status == 401
        assert (await ask(gateway.port, request(chat(), headers=nominated))).status == 401


@pytest.mark.parametrize("side", ["edge", "asgi"])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Authorization: Bearer sk-wrong", 400),
        ("authorization: Bearer {key}", 400),
        ("X-Request-Id: a\r\nX-Request-Id: b", 400),
        ("Content-Type: text/plain", 400),
        ("X-Api-Key: sk-wrong", 401),
        ("X-Api-Key: {key}", 200),
    ],
)
async def test_a_second_word_on_who_asks_is_no_word(side: Side, line: str, status: int) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        raw = request(chat(), key=gateway.key)
        start, _, rest = raw.partition(b"\r\n")
        more = line.format(key=gateway.key).encode()
        found = await ask(gateway.port, start + b"\r\n" + rest.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n\r\n", 1))
        assert found.status == status
        assert len(pod.requests) == (status == 200)


@pytest.mark.parametrize(
    ("authorization", "statuses"),
    [
        ("", {401}),
        ("Bearer", {401}),
        ("Bearer ", {401}),
        ("Bearer  ", {401}),
        ("Basic YTpi", {401}),
        ("Bearer a b", {401}),
        ("Bearer " + "\xe9" * 40, {401}),
        ("Bearer \xf0\x9f\x94\x91", {401}),
        ("Bearer " + "x" * 5000, {401}),
        ("Bearer " + "x." * 2 + "y", {401}),
        ("Bearer " + "x" * 9000, {401, 431}),
        ("Bearer " + "x" * 65_536, {431}),
    ],
)
async def test_no_key_is_a_fault_of_ours(authorization: str, statuses: set[int]) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway:
        for name in ("Authorization", "X-Api-Key"):
            value = authorization if name == "Authorization" else authorization.removeprefix("Bearer ")
            found = await ask(gateway.port, request(chat(), headers={name: value}))
            assert found.status in statuses, (name, found)
        assert not pod.requests
