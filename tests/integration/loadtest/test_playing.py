"""The generator before simulated pods and before the gateway: what it writes down is what they did."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import pytest
import uvloop

from loadtest.bench.wire import Wish, stream_body
from loadtest.load.client import Bounds
from loadtest.load.player import Own, play
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Planned
from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.timing import TimeModel
from tests.running import running
from tests.unit.loadtest.load.planning import closed_loop, evenly, open_loop, planned, refusing

KEYS = {"caller": ""}
BOUNDS = Bounds(patience_seconds=120.0, connect_seconds=60.0)
STEP = 0.02
PACED = PodSettings(
    model="m",
    time=TimeModel(step_seconds=STEP, step_seconds_per_sequence=0.0, prefill_seconds_per_token=0.0),
    prompt_tokens_details=True,
)
QUICK = PodSettings(model="m")


def streams(count: int, seconds: float = 0.5, *, max_tokens: int = 10) -> list[Planned]:
    return [planned(n, n * seconds / count, stream=True, max_tokens=max_tokens) for n in range(count)]


async def of_pod(fault: str | None, requests: list[Planned], bounds: Bounds = BOUNDS) -> list[Record]:
    async with SimulatedPod(QUICK) as pod:
        if fault is not None:
            pod.set_fault(fault)
        return await play(open_loop(requests), pod.url, KEYS, bounds=bounds)


async def test_the_pace_of_a_pod_is_the_pace_that_is_written_down() -> None:
    began = time.monotonic()
    async with SimulatedPod(PACED) as pod:
        records = await play(open_loop(streams(10, max_tokens=20)), pod.url, KEYS)
    took = time.monotonic() - began  # a busy machine may be slower, and nobody faster
    assert {record.ending for record in records} == {Ending.WHOLE}
    assert {(record.tokens, record.completion_tokens) for record in records} == {(20, 20)}
    between = [(record.token_times[-1] - record.token_times[0]) / 19 for record in records]
    assert 0.9 * STEP < median(between) < took / 19
    first = [record.first_at - record.intended_at for record in records if record.first_at is not None]
    assert len(first) == 10
    assert 0.5 * STEP < median(first) < took


@pytest.mark.parametrize(
    ("fault", "ending", "tokens", "code"),
    [
        (None, Ending.WHOLE, 10, ""),
        ("cut:6", Ending.CUT, 5, ""),
        ("reset:6", Ending.CUT, None, ""),
        ("no_done:6", Ending.CUT, 5, ""),
        ("no_finish", Ending.CUT, 10, ""),
        ("error_event:6", Ending.TOLD, 5, "InternalServerError"),
        ("stall:6", Ending.TIMEOUT, 5, ""),
        ("never_answer", Ending.TIMEOUT, 0, ""),
        ("garbage:not_http", Ending.CUT, 0, "not_http"),
        ("status:503", Ending.ERROR, 0, None),
    ],
)
async def test_each_way_in_which_a_pod_fails_has_its_ending(
    fault: str | None, ending: Ending, tokens: int | None, code: str | None
) -> None:
    records = await of_pod(fault, streams(5), Bounds(patience_seconds=3.0) if ending is Ending.TIMEOUT else BOUNDS)
    assert {record.ending for record in records} == {ending}
    assert tokens is None or {record.tokens for record in records} == {tokens}
    assert code is None or {record.code for record in records} == {code}


async def test_a_pod_sees_at_once_who_left() -> None:
    leaving = [planned(n, n * 0.02, stream=True, max_tokens=1000, leave_after_tokens=3) for n in range(5)]
    leaving += [planned(n, n * 0.02, stream=True, max_tokens=1000, leave_after=0.2) for n in range(5, 10)]
    async with SimulatedPod(PACED) as pod:
        records = await play(open_loop(leaving), pod.url, KEYS)
        await pod.until(lambda pod: not pod.running)
    assert {record.ending for record in records} == {Ending.LEFT}
    assert all(3 <= record.tokens <= 5 for record in records[:5])
    assert all((record.ended_at or 0) - record.sent_at > 0.19 for record in records[5:])


async def test_other_operations_are_heard_as_well() -> None:
    bodies: dict[str, dict[str, object]] = {
        "/v1/completions": {"model": "m", "prompt": "one two three", "max_tokens": 5},
        "/v1/messages": {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]},
        "/v1/responses": {"model": "m", "max_output_tokens": 5, "input": "Hello"},
    }
    requests = [
        Planned(n, n * 0.01, 0, path, "caller", path, json.dumps({**body, "stream": stream}).encode(), stream, 3, 5)
        for n, (path, body, stream) in enumerate((p, b, s) for p, b in bodies.items() for s in (True, False))
    ]
    async with SimulatedPod(QUICK) as pod:
        records = await play(open_loop(requests), pod.url, KEYS)
    assert [record.ending for record in records] == [Ending.WHOLE] * 6, [(r.status, r.code) for r in records]
    assert [record.tokens for record in records] == [5, 0] * 3
    of_named = [record.completion_tokens for record in records[2:]]
    assert of_named == [5, 5, 5, 5]


async def test_through_the_gateway_a_key_that_may_debug_sees_the_pods() -> None:
    async with (
        SimulatedPod(PACED) as one,
        SimulatedPod(PACED) as other,
        running([one, other], tenant={"debug": True}) as gate,
    ):
        url = f"http://127.0.0.1:{gate.port}"
        records = await play(open_loop(streams(10)), url, {"caller": gate.key})
        assert {record.pod for record in records} == {"chat-0", "chat-1"}
        assert {(record.ending, record.tokens, record.completion_tokens) for record in records} == {
            (Ending.WHOLE, 10, 10)
        }
        refused = await play(evenly(1, 0.1), url, {"caller": "sk-wrong"})
    assert (refused[0].ending, refused[0].status, refused[0].code) == (Ending.ERROR, 401, "invalid_api_key")


async def test_through_the_gateway_a_limit_says_how_long_to_wait_to_the_millisecond() -> None:
    async with SimulatedPod(QUICK) as pod, running([pod], tenant={"requests_per_minute": 5}) as gate:
        records = await play(evenly(12, 0.3), f"http://127.0.0.1:{gate.port}", {"caller": gate.key})
    refused = [record for record in records if record.ending is Ending.ERROR]
    assert len(records) - len(refused) == 5
    assert {(record.status, record.code) for record in refused} == {(429, "rate_limit_exceeded")}
    assert all(record.retry_after is not None and 0 < record.retry_after <= 60 for record in refused)
    assert any((record.retry_after or 0) % 1 for record in refused)


async def test_a_gateway_that_goes_away_refuses_and_its_successor_serves() -> None:
    async with SimulatedPod(QUICK) as pod:
        with refusing() as gone:
            urls = [gone]

            def replace(record: Record) -> None:
                if record.planned.number == 4:
                    urls[0] = pod.url

            # One at a time: the fifth is over before the sixth is sent.
            records = await play(closed_loop(1, 10), urls, KEYS, on_record=replace)
    assert [record.ending for record in records] == [Ending.REFUSED] * 5 + [Ending.WHOLE] * 5


# --- what it costs ------------------------------------------------------------------------------------------


@asynccontextmanager
async def cheap_pod() -> AsyncIterator[str]:
    """The bench's pod, in a process of its own: it sends thousands of events per second and more."""
    command = ["-m", "loadtest.bench.backend", "--pods", "1"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            (port,) = json.loads(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


PLANNED_SECONDS = 2.8


def test_five_thousand_events_a_second_on_a_thousand_streams_are_less_than_half_a_core() -> None:
    """5,000 a second cost about a tenth of one; the bound leaves room for a machine that has other work.

    Such a machine may also take longer: the CPU time is told by the time that was planned.
    """
    own = Own()

    async def loaded() -> list[Record]:
        wishes = [Wish(tokens=10, period_us=200_000, phase_us=n * 200) for n in range(1000)]
        requests = [
            Planned(n, n / 1000, 0, "chat", "caller", "/v1/chat/completions", stream_body(wish), True, 50, 10)
            for n, wish in enumerate(wishes)
        ]
        async with cheap_pod() as url:
            return await play(open_loop(requests), url, KEYS, own=own, bounds=BOUNDS)

    records = uvloop.run(loaded())
    assert {(record.ending, record.tokens) for record in records} == {(Ending.WHOLE, 10)}
    assert (own.requests, own.events, own.connections) == (1000, 10_000, 1000)
    # Their pace is the pod's, which is never too fast: the last of them begins after a second and lasts nine beats.
    assert own.seconds > PLANNED_SECONDS - 0.1
    assert own.cpu_seconds / PLANNED_SECONDS < 0.5


def test_a_request_on_a_kept_connection_costs_little() -> None:
    """About 20 us of CPU, the kernel's part included."""
    own = Own()

    async def loaded() -> list[Record]:
        async with cheap_pod() as url:
            return await play(closed_loop(16, 5_000), url, KEYS, own=own, bounds=BOUNDS)

    records = uvloop.run(loaded())
    assert {record.ending for record in records} == {Ending.WHOLE}
    assert own.connections == 16
    assert own.us_per_request < 150
