"""What a cluster, a pod and a Redis say of themselves: reading it raises nothing but what is documented."""

import json
import re
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from struct import pack
from typing import Any
from unicodedata import category

from gateway.core.fleet import Pod
from gateway.core.ports import FetchFailed
from gateway.discovery.kubernetes import _reason_in as reason_in
from gateway.discovery.load import count_of, gauges_of
from gateway.discovery.models import MAX_CARDS, models_of
from gateway.discovery.pods import MAX_PORTS, Refused, Rules, is_live, pods_of, shown_name
from gateway.discovery.reflector import ApiFailed, Reflector
from gateway.discovery.reflector import _page_of as page_of
from gateway.limits.batch import Batch, Garbled, Request
from gateway.limits.bucket import DAY, Bucket, Costs
from gateway.limits.leases import Leases
from tests.fuzz.target import Target

RULES = Rules("vllm", prefixed=True)
REASONS = {"unreadable", "namespace", "no_pool", "worker", "port", "address"}
RATE = Bucket(b"rate", "requests_per_day", 6400, DAY)
SLOTS = Bucket(b"slots", "concurrent", 10, 0.0)
ONE: Costs = (1, 0, 0, 0)


def read(told: Mapping[str, Any]) -> tuple[Pod, ...]:
    """The pods of an object, judged."""
    refused: Refused | None = None
    pods: tuple[Pod, ...] = ()
    try:
        pods = pods_of(told, RULES)
    except Refused as error:
        refused = error
    if refused is not None:
        assert refused.reason in REASONS
        assert len(shown_name(told, RULES)) <= 300
    assert len(pods) <= MAX_PORTS
    for pod in pods:
        assert 0 < pod.port < 65536
        assert pod.pool
        if pod.host:
            address = ip_address(pod.host)
            assert not any((address.is_loopback, address.is_link_local, address.is_multicast))
    return pods


def pod_object(data: bytes) -> None:
    """Any object gives pods that may be targets, or one of the known refusals."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(told, dict):
        read(told)
        assert isinstance(is_live(told), bool)


class NoApi:
    """Asked nothing: its answers are given."""

    async def list_page(self, token: str) -> bytes:
        raise AssertionError

    @asynccontextmanager
    async def watch(self, version: str, seconds: int) -> Any:
        raise AssertionError
        yield


def watch(data: bytes) -> None:
    """A page and the lines of a watch: each is taken in, or a reason to list again."""
    page, _, lines = data.partition(b"\n\n")
    with suppress(ApiFailed):
        assert page_of(page).version
    reflector = Reflector("fuzz", NoApi(), read, lambda: None, lambda _: None, lambda: 0.0, lambda: 0.5)
    try:
        wrong = reflector._apply_all(lines.split(b"\n"))
    except ApiFailed:
        return
    assert wrong in ("", "garbage", "backwards")
    assert all(isinstance(kept, tuple) for kept in reflector.held())


def api_error(data: bytes) -> None:
    """The reason of a failure is one short word, or none."""
    reason = reason_in(data)
    if reason:
        assert re.fullmatch(r" [^\W_]{1,64}", reason)


def could_be_a_name(name: str) -> bool:
    """Told in a log, a header, a label: no control characters, no surrogates, and not too long."""
    return 0 < len(name) <= 256 and not any(category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def models(data: bytes) -> None:
    """Names that can be models' names, or `FetchFailed`."""
    try:
        listing = models_of(data)
    except FetchFailed:
        return
    assert len(listing.models) <= MAX_CARDS
    assert all(could_be_a_name(model.name) for model in listing.models)
    assert len({model.name for model in listing.models}) == len(listing.models)
    # What of it stands in `/v1/models` again can be written.
    json.dumps([dict(model.card) for model in listing.models])


def load(data: bytes) -> None:
    """No exposition raises; no count is negative, infinite or no number."""
    gauges = gauges_of(data)
    for count in (gauges.running, gauges.waiting, gauges.prefix_queries, gauges.prefix_hits, gauges.cache_tokens):
        assert count is None or 0 <= count < 2.0**64
    assert gauges.kv_usage is None or 0 <= gauges.kv_usage <= 1
    assert len(gauges.adapters) <= 64
    assert all(could_be_a_name(name) for name in gauges.adapters)
    assert gauges.asleep in ("", "paused", "discard_all", "weights_offloaded")
    count = count_of(data)
    assert count is None or 0 <= count <= 2**53


def redis_answer(data: bytes) -> None:
    """An answer of another script, or of another server, is garbled, not wrong numbers."""
    leases = Leases(lambda: None)
    leases.correct(RATE, 3)
    batch = Batch(leases, [Request((SLOTS, RATE), ONE)] * 2, leases.next_untold(9))
    try:
        batch.learn(data, 0.0)
    except Garbled:
        assert leases.running == {}


POD = {
    "metadata": {
        "name": "chat-0",
        "namespace": "vllm",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"poolgate.dev/pool": "chat"},
        "annotations": {
            "poolgate.dev/port": "8000,8001",
            "poolgate.dev/models": "a,b",
            "poolgate.dev/priority": "true",
        },
        "creationTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8000}]}]},
    "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
}
OBJECT = json.dumps(POD).encode()
PAGE = json.dumps({"metadata": {"resourceVersion": "5", "continue": ""}, "items": [POD]}).encode()
ADDED = json.dumps({"type": "ADDED", "object": POD}).encode()
WORDS = (b'"podIP":', b'"127.0.0.1"', b'"::ffff:127.0.0.1"', b'"poolgate.dev/port":', b"null", b"[]", b"{}", b"1e9")
TARGETS = {
    "pod_object": Target(
        pod_object,
        ("gateway.discovery.pods",),
        (
            OBJECT,
            OBJECT.replace(b"10.0.0.1", b"127.0.0.1"),
            OBJECT.replace(b"10.0.0.1", b"::ffff:169.254.169.254"),
            OBJECT.replace(b"10.0.0.1", b"fe80::1%eth0"),
            OBJECT.replace(b"8000,8001", "٣".encode()),
            OBJECT.replace(b'"Running"', b"7"),
            OBJECT.replace(b"2026-01-01T00:00:00Z", b"0001-01-01T00:00:00+23:59"),
            b'{"metadata":null}',
            b"{}",
        ),
        tokens=WORDS,
    ),
    "watch": Target(
        watch,
        ("gateway.discovery.reflector",),
        (
            PAGE + b"\n\n" + ADDED + b"\n" + ADDED.replace(b"ADDED", b"DELETED").replace(b'"7"', b'"8"'),
            b'{"metadata":{"resourceVersion":"1"},"items":null}\n\n{"type":"ERROR","object":{"code":410}}',
            b'\n\n{"type":"ERROR","object":{"code":429,"details":{"retryAfterSeconds":7}}}',
            b'\n\n{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}\n' + ADDED,
            b'null\n\n{"type":"STRANGE","object":{"metadata":{}}}\nnull',
            b'{"metadata":{"resourceVersion":1},"items":[]}\n\n{"type":[],"object":[]}',
        ),
        tokens=(*WORDS, b'"type":"MODIFIED"', b'"resourceVersion":"', b"\n"),
    ),
    "api_error": Target(
        api_error,
        ("gateway.discovery.kubernetes",),
        (b'{"reason":"TooManyRequests"}', b"[]", b"{", b'{"reason":"a b"}', b"[" * 4000, b"\xff"),
        tokens=(b'"reason":',),
    ),
    "models": Target(
        models,
        ("gateway.discovery.models",),
        (
            b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"vllm"}]}',
            b'{"data":[{"id":"\\ud800"},{"id":""},{"id":5},null,{"id":"m"},{"id":"m"}]}',
            b'{"data":[{"id":"a\\u0000"},{"id":"ok","x":NaN,"y":1e999}]}',
            b'{"data":{}}',
            b"[" * 3000,
        ),
        tokens=(b'"data":', b'{"id":"', b"\\ud800", b"NaN"),
    ),
    "load": Target(
        load,
        ("gateway.discovery.load",),
        (
            (
                b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
                b'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
            ),
            b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100",enable_prefix_caching="True"} 1.0\n',
            (
                b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
                b'vllm:engine_sleep_state{engine="0",sleep_state="discard_all"} 1.0\n'
            ),
            b'vllm:lora_requests_info{running_lora_adapters="a,b",waiting_lora_adapters="c\\"\\n"} 1.79e+09\n',
            b'vllm:num_requests_running{a="}"} NaN\nvllm:num_requests_running{a="\\\\"} +Inf 123\n',
            b'{"server_load":3}',
            b'{"server_load":1e400}',
        ),
        tokens=(b"\nvllm:num_requests_running{", b'sleep_state="', b"} 1.0\n", b"NaN", b"9" * 40, b'\\"'),
    ),
    "redis_answer": Target(
        redis_answer,
        ("gateway.limits.batch",),
        (
            pack("<13d", 1e15, 5e6, 0, 9, 0, *(0, 0, 9, 4e6), *(1, 7e6, 9, 5e6)),
            pack("<d", 1e15),
            pack("<13d", *[float("nan")] * 13),
            pack("<13d", *[1e300] * 13),
            b"",
        ),
        max_bytes=256,
    ),
}
