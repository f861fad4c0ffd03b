"""Limits of a running gateway as its callers meet them: who is let in, what it costs, and what a refusal says.

Time stands still but for what a test adds, so a bucket holds exactly what was taken from it.
"""

import asyncio
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway.core.caller import Tenant
from gateway.core.clock import Clock
from gateway.limits.bucket import Book, Bucket, Costs, Taken
from gateway.limits.keys import KeyEntry, KeyRing, digest, new_key
from gateway.limits.memory_store import MemoryStore
from gateway.limits.store import Mode, Store
from gateway.pipeline.relay import Relay
from loadtest.simulator import PodSettings, SimulatedPod, Task, TimeModel
from tests.clients.sound import tone
from tests.discovering import eventually
from tests.fakes import STREAM_HEAD, Die, Hands, Hang, Reset, ScriptedPod, answer, chunk
from tests.integration.balancing.scenes import FAILED, GOOD, STREAM, TOKEN, pods
from tests.integration.balancing.test_waiting import Gate
from tests.integration.test_reload import ops_of, reloaded, text_of
from tests.integration.test_routes import BOUNDARY, form
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import NO_LIMITS, HasUrl, Running, Side, running

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
AUDIO = "/v1/audio/transcriptions"
NOTHING: Costs = (1, 0, 0, 0)
"""What a request costs of which no token is charged: itself."""
HELLO: Any = [{"role": "user", "content": "Hello"}]
PROMPT = len(json.dumps(chat())) // 4
"""What the prompt of such a chat is taken for."""
MANY = 10**9
TWO_MODELS = (
    b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"},'
    b'{"id":"m-2","object":"model","owned_by":"vllm"}]}'
)


class Recording:
    """A `Store` that notes what it is told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.taken: list[Costs] = []
        """What each request that was let in reserved."""
        self.settled: list[tuple[Costs, Costs]] = []
        """(what was reserved, what was used) of each that has ended."""

    @property
    def mode(self) -> Mode:
        return self._store.mode

    @property
    def since(self) -> float:
        return self._store.since

    @property
    def reason(self) -> str:
        return self._store.reason

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken | None:
        return self._noted(self._store.take_nowait(buckets, costs), costs)

    async def take(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        taken = await self._store.take(buckets, costs)
        self._noted(taken, costs)
        return taken

    def settle(self, taken: Taken, buckets: Sequence[Bucket], reserved: Costs, used: Costs) -> None:
        self.settled.append((reserved, used))
        self._store.settle(taken, buckets, reserved, used)

    def level(self, bucket: Bucket) -> float | None:
        return self._store.level(bucket)

    async def run(self) -> None:
        await self._store.run()

    def _noted(self, taken: Taken | None, costs: Costs) -> Taken | None:
        if taken is not None and taken.refused is None:
            self.taken.append(costs)
        return taken

    @property
    def used(self) -> Costs:
        """What all that have ended used together."""
        one, two, three, four = (sum(each) for each in zip(*(used for _, used in self.settled), strict=True))
        return one, two, three, four


def recording(gateway: Running, store: Store | None = None) -> Recording:
    """From now on, what the gateway's store is told; or another one in its place."""
    told = Recording(store or gateway.gateway.limits)
    gateway.gateway.admission._store = told
    return told


@dataclass
class Limited:
    """A gateway whose time a test moves, and what its store was told."""

    running: Running
    hands: Hands
    told: Recording

    @property
    def book(self) -> Book:
        store = self.running.gateway.limits
        assert isinstance(store, MemoryStore)
        return store.book

    @property
    def levels(self) -> tuple[dict[bytes, float], dict[bytes, int]]:
        """All that is spent and that runs, by bucket."""
        return dict(self.book.tats), dict(self.book.held)

    @property
    def runs(self) -> int:
        """Slots that are taken, of all limits together."""
        return sum(self.book.held.values())

    def spent(self, per_minute: int) -> float:
        """What is spent of the one rate there is, of so many a minute."""
        (tat,) = self.book.tats.values() or (self.hands() * 1e6,)
        return (tat - self.hands() * 1e6) * per_minute / 60e6

    async def begin(
        self,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        key: str | None = None,
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> RawClient:
        """Send a request, a chat if nothing else is said, on a connection of its own."""
        raw = body if isinstance(body, bytes) else dict(body or chat(**more))
        client = await RawClient.connect(self.running.port)
        client.send(request(raw, key=key or self.running.key, path=path, headers=headers))
        return client

    async def ask(self, *given: Any, **more: Any) -> Answer:
        """The same, and its answer."""
        client = await self.begin(*given, **more)
        try:
            return await client.answer()
        finally:
            client.leave()

    async def statuses(self, count: int, **more: Any) -> list[int]:
        """Of so many answers, one after the other."""
        return [(await self.ask(**more)).status for _ in range(count)]

    async def charged(self, *given: Any, **more: Any) -> Costs:
        """What a request is charged when it has been answered."""
        came = await self.ask(*given, **more)
        assert came.status == 200, came.body
        await self.running.settled()
        return self.told.settled[-1][1]

    async def until(self, holds: Callable[[], bool]) -> None:
        await eventually(holds, told=lambda: (self.levels, self.running.lines()[-3:]))


@asynccontextmanager
async def limited(
    given: Sequence[HasUrl],
    side: Side = "edge",
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    concurrent: int | None = None,
    **more: Any,
) -> AsyncIterator[Limited]:
    """A gateway before these pods, with these limits for each key. When a test is over, nothing may run."""
    hands = Hands()
    default = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent": concurrent,
    }
    settings = {"default": default, "rules": [dict(rule) for rule in rules]}
    async with running(given, side=side, limits=settings, clock=Clock(monotonic=hands), **more) as gateway:
        found = Limited(gateway, hands, recording(gateway))
        yield found
        await gateway.settled()
        assert not found.book.held
        assert len(found.told.taken) == len(found.told.settled)


def keys_of(found: Limited, *tenants: Tenant) -> list[str]:
    """Keys for these tenants, beside none other."""
    made = [new_key()[1] for _ in tenants]
    entries = [KeyEntry(digest(key.encode()), tenant) for key, tenant in zip(made, tenants, strict=True)]
    found.running.gateway.reception.keys = KeyRing(entries, lambda: 0.0)
    return made


def limits_of(came: Answer) -> dict[str, str]:
    """What an answer's head says of limits."""
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in came.headers.items()
        if name.startswith("x-ratelimit-")
    }


def wait_of(came: Answer) -> float:
    """The seconds that a refusal says to wait."""
    assert came.status == 429, came.body
    return int(came.headers["retry-after-ms"]) / 1000


# Requests.


async def test_of_many_that_come_at_once_exactly_as_many_as_the_limit_are_let_in(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=20) as found:
        clients = [await RawClient.connect(found.running.port) for _ in range(100)]
        for client in clients:
            client.send(request(chat(), key=found.running.key))
        came = Counter([(await client.answer()).status for client in clients])
        for client in clients:
            client.leave()
        assert came == {200: 20, 429: 80}
        assert len(pod.requests) == 20


async def test_what_is_spent_comes_back_evenly_and_no_more_than_all_of_it(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=6) as found:
        assert await found.statuses(7) == [200] * 6 + [429]
        found.hands.now += 10
        assert await found.statuses(2) == [200, 429]
        found.hands.now += 35
        assert await found.statuses(4) == [200, 200, 200, 429]
        found.hands.now += 86_400
        assert await found.statuses(7) == [200] * 6 + [429]


async def test_no_window_ends_at_whose_edge_twice_the_limit_would_pass() -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], requests_per_minute=30) as found:
        began = found.hands.now
        found.hands.now = began + 59.9
        assert await found.statuses(31) == [200] * 30 + [429]
        found.hands.now = began + 60.1
        assert await found.statuses(3) == [429] * 3
        found.hands.now = began + 61.9
        assert await found.statuses(2) == [200, 429]


@pytest.mark.parametrize("limit", [1, 7, 60])
async def test_who_waits_as_long_as_told_is_let_in_and_who_waits_a_millisecond_less_is_not(limit: int) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], requests_per_minute=limit) as found:
        await found.statuses(limit)
        came = await found.ask()
        seconds = wait_of(came)
        assert came.headers["retry-after"] == str(-(-60 // limit))
        assert f"Wait {seconds:g} s." in came.error["message"]
        found.hands.now += seconds - 0.001
        assert wait_of(await found.ask()) == 0.001
        found.hands.now += 0.001
        assert (await found.ask()).status == 200


class UntilRefused(Recording):
    """A clock that stands still until the store refuses somebody, and then goes on as the machine's."""

    _since: float | None = None

    def __call__(self) -> float:
        return 1000.0 if self._since is None else 1000.0 + time.monotonic() - self._since

    def _noted(self, taken: Taken | None, costs: Costs) -> Taken | None:
        if taken is not None and taken.refused is not None and self._since is None:
            self._since = time.monotonic()
        return super()._noted(taken, costs)


async def test_the_openai_sdk_waits_as_told_and_is_let_in(side: Side) -> None:
    told = answer(
        b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":99}}'
    )
    limits = {"default": NO_LIMITS | {"tokens_per_minute": 6000}}
    stores: list[UntilRefused] = []
    async with (
        ScriptedPod([[told]]) as pod,
        running([pod], side=side, limits=limits, clock=Clock(lambda: stores[0]() if stores else 1000.0)) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=1) as client,
    ):
        stores.append(UntilRefused(gateway.gateway.limits))
        gateway.gateway.admission._store = stores[0]
        # The second asks for what the first has left, and some: that comes back within half a second.
        await client.chat.completions.create(model="m", messages=HELLO, max_tokens=5000)
        await client.chat.completions.create(model="m", messages=HELLO, max_tokens=5930)
        await gateway.settled()
        lines = gateway.lines()
        assert [line["status"] for line in lines] == [200, 429, 200]


async def test_the_openai_sdk_does_not_wait_for_what_never_comes(side: Side) -> None:
    rules = [{"per": "key", "requests_per_day": 1}]
    async with (
        ScriptedPod([[GOOD]]) as pod,
        limited([pod], side, rules=rules, tokens_per_minute=1000) as found,
        AsyncOpenAI(base_url=found.running.base_url, api_key=found.running.key, max_retries=2) as client,
    ):
        with pytest.raises(openai.RateLimitError) as never:
            await client.chat.completions.create(model="m", messages=HELLO, max_tokens=5000)
        assert never.value.code == "rate_limit_exceeded"
        await client.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as spent:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert (spent.value.code, spent.value.type) == ("quota_exceeded", "insufficient_quota")
        await found.running.settled()
        assert [line["status"] for line in found.running.lines()] == [429, 200, 429]


# Tokens: what is reserved.

SOUND = form(("file", tone(), "a.wav"), ("model", b"m"))
IN_FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.mark.parametrize(
    ("path", "body", "answer_tokens"),
    [
        (CHAT, chat(max_tokens=40), 40),
        (CHAT, chat(max_completion_tokens=40), 40),
        (CHAT, chat(max_tokens=40, n=3), 120),
        (CHAT, chat(max_tokens=40, n=3, stream=True), 120),
        (CHAT, chat(), 256),
        (CHAT, chat(n=3), 768),
        (CHAT, chat(max_tokens=None), 256),
        (COMPLETIONS, {"model": "m", "prompt": ["a", "b"], "n": 2, "max_tokens": 10}, 40),
        (COMPLETIONS, {"model": "m", "prompt": [1, 2, 3], "max_tokens": 10}, 10),
        (RESPONSES, {"model": "m", "input": "a", "max_output_tokens": 40}, 40),
        (RESPONSES, {"model": "m", "input": "a"}, 256),
        (MESSAGES, {"model": "m", "messages": HELLO, "max_tokens": 40}, 40),
        (EMBEDDINGS, {"model": "m", "input": "abc"}, 0),
        ("/v1/rerank", {"model": "m", "query": "a", "documents": ["b"]}, 0),
        ("/v1/score", {"model": "m", "text_1": "a", "text_2": "b"}, 0),
    ],
)
async def test_the_prompt_and_the_longest_answer_are_reserved(
    path: str, body: dict[str, Any], answer_tokens: int
) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], tokens_per_minute=MANY) as found:
        await found.ask(body, path=path)
        prompt = len(json.dumps(body)) // 4
        assert found.told.taken == [(1, prompt, answer_tokens, prompt + answer_tokens)]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
async def test_where_no_model_runs_no_token_is_taken(path: str) -> None:
    async with (
        ScriptedPod([[answer(b'{"count":3,"tokens":[1,2,3]}')]]) as pod,
        limited([pod], tokens_per_minute=MANY) as found,
    ):
        assert await found.charged({"model": "m", "prompt": "abc"}, path=path) == NOTHING
        assert found.told.taken == [NOTHING]


async def test_a_recording_is_reserved_by_its_length_and_a_transcript_like_any_answer() -> None:
    async with ScriptedPod([[answer(b'{"text":"ho ho ho"}')]]) as pod, limited([pod], tokens_per_minute=MANY) as found:
        assert await found.charged(SOUND, path=AUDIO, headers=IN_FORM) == (1, 25, 4, 29)
        assert found.told.taken == [(1, 25, 256, 281)]


async def test_an_answer_of_unknown_length_is_taken_for_what_that_models_answers_are() -> None:
    def told(tokens: int) -> bytes:
        return answer(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}' % tokens)

    async with (
        ScriptedPod([[told(1000)], [told(5000)], [told(2)]], models=TWO_MODELS) as pod,
        limited([pod], tokens_per_minute=MANY) as found,
    ):
        for _ in range(3):
            await found.ask()
        await found.ask(model="m-2")
        assert [costs[2] for costs in found.told.taken] == [256, 1000, 1250, 256]


# Tokens: what is charged.


@dataclass(frozen=True)
class Asked:
    """One request that a pod of some task answers, and tells its usage of."""

    label: str
    path: str
    body: dict[str, Any]
    task: Task = Task.GENERATE
    told_when_asked: bool = False
    """Whether a stream tells its usage only to who asks."""


ANSWERED = [
    Asked("chat", CHAT, chat(max_tokens=9)),
    Asked("chat-n", CHAT, chat(max_tokens=9, n=3)),
    Asked("chat-stream", CHAT, chat(max_tokens=9, stream=True), told_when_asked=True),
    Asked("completions", COMPLETIONS, {"model": "m", "prompt": ["a b", "c"], "max_tokens": 9}),
    Asked(
        "completions-stream",
        COMPLETIONS,
        {"model": "m", "prompt": ["a b", "c"], "max_tokens": 9, "stream": True},
        told_when_asked=True,
    ),
    Asked("responses", RESPONSES, {"model": "m", "input": "a b c", "max_output_tokens": 9}),
    Asked("responses-stream", RESPONSES, {"model": "m", "input": "a b c", "max_output_tokens": 9, "stream": True}),
    Asked("messages", MESSAGES, {"model": "m", "messages": HELLO, "max_tokens": 9}),
    Asked("messages-stream", MESSAGES, {"model": "m", "messages": HELLO, "max_tokens": 9, "stream": True}),
    Asked("embeddings", EMBEDDINGS, {"model": "m", "input": ["a b c", "d"]}, Task.EMBED),
    Asked("rerank", "/v1/rerank", {"model": "m", "query": "a", "documents": ["b", "c d"]}, Task.SCORE),
    Asked("score", "/v1/score", {"model": "m", "text_1": "a", "text_2": ["b", "c d"]}, Task.SCORE),
]


@pytest.mark.parametrize("asked", ANSWERED, ids=lambda asked: asked.label)
async def test_what_the_pod_reports_is_charged(side: Side, asked: Asked) -> None:
    async with SimulatedPod(PodSettings(model="m", task=asked.task)) as pod:
        wanting = asked.body | ({"stream_options": {"include_usage": True}} if asked.told_when_asked else {})
        prompt, completion = usage_in(await ask(pod.port, request(wanting, path=asked.path)))
        async with limited([pod], side, tokens_per_minute=MANY) as found:
            assert await found.charged(asked.body, path=asked.path) == (1, prompt, completion, prompt + completion)
            assert found.spent(MANY) == pytest.approx(prompt + completion)
            assert (await found.running.last_line())["usage_source"] == "reported"
            assert prompt > 0
            assert (completion > 0) == (asked.task is Task.GENERATE)


async def test_what_the_pod_reports_of_a_streamed_transcript_is_charged(side: Side) -> None:
    parts = (("file", tone(), "a.wav"), ("model", b"m"), ("stream", b"true"), ("stream_include_usage", b"true"))
    async with SimulatedPod(PodSettings(model="m", task=Task.TRANSCRIPTION)) as pod:
        prompt, completion = usage_in(await ask(pod.port, request(form(*parts), path=AUDIO, headers=IN_FORM)))
        async with limited([pod], side, tokens_per_minute=MANY) as found:
            assert await found.charged(form(*parts), path=AUDIO, headers=IN_FORM) == (
                1,
                prompt,
                completion,
                prompt + completion,
            )
            assert completion > 0


def usage_in(came: Answer) -> tuple[int, int]:
    """(prompt, completion) tokens of the last usage that stands in an answer."""
    text = came.body.decode()
    assert came.status == 200, text
    found = text.rpartition('"usage":')[2].lstrip()
    usage, _ = json.JSONDecoder().raw_decode(found)
    names = ("prompt_tokens", "completion_tokens") if "prompt_tokens" in usage else ("input_tokens", "output_tokens")
    return usage[names[0]], usage.get(names[1]) or 0


@pytest.mark.parametrize(
    "usage",
    [
        None,
        b"null",
        b"{}",
        b'"7"',
        b"[]",
        b'{"prompt_tokens":-5,"completion_tokens":2}',
        b'{"prompt_tokens":5,"completion_tokens":-2}',
        b'{"prompt_tokens":"5","completion_tokens":"2"}',
        b'{"prompt_tokens":1000000000,"completion_tokens":2}',
        b'{"prompt_tokens":5,"completion_tokens":1000000000}',
        b'{"prompt_tokens":5,"completion_tokens":1e99}',
        b'{"prompt_tokens":5,"completion_tokens":2.5}',
    ],
    ids=lambda usage: usage.decode() if usage else "missing",
)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("more", [{}, {"max_tokens": 40}], ids=["unbounded", "max_tokens"])
async def test_where_the_pod_says_nothing_that_can_be_an_estimate_is_charged(
    stream: bool, usage: bytes | None, more: dict[str, int]
) -> None:
    told = b"" if usage is None else b',"usage":' + usage
    whole = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}]%b}' % told)
    last = b"" if usage is None else chunk(b'data: {"choices":[]%b}\n\n' % told)
    final = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n')
    streamed = STREAM_HEAD + TOKEN * 3 + final + last + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with ScriptedPod([[streamed if stream else whole]]) as pod, limited([pod], tokens_per_minute=MANY) as found:
        body = chat(stream=stream, **more)
        prompt = len(json.dumps(body)) // 4
        length = len(whole.partition(b"\r\n\r\n")[2])
        seen = 4 if stream else length // 4
        assert await found.charged(body) == (1, prompt, seen, prompt + seen)
        assert found.spent(MANY) == pytest.approx(prompt + seen)
        assert (await found.running.last_line())["usage_source"] == "estimated"


async def test_an_answer_beyond_its_limit_is_not_cut_and_what_it_owes_is_waited_for(side: Side) -> None:
    usage = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":2000}}\n\n')
    final = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n')
    script = STREAM_HEAD + TOKEN * 500 + final + usage + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with ScriptedPod([[script], [GOOD]]) as pod, limited([pod], side, tokens_per_minute=1000) as found:
        came = await found.ask(stream=True)
        assert (came.status, came.clean, came.body.count(b'"content":"a"')) == (200, True, 500)
        assert came.body.endswith(b"data: [DONE]\n\n")
        await found.running.settled()
        assert found.spent(1000) == pytest.approx(3000)
        refused = await found.ask(max_tokens=10)
        asked = len(json.dumps(chat(max_tokens=10))) // 4 + 10
        assert f"limit 1000, used 3000, asked {asked}" in refused.error["message"]
        assert wait_of(refused) == pytest.approx((2000 + asked) * 60 / 1000)
        assert len(pod.requests) == 1
        found.hands.now += wait_of(refused)
        assert (await found.ask(max_tokens=10)).status == 200


async def test_what_is_given_back_late_makes_a_limit_no_more_than_full(side: Side) -> None:
    pod = Gate()
    async with pod, limited([pod], side, tokens_per_minute=1000) as found:
        client = await found.begin(max_tokens=900)
        await found.until(lambda: len(pod.requests) == 1)
        found.hands.now += 3600
        pod.open()
        assert (await client.answer()).status == 200
        await found.running.settled()
        assert found.book.tats == {}
        client.leave()


@pytest.mark.parametrize(
    ("path", "body", "piece"),
    [
        (CHAT, chat(max_tokens=50), rb'"delta":{"content":"[^"]'),
        (CHAT, chat(max_tokens=50, n=2), rb'"delta":{"content":"[^"]'),
        (COMPLETIONS, {"model": "m", "prompt": "a b c", "max_tokens": 50}, rb'"text":"[^"]'),
        (RESPONSES, {"model": "m", "input": "a b c", "max_output_tokens": 50}, rb"event: [a-z_.]+\.delta"),
        (MESSAGES, {"model": "m", "messages": HELLO, "max_tokens": 50}, rb"event: content_block_delta"),
    ],
    ids=["chat", "chat-n", "completions", "responses", "messages"],
)
async def test_a_stream_that_its_pod_cuts_is_charged_a_token_for_each_piece_that_was_relayed(
    side: Side, path: str, body: dict[str, Any], piece: bytes
) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, limited([pod], side, tokens_per_minute=MANY) as found:
        pod.set_fault("reset:9")
        body = {**body, "stream": True}
        came = await found.ask(body, path=path)
        assert came.status == 200
        prompt, pieces = len(json.dumps(body)) // 4, len(re.findall(piece, came.body))
        assert pieces >= 3
        await found.running.settled()
        assert found.told.settled[-1][1] == (1, prompt, pieces, prompt + pieces)
        line = await found.running.last_line()
        assert (line["outcome"], line["usage_source"], line["prompt_tokens"], line["completion_tokens"]) == (
            "truncated",
            "estimated",
            prompt,
            pieces,
        )


@pytest.mark.parametrize("beyond", [1, 5000, 200_000])
async def test_an_answer_too_large_to_be_held_is_charged_as_it_reports_and_is_over_when_it_ends(
    side: Side, beyond: int
) -> None:
    ending = b'"],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    said = b'{"data":["'.ljust(Relay.max_whole_bytes + beyond - len(ending), b"x") + ending
    async with (
        ScriptedPod([[answer(said)]]) as pod,
        limited([pod], side, tokens_per_minute=MANY, concurrent=1) as found,
    ):
        client = await found.begin({"model": "m", "input": "a"}, path=EMBEDDINGS)
        came = await client.answer()
        assert (came.status, came.clean, came.body == said) == (200, True, True)
        # While the client stays.
        await found.until(lambda: found.runs == 0)
        assert found.told.settled[-1][1] == (1, 7, 0, 7)
        client.leave()


@pytest.mark.parametrize("events", [0, 2])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_charged_the_prompt_and_what_was_relayed(
    side: Side, stream: bool, events: int
) -> None:
    sent = STREAM_HEAD + TOKEN * events if stream else answer(b"{" * 500)[: 100 * events]
    async with ScriptedPod([[sent, Hang]]) as pod, limited([pod], side, tokens_per_minute=MANY) as found:
        body = chat(stream=stream, max_tokens=100)
        client = await found.begin(body)
        if stream and events:
            await client.reader.readuntil(b'"content":"a"')
            await client.reader.readuntil(b'"content":"a"')
        else:
            await found.until(lambda: bool(pod.requests))
        client.leave()
        await pod.peer_left.wait()
        await found.running.settled()
        prompt, answered = len(json.dumps(body)) // 4, events if stream else 0
        assert found.told.settled[-1][1] == (1, prompt, answered, prompt + answered)
        line = await found.running.last_line()
        assert (line["outcome"], line["usage_source"], line["completion_tokens"]) == (
            "client_left",
            "estimated",
            answered,
        )


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ((FAILED,), 500),
        ((Reset,), 502),
        ((STREAM_HEAD, Reset), 502),
        ((answer(b'{"error":{"message":"no","type":"x","code":400}}', b"400 Bad Request"),), 400),
    ],
    ids=["500", "reset", "reset-after-head", "400"],
)
async def test_where_a_pod_fails_before_the_first_byte_no_token_is_charged(
    side: Side, script: tuple[Any, ...], status: int
) -> None:
    async with ScriptedPod([script]) as pod, limited([pod], side, tokens_per_minute=MANY) as found:
        assert (await found.ask(stream=True)).status == status
        await found.running.settled()
        assert [used for _, used in found.told.settled] == [NOTHING]
        assert found.spent(MANY) == 0
        line = await found.running.last_line()
        assert (line["prompt_tokens"], line["completion_tokens"], line["usage_source"]) == (None, None, None)


async def test_a_request_that_is_tried_again_is_charged_once(side: Side) -> None:
    given = [ScriptedPod([[Reset]]), ScriptedPod([[GOOD]])]
    async with given[0], given[1]:
        pool = {"policy": "round_robin"}
        async with limited(given, side, requests_per_minute=9, tokens_per_minute=MANY, pool=pool) as found:
            while not given[0].requests:
                assert await found.charged() == (1, 1, 1, 2)
            lines = found.running.lines()
            assert lines[-1]["attempts"] > 1
            assert len(found.told.taken) == len(lines)
            assert limits_of(await found.ask())["remaining-requests"] == str(9 - len(lines) - 1)


@pytest.mark.parametrize(
    "models",
    [{"asked": {"to": [{"model": "m"}]}}, {"asked": {"to": [{"model": "absent"}], "fallback": ["m"]}}],
    ids=["alias", "fallback"],
)
async def test_a_model_is_limited_by_the_name_it_was_asked_for(side: Side, models: dict[str, Any]) -> None:
    (pod,) = pods(1)
    rules = [
        {"per": "model", "match": "asked", "tokens_per_minute": 300},
        {"per": "model", "match": "m", "concurrent": 1},
    ]
    async with pod, limited([pod], side, rules=rules, models=models) as found:
        came = await found.ask(model="asked", max_tokens=100)
        assert (came.status, json.loads(pod.requests[0].partition(b"\r\n\r\n")[2])["model"]) == (200, "m")
        assert found.spent(300) == pytest.approx(2)
        assert (await found.running.last_line())["model"] == "asked"
        refused = await found.ask(model="asked", max_tokens=280)
        assert "tokens per minute of model 'asked'" in refused.error["message"]
        assert (await found.ask(max_tokens=280)).status == 200


# What runs at once.

ONE = {"max_in_flight_per_pod": 1}


async def test_a_slot_is_held_from_the_line_to_the_answers_end(side: Side) -> None:
    pod = Gate()
    async with pod, limited([pod], side, concurrent=2, pool=ONE) as found:
        first = await found.begin(stream=True)
        await found.until(lambda: len(pod.requests) == 1)
        second = await found.begin()
        await found.until(lambda: found.runs == 2)
        refused = await found.ask()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "concurrent requests of this key: limit 2, used 2, asked 1" in refused.error["message"]
        pod.open()
        assert (await first.answer()).clean
        await found.until(lambda: len(pod.requests) == 2)
        assert found.runs == 1
        pod.open()
        assert (await second.answer()).status == 200
        await found.until(lambda: found.runs == 0)
        for client in (first, second):
            client.leave()


@pytest.mark.parametrize("where", ["line", "before-first-token", "stream", "whole"])
async def test_a_client_that_leaves_gives_its_slot_back(side: Side, where: str) -> None:
    holding = ScriptedPod([[STREAM_HEAD + TOKEN, Hang] if where == "stream" else [Hang]])
    async with holding as pod, limited([pod], side, concurrent=2, pool=ONE) as found:
        first = await found.begin(stream=where != "whole")
        await found.until(lambda: len(pod.requests) == 1)
        leaving = first
        if where == "line":
            leaving = await found.begin()
            await found.until(lambda: found.runs == 2)
        elif where == "stream":
            await first.reader.readuntil(b'"content":"a"')
        before = found.runs
        leaving.leave()
        await found.until(lambda: found.runs == before - 1)
        first.leave()


@pytest.mark.parametrize("script", [(STREAM_HEAD + TOKEN, Die), (Die,)], ids=["stream", "before"])
async def test_a_pod_that_dies_gives_the_slot_back(side: Side, script: tuple[Any, ...]) -> None:
    async with ScriptedPod([script]) as pod, limited([pod], side, concurrent=1) as found:
        assert (await found.ask(stream=True)).status in (200, 502, 503)
        await found.until(lambda: found.runs == 0)


async def test_the_end_of_a_drain_gives_every_slot_back(side: Side) -> None:
    async with ScriptedPod([[STREAM_HEAD + TOKEN, Hang]]) as pod, limited([pod], side, concurrent=2, pool=ONE) as found:
        runs = await found.begin(stream=True)
        begun = await runs.reader.readuntil(b'"content":"a"')
        waits = await found.begin()
        await found.until(lambda: found.runs == 2)
        found.running.gateway.pipeline.end_all()
        assert b"gateway_draining" in (await runs.answer(begun=begun)).body
        assert (await waits.answer()).error["code"] == "draining"
        await found.until(lambda: found.runs == 0)
        for client in (runs, waits):
            client.leave()


async def test_a_thousand_requests_of_clients_that_come_and_go_leave_no_slot_taken(side: Side) -> None:
    rng = random.Random(5)
    settings = PodSettings(model="m", time=TimeModel(step_seconds=0.0005), max_num_seqs=8, natural_tokens=(4, 30))
    most = 0
    async with SimulatedPod(settings) as pod, SimulatedPod(settings) as other:
        pool = {"max_in_flight_per_pod": 6}
        async with limited([pod, other], side, concurrent=20, tokens_per_minute=MANY, pool=pool) as found:

            async def come_and_go(count: int) -> None:
                nonlocal most
                for _ in range(count):
                    client = await found.begin(stream=rng.random() < 0.7)
                    stays = rng.random()
                    if stays < 0.4:
                        await client.answer()
                    elif stays < 0.9:
                        # What has come by then says where it leaves: anywhere from the line to the middle of a stream.
                        await client.reader.read(rng.choice((1, 300, 1000, 5000)))
                    client.leave()
                    most = max(most, found.runs)
                    assert all(count > 0 for count in found.book.held.values())

            await asyncio.gather(*(come_and_go(25) for _ in range(40)))
            # Who left at once may be heard of later.
            await found.until(lambda: len(found.running.lines()) == 1000)
            await found.running.settled(5)
            assert found.book.held == {}
            outcomes = Counter(line["outcome"] for line in found.running.lines())
            assert 15 <= most <= 20
            assert min(outcomes["completed"], outcomes["client_left"], outcomes["refused"]) > 50
            assert await found.statuses(3) == [200] * 3


# All or none.


@pytest.mark.parametrize("full", ["requests", "tokens", "never", "concurrent", "day"])
async def test_who_is_refused_by_one_limit_takes_nothing_of_the_others(side: Side, full: str) -> None:
    rules: dict[str, dict[str, Any]] = {
        "requests": {"per": "model", "requests_per_minute": 1},
        "tokens": {"per": "model", "tokens_per_minute": 300},
        "never": {"per": "model", "tokens_per_minute": 50},
        "concurrent": {"per": "model", "concurrent": 1},
        "day": {"per": "model", "requests_per_day": 1},
    }
    (pod,) = pods(1, Hang)
    every = {"requests_per_minute": 1000, "tokens_per_minute": MANY, "concurrent": 100}
    tenants = {"per": "tenant", **every, "requests_per_day": 1000, "tokens_per_day": MANY}
    async with pod, limited([pod], side, rules=[tenants, rules[full]], **every) as found:
        # A small one passes each of them, and is not over.
        holding = await found.begin(max_tokens=20)
        await found.until(lambda: len(pod.requests) == 1)
        before = found.levels
        assert len(before[0]) + len(before[1]) >= 9
        assert (await found.ask(max_tokens=260)).status == 429
        assert found.levels == before
        assert len(pod.requests) == 1
        holding.leave()


# For whom a limit is.


async def test_each_key_has_its_own_of_what_all_have_and_another_if_it_says_so(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=2) as found:
        usual, other, special = keys_of(
            found, Tenant("a", "team"), Tenant("b", "team"), Tenant("c", "team", requests_per_minute=4)
        )
        assert await found.statuses(3, key=usual) == [200, 200, 429]
        assert await found.statuses(3, key=other) == [200, 200, 429]
        assert await found.statuses(5, key=special) == [200] * 4 + [429]


async def test_the_keys_of_a_tenant_share_its_limit_and_other_tenants_do_not(side: Side) -> None:
    (pod,) = pods(1)
    rules = [{"per": "tenant", "match": "acme-*", "requests_per_minute": 3}]
    async with pod, limited([pod], side, rules=rules) as found:
        one, two, elsewhere, free = keys_of(
            found, Tenant("a", "acme-eu"), Tenant("b", "acme-eu"), Tenant("c", "acme-us"), Tenant("d", "other")
        )
        assert await found.statuses(2, key=one) == [200, 200]
        assert await found.statuses(2, key=two) == [200, 429]
        assert await found.statuses(4, key=elsewhere) == [200] * 3 + [429]
        assert await found.statuses(5, key=free) == [200] * 5
        refused = await found.ask(key=one)
        assert "requests per minute of tenant 'acme-eu': limit 3" in refused.error["message"]


async def test_a_rule_per_key_is_for_the_keys_whose_id_it_matches(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, rules=[{"per": "key", "match": "ci*", "requests_per_minute": 1}]) as found:
        one, two, free = keys_of(found, Tenant("ci1", "t"), Tenant("ci2", "t"), Tenant("x", "t"))
        assert await found.statuses(2, key=one) == [200, 429]
        assert await found.statuses(2, key=two) == [200, 429]
        assert await found.statuses(3, key=free) == [200] * 3


async def test_a_rule_per_model_is_shared_by_all_callers_and_each_model_has_its_own(side: Side) -> None:
    async with (
        ScriptedPod([[GOOD]], models=TWO_MODELS) as pod,
        limited([pod], side, rules=[{"per": "model", "requests_per_minute": 2}]) as found,
    ):
        assert await found.statuses(1) == [200]
        assert await found.statuses(2, key=found.running.other_key) == [200, 429]
        assert await found.statuses(3, model="m-2") == [200, 200, 429]


async def test_a_rule_over_several_models_counts_them_together_and_leaves_others_alone(side: Side) -> None:
    models = {"fast": {"to": [{"model": "m"}]}}
    async with ScriptedPod([[GOOD]], models=TWO_MODELS) as pod:
        rules = [{"per": "tenant", "model": "m*", "requests_per_minute": 3}]
        async with limited([pod], side, rules=rules, models=models) as found:
            assert await found.statuses(2) == [200, 200]
            assert await found.statuses(2, model="m-2") == [200, 429]
            assert await found.statuses(4, model="fast") == [200] * 4
            refused = await found.ask()
            assert "of tenant 'tests', models 'm*': limit 3" in refused.error["message"]


async def test_a_rule_per_user_is_for_whom_a_trusted_key_speaks_for(side: Side) -> None:
    (pod,) = pods(1)
    rules = [{"per": "user", "match": "u-*", "requests_per_minute": 2}]
    async with pod, limited([pod], side, rules=rules) as found:
        trusted, other = keys_of(found, Tenant("a", "webui", forwards_user=True), Tenant("b", "webui"))

        def user(name: str) -> dict[str, str]:
            return {"X-OpenWebUI-User-Id": name}

        assert await found.statuses(3, key=trusted, headers=user("u-1")) == [200, 200, 429]
        assert await found.statuses(3, key=trusted, headers=user("u-2")) == [200, 200, 429]
        assert await found.statuses(3, key=trusted, headers=user("admin")) == [200] * 3
        assert await found.statuses(3, key=trusted) == [200] * 3
        # Who is not trusted speaks for itself, and nobody's limit is spent by it.
        assert await found.statuses(3, key=other, headers=user("u-3")) == [200] * 3
        assert await found.statuses(1, key=trusted, headers=user("u-3")) == [200]
        refused = await found.ask(key=trusted, headers=user("u-1"))
        assert "requests per minute of this user: limit 2" in refused.error["message"]


@pytest.mark.parametrize(("count", "let_in"), [("prompt", True), ("completion", False), ("both", False)])
async def test_a_limit_counts_the_tokens_that_it_is_of(count: str, let_in: bool) -> None:
    (pod,) = pods(1)
    rules = [{"per": "tenant", "tokens_per_minute": 100, "count": count}]
    async with pod, limited([pod], rules=rules) as found:
        came = await found.ask(max_tokens=101)
        assert came.status == (200 if let_in else 429)


# What an answer says of the limits.


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_tells_where_the_limits_stand(side: Side, stream: bool) -> None:
    async with (
        ScriptedPod([[STREAM if stream else GOOD]]) as pod,
        limited([pod], side, requests_per_minute=3, tokens_per_minute=6000) as found,
    ):
        came = await found.ask(stream=stream, max_tokens=100)
        asked = len(json.dumps(chat(stream=stream, max_tokens=100))) // 4 + 100
        assert came.status == 200
        assert limits_of(came) == {
            "limit-requests": "3",
            "remaining-requests": "2",
            "reset-requests": "20s",
            "limit-tokens": "6000",
            "remaining-tokens": str(6000 - asked),
            "reset-tokens": f"{asked / 100:g}s",
        }


async def test_of_several_limits_the_one_is_told_that_has_the_least_left() -> None:
    (pod,) = pods(1)
    rules = [{"per": "tenant", "requests_per_minute": 5}, {"per": "model", "requests_per_day": 1440}]
    async with pod, limited([pod], rules=rules, requests_per_minute=10) as found:
        assert limits_of(await found.ask()) == {
            "limit-requests": "5",
            "remaining-requests": "4",
            "reset-requests": "12s",
        }
        found.hands.now += 12
        assert await found.statuses(5) == [200] * 5
        assert limits_of(await found.ask()) == {
            "limit-requests": "5",
            "remaining-requests": "0",
            "reset-requests": "1m0s",
        }


async def test_without_limits_nothing_is_said_of_them(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side) as found:
        assert limits_of(await found.ask()) == {}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 400])
async def test_whatever_comes_of_a_request_its_answer_tells_the_limits(side: Side, status: int) -> None:
    scripts: dict[int, tuple[Any, ...]] = {
        500: (FAILED,),
        502: (Reset,),
        503: (answer(b"{}", b"503 Service Unavailable"),),
        504: (Hang,),
        400: (answer(b'{"error":{"message":"no","type":"x","code":400}}', b"400 Bad Request"),),
    }
    async with ScriptedPod([scripts.get(status, (GOOD,))]) as pod:
        pool = {"response_seconds": 30}
        async with limited([pod], side, requests_per_minute=1, tokens_per_minute=6000, pool=pool) as found:
            if status == 429:
                await found.ask()
            asking = asyncio.create_task(found.ask())
            if status == 504:
                await found.until(lambda: bool(pod.requests))
                found.hands.now += 30
            came = await asking
            assert came.status == status
            told = limits_of(came)
            assert (told["limit-requests"], told["remaining-requests"], told["reset-requests"]) == ("1", "0", "1m0s")
            assert (told["limit-tokens"], len(told)) == ("6000", 6)


async def test_a_refusal_names_the_limit_and_says_when_to_come_again(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=2) as found:
        await found.statuses(2)
        found.hands.now += 5.5
        came = await found.ask()
        message = "Rate limit reached: requests per minute of this key: limit 2, used 2, asked 1. Wait 24.5 s."
        assert came.error == {
            "message": message,
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert (came.headers["retry-after"], came.headers["retry-after-ms"]) == ("25", "24500")
        assert "x-should-retry" not in came.headers
        assert came.headers["x-request-id"]
        anthropic = await found.ask({"model": "m", "messages": HELLO, "max_tokens": 5}, path=MESSAGES)
        assert anthropic.status == 429
        assert json.loads(anthropic.body) == {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": message, "code": "rate_limit_exceeded"},
        }
        assert anthropic.headers["retry-after-ms"] == "24500"


async def test_a_days_quota_is_not_waited_for(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, rules=[{"per": "key", "requests_per_day": 1}]) as found:
        await found.ask()
        came = await found.ask()
        assert (came.status, came.error["type"], came.error["code"]) == (429, "insufficient_quota", "quota_exceeded")
        assert "requests per day of this key: limit 1, used 1, asked 1" in came.error["message"]
        assert came.headers["x-should-retry"] == "false"
        assert "retry-after" not in came.headers
        found.hands.now += 86_400
        assert (await found.ask()).status == 200


async def test_what_never_fits_is_not_waited_for(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, tokens_per_minute=100) as found:
        came = await found.ask(max_tokens=101)
        assert (came.status, came.error["code"]) == (429, "rate_limit_exceeded")
        assert "more than it ever allows at once: ask for less" in came.error["message"]
        assert came.headers["x-should-retry"] == "false"
        assert "retry-after" not in came.headers


async def test_a_refusal_has_its_line_and_its_counts(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=1, tokens_per_minute=1000) as found:
        await found.ask()
        await found.ask(stream=True)
        line = await found.running.last_line()
        told = ("status", "outcome", "code", "model", "operation", "stream", "tenant")
        assert [line[name] for name in told] == [429, "refused", "rate_limit_exceeded", "m", "chat", True, "tests"]
        assert [line[name] for name in ("pod", "attempts", "prompt_tokens", "usage_source")] == ["", 0, None, None]

        def counted(limit: str, decision: str) -> float:
            return found.running.sample("poolgate_limit_decisions_total", limit=limit, decision=decision)

        assert (counted("requests_per_minute", "admitted"), counted("tokens_per_minute", "admitted")) == (1, 1)
        assert (counted("requests_per_minute", "refused"), counted("tokens_per_minute", "refused")) == (1, 0)
        labels = {"model": "m", "operation": "chat", "status": "429", "outcome": "refused"}
        assert found.running.sample("poolgate_requests_total", **labels) == 1


async def test_what_is_no_request_for_a_model_costs_nothing(side: Side) -> None:
    (pod,) = pods(1)
    async with pod, limited([pod], side, requests_per_minute=1, concurrent=1) as found:
        for data in (
            request(b"", key=found.running.key, path="/v1/models", method="GET"),
            request(chat(), key="sk-pg_nobody"),
            request(b"{", key=found.running.key),
            request(chat(model="no-such-model"), key=found.running.key),
            request(chat(cache_salt="x"), key=found.running.key),
        ):
            await ask(found.running.port, data)
        assert found.levels == ({}, {})
        assert (await found.ask()).status == 200


async def test_no_key_user_or_prompt_is_told_to_anybody(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (pod,) = pods(1)
    rules = [{"per": "user", "requests_per_minute": 1}, {"per": "tenant", "tokens_per_minute": 1000}]
    async with pod, limited([pod], side, rules=rules, concurrent=1) as found, ops_of(found.running) as ops:
        (key,) = keys_of(found, Tenant("a", "webui", forwards_user=True))
        secret = {"messages": [{"role": "user", "content": "canary-prompt"}]}
        said = b""
        for more in ({}, {}, {"max_tokens": 2000}, {"max_tokens": 2000, "stream": True}):
            came = await found.ask(
                chat(**secret, **more) | secret, key=key, headers={"X-OpenWebUI-User-Id": "canary-user"}
            )
            said += came.body + json.dumps(came.headers).encode()
        found.running.gateway.journal.observe()
        for path in ("/metrics", "/status.json", "/status"):
            said += (await ops.get(path)).content
        said += json.dumps(found.running.lines()).encode() + repr(found.levels).encode() + caplog.text.encode()
        assert b"canary" not in said
        assert key[12:].encode() not in said


# A new configuration.


async def test_a_limit_that_is_changed_takes_effect_and_goes_on_from_where_it_was(side: Side, tmp_path: Path) -> None:
    def text(per_minute: int | None) -> str:
        return text_of([pod], limits={"default": NO_LIMITS | {"requests_per_minute": per_minute}})

    file = tmp_path / "poolgate.yaml"
    (pod,) = pods(1)
    async with pod:
        file.write_text(text(4))
        async with limited([], side, file=file) as found:
            assert await found.statuses(2) == [200, 200]
            await reloaded(found.running, lambda: file.write_text(text(8)))
            # Half of it was spent.
            assert await found.statuses(5) == [200] * 4 + [429]
            assert wait_of(await found.ask()) == 7.5
            await reloaded(found.running, lambda: file.write_text(text(60)))
            came = await found.ask()
            assert (wait_of(came), limits_of(came)["limit-requests"]) == (1, "60")
            found.hands.now += 30
            await reloaded(found.running, lambda: file.write_text(text(2)))
            assert await found.statuses(2) == [200, 429]
            await reloaded(found.running, lambda: file.write_text(text(None)))
            assert await found.statuses(5) == [200] * 5


async def test_what_runs_counts_against_the_limit_that_comes_and_is_given_back(side: Side, tmp_path: Path) -> None:
    def text(**limits: int) -> str:
        return text_of([pod], limits={"default": NO_LIMITS | limits})

    file = tmp_path / "poolgate.yaml"
    pod = Gate()
    async with pod:
        file.write_text(text(concurrent=1, tokens_per_minute=1000))
        async with limited([], side, file=file) as found:
            runs = [await found.begin(max_tokens=100)]
            await found.until(lambda: len(pod.requests) == 1)
            assert (await found.ask()).status == 429
            await reloaded(found.running, lambda: file.write_text(text(concurrent=2, tokens_per_minute=10)))
            runs.append(await found.begin(max_tokens=1))
            assert (await runs[1].answer()).error["code"] == "rate_limit_exceeded"
            await reloaded(found.running, lambda: file.write_text(text(concurrent=2)))
            runs.append(await found.begin())
            await found.until(lambda: len(pod.requests) == 2)
            assert (await found.ask()).status == 429
            for _ in range(2):
                pod.open()
            assert [(await runs[place].answer()).status for place in (0, 2)] == [200, 200]
            for client in runs:
                client.leave()
            await found.until(lambda: found.runs == 0)
            # Tokens were settled at the price at which they had been reserved.
            assert found.spent(1000) == pytest.approx(2)
