"""A sick pod gets no work, and comes back step by step; bad requests, busy pods and slow ones make no pod sick."""

import asyncio
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import pytest

from gateway.balancing.balancer import FAILED_SECONDS
from gateway.balancing.health import CLEAN_SECONDS, EJECTION_SECONDS, EVIDENCE_SECONDS, JITTER_SECONDS, RAMP_SECONDS
from gateway.core.fleet import PodState
from tests.fakes import MODELS, STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.integration.balancing.scenes import FAILED, GOOD, SIDECAR, STREAM, TOKEN, Scene, pods, scene
from tests.running import Side

BUSY = answer(b"{}", b"503 Service Unavailable")
BUSY_FOR_7 = answer(b"{}", b"503 Service Unavailable", more=b"retry-after: 7\r\n")
JUNK = b"NOT HTTP\r\n\r\n"
ERROR = chunk(b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "x", "code": 500}}\n\n')
EJECTED = EJECTION_SECONDS + JITTER_SECONDS
"""The longest that a first ejection lasts."""


async def ejected(found: Scene, sick: ScriptedPod, place: int, script: Sequence[Step] = (SIDECAR,)) -> None:
    """Let a pod play the script until it is ejected, and be well again then. Callers see nothing of it."""
    well, sick.scripts = sick.scripts, [script]
    for _ in range(50):
        if found.health(place).state == "ejected":
            break
        assert (await found.ask()).status == 200
    assert found.health(place).state == "ejected"
    sick.scripts = well


# What ejects.


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ((SIDECAR,), "sidecar"),
        ((Reset,), "reset"),
        ((JUNK, Close), "junk"),
        ((STREAM_HEAD, TOKEN, Close), "truncated"),
        ((STREAM_HEAD, TOKEN, ERROR, Close), "upstream_failed"),
    ],
    ids=["sidecar", "reset", "junk", "cut-streams", "error-events"],
)
async def test_three_failures_in_a_row_eject_a_pod(script: Sequence[Step], outcome: str) -> None:
    stream = STREAM_HEAD in script
    given = pods(3, STREAM if stream else GOOD)
    async with given[0], given[1], given[2], scene(given) as found:
        sick = given[1]
        sick.scripts = [script]
        for _ in range(12):
            await found.ask(stream=stream)
        assert found.sample("poolgate_attempts_total", pool="chat", outcome=outcome) == 3
        assert (found.health(1).state, found.ejections("consecutive"), found.all_ejections()) == ("ejected", 1, 1)
        assert found.sample("poolgate_pods", pool="chat", state="ejected") == 1
        assert found.sample("poolgate_pods", pool="chat", state="ready") == 2


async def test_a_pod_that_refuses_connections_is_ejected_and_no_caller_notices(side: Side) -> None:
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        given[0].die()
        assert {(await found.ask()).status for _ in range(12)} == {200}
        assert (found.health(0).state, found.ejections("consecutive")) == ("ejected", 1)
        assert found.sample("poolgate_retries_total", pool="chat", reason="connect") == 3


async def test_a_pod_that_never_answers_costs_its_caller_the_deadline_and_is_ejected(side: Side) -> None:
    given = [ScriptedPod([[Hang]]), ScriptedPod([[STREAM], [GOOD]])]
    async with given[0], given[1], scene(given, side=side) as found:
        for round_ in range(3):
            asking = [found.asking(stream=round_ == 0) for _ in range(2)]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            await found.until(lambda: len(given[0].requests) == 1 + round_)  # noqa: B023  # waited for here
            found.leap(700)
            late, well = sorted([await each for each in asking], key=lambda came: -came.status)
            assert well.status == 200
            assert (late.status, late.headers["x-should-retry"]) == (504, "false")
            assert late.error["code"] in ("upstream_ttft_timeout", "upstream_timeout")
        assert len(given[0].requests) == 3
        assert found.sample("poolgate_attempts_total", pool="chat", outcome="timeout") == 3
        assert found.health(0).state == "ejected"


async def test_half_a_status_line_and_then_nothing_ends_at_the_deadline(side: Side) -> None:
    given = pods(1, b"HTTP/1.1 20", Hang)
    async with given[0], scene(given, side=side) as found:
        asking = found.asking(stream=True)
        await found.arrival(given)
        found.leap(121)
        assert (await asking).error["code"] == "upstream_ttft_timeout"
        assert len(given[0].requests) == 1


async def test_a_redirect_is_not_followed_nor_a_second_pod_asked(side: Side) -> None:
    given, elsewhere = pods(2), ScriptedPod([[GOOD]])
    async with given[0], given[1], elsewhere, scene(given, side=side) as found:
        location = f"location: {elsewhere.url}/v1/chat/completions\r\n".encode()
        for pod in given:
            pod.scripts = [[answer(b"", b"307 Temporary Redirect", more=location)]]
        came = await found.ask()
        assert (came.status, came.error["code"]) == (502, "upstream_redirect")
        assert elsewhere.url.encode() not in came.body
        assert (elsewhere.connections, elsewhere.requests) == (0, [])
        assert sum(len(pod.requests) for pod in given) == 1


async def test_whenever_a_pod_closes_an_idle_connection_the_next_request_is_answered(side: Side) -> None:
    given = pods(1)
    async with given[0], scene(given, side=side) as found:
        for turns in range(60):
            asking = found.asking()
            # The request is somewhere between the client and the pod.
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            given[0].close_idle()
            assert (await asking).status == 200
        assert found.sample("poolgate_attempts_total", pool="chat", outcome="stale") > 0
        assert found.health(0).state == "healthy"
        assert found.quarantined() == 0


async def test_clients_that_leave_say_nothing_of_the_pod() -> None:
    given = pods(2, Hang)
    async with given[0], given[1], scene(given) as found:
        for _ in range(8):
            client = await found.begin()
            await found.arrival(given)
            client.leave()
        await found.running.settled()
        assert found.all_ejections() == 0


async def test_our_own_limit_on_a_stream_s_length_says_nothing_of_the_pod(side: Side) -> None:
    given = pods(2, STREAM_HEAD, TOKEN, Hang)
    async with given[0], given[1], scene(given, side=side, pool={"stream_seconds": 30}) as found:
        for _ in range(8):
            asking = found.asking(stream=True)
            await found.until(lambda: found.gateway.balancer.active == 1)
            found.leap(31)
            came = await asking
            assert (came.status, b"upstream_timeout" in came.body) == (200, True)
        assert found.all_ejections() == 0


# Whose fault is a 500?


async def test_one_caller_s_bad_requests_eject_no_pod(side: Side) -> None:
    def script_of(sent: bytes) -> Sequence[Step]:
        return (FAILED,) if b"BAD" in sent else (GOOD,)

    given = [ScriptedPod(script_of=script_of) for _ in range(3)]
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        for _ in range(20):
            bad = await found.ask(user="BAD")
            assert (bad.status, bad.error["code"]) == (500, "upstream_failed")
            assert (await found.ask(key=found.running.other_key)).status == 200
        assert sum(len(pod.requests) for pod in given) == 40
        assert found.all_ejections() == 0
        assert all(found.health(place).state == "healthy" for place in range(3))


@pytest.mark.parametrize("policy", ["auto", "least", "p2c"])
@pytest.mark.parametrize("warm", [True, False], ids=["later", "from-the-start"])
async def test_a_black_hole_behind_one_shared_key_is_found_soon_and_attracts_nothing(policy: str, warm: bool) -> None:
    given = pods(4, 0.02, GOOD)
    async with given[0], given[1], given[2], given[3], scene(given, policy=policy) as found:
        if warm:
            await asyncio.gather(*(found.ask() for _ in range(16)))
        hole, before = given[2], [len(pod.requests) for pod in given]
        hole.scripts = [[FAILED]]
        asked = 0

        async def caller() -> None:
            nonlocal asked
            while not found.all_ejections() and asked < 400:
                asked += 1
                await found.ask()
                # All eight together have so many answers in a tenth of a second.
                found.leap(0.1 / 8)

        await asyncio.gather(*(caller() for _ in range(8)))
        there = len(hole.requests) - before[2]
        assert found.ejections("consecutive") == 1
        assert found.sample("poolgate_pods", pool="chat", state="ejected") == 1
        # What the first ones of all are told weighs nothing: nobody knows yet whether the others answer.
        assert there <= (5 if warm else 5 + 8 / 4)
        assert there <= 2 * asked / 4
        # It is out: the others have it all.
        for _ in range(8):
            assert (await found.ask()).status == 200


async def test_a_pod_that_fails_two_callers_is_sick_though_no_other_pod_answers_them() -> None:
    """Sessions stay with their pod: of these two callers each asks one pod alone."""
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, policy="session") as found:

        async def session_of(key: str) -> dict[str, Any]:
            """One that is at home at the second pod."""
            before, number = len(given[1].requests), 0
            while len(given[1].requests) == before:
                number += 1
                await found.ask(key=key, headers={"X-Session-ID": str(number)})
            return {"key": key, "headers": {"X-Session-ID": str(number)}}

        sessions = [await session_of(key) for key in (found.running.key, found.running.other_key)]
        # What others said to these callers meanwhile is forgotten.
        found.leap(1.5 * EVIDENCE_SECONDS)
        given[1].scripts = [[FAILED]]
        before = len(given[1].requests)
        for session in sessions * 3:
            await found.ask(**session)
            # A failed request counts as in flight for a while, and a session whose pod is busy spills over.
            found.leap(1.5 * FAILED_SECONDS)
        assert (found.health(1).state, found.ejections("consecutive")) == ("ejected", 1)
        assert len(given[1].requests) - before == 4


# Busy is not sick.


async def test_a_busy_pod_rests_and_a_free_one_answers(side: Side) -> None:
    given = pods(2)
    async with given[0], given[1], scene(given, side=side) as found:
        given[1].scripts = [[BUSY_FOR_7], [GOOD]]
        assert {(await found.ask()).status for _ in range(8)} == {200}
        assert [len(pod.requests) for pod in given] == [8, 1]
        found.leap(4.9)
        assert (await found.ask()).status == 200
        assert len(given[1].requests) == 1
        found.leap(0.2)
        await found.until(lambda: found.seat(1).room > 0, 1.0)
        assert {(await found.ask()).status for _ in range(4)} == {200}
        assert len(given[1].requests) == 3
        assert found.all_ejections() == 0
        assert found.sample("poolgate_retries_total", pool="chat", reason="busy") == 1


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"429 Too Many Requests"])
async def test_when_all_pods_are_busy_it_is_said_with_when_to_come_again(side: Side, status: bytes) -> None:
    given = pods(3, answer(b"{}", status, more=b"retry-after: 7\r\n"))
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        came = await found.ask()
        assert (came.status, came.error["code"]) == (503, "overloaded")
        assert int(came.headers["retry-after"]) >= 7
        assert sum(len(pod.requests) for pod in given) == 2
        assert found.all_ejections() == 0


# The way back.


async def test_an_ejected_pod_comes_back_by_its_health_a_trial_and_a_growing_share() -> None:
    given = pods(2, Hang)
    settings = {"max_in_flight_per_pod": 10, "queue_wait_seconds": 300}
    async with given[0], given[1], scene(given, pool=settings) as found:
        given[0].scripts = [[GOOD]]
        await ejected(found, given[1], 1)
        given[0].scripts = [[Hang]]
        asked, sent = given[1].asked.count(b"/health"), len(given[1].requests)
        # Out: all go to the other one, and what finds no room there waits.
        for _ in range(14):
            await found.begin()
        await found.until(lambda: found.waiting == 4)
        answers = asyncio.Event()
        given[1].scripts = [*[[GOOD]] * sent, [answers, GOOD], [Hang]]
        found.leap(EJECTED)
        await found.until(lambda: given[1].asked.count(b"/health") == asked + 1)
        # On trial: one of them, and no more while that one runs.
        await found.until(lambda: found.waiting == 3)
        assert found.health(1).state == "probing"
        found.leap(2)
        await found.until(lambda: len(given[1].requests) == sent + 1)
        assert (found.waiting, found.seat(1).room) == (3, 0)
        # It answers: a tenth of its ten places, then four, then all.
        answers.set()
        await found.until(lambda: found.waiting == 2)
        assert (found.health(1).state, found.seat(1).room) == ("returning", 1)
        found.leap(RAMP_SECONDS / 3)
        await found.until(lambda: found.waiting == 0)
        assert (found.seat(1).in_flight, found.seat(1).room) == (3, 4)
        found.leap(RAMP_SECONDS)
        await found.until(lambda: found.seat(1).room == 10)
        assert found.health(1).state == "healthy"


async def test_a_pod_whose_health_is_bad_stays_out_and_one_that_fails_its_trial_goes_again() -> None:
    given = pods(2)
    async with given[0], given[1], scene(given) as found:
        await ejected(found, given[1], 1)
        given[1].health = b"503 Service Unavailable"
        found.leap(EJECTED)
        # Out for twice as long, once the question has its answer.
        await found.until(lambda: EJECTED < found.health(1).seconds_left < EJECTED + EJECTION_SECONDS)
        assert found.health(1).state == "ejected"
        given[1].health, given[1].scripts = b"200 OK", [[SIDECAR]]
        found.leap(2 * EJECTED)
        await found.until(lambda: found.health(1).state == "probing")
        assert (await found.ask()).status == 200
        assert (found.health(1).state, found.health(1).reason) == ("ejected", "probe")
        assert found.ejections("probe") == 1
        assert found.health(1).seconds_left > 2 * EJECTED


async def test_a_pod_that_comes_and_goes_is_out_ever_longer_and_no_caller_notices(side: Side) -> None:
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        out_for = []
        for _ in range(4):
            given[1].die()
            await ejected(found, given[1], 1)
            out_for.append(found.health(1).seconds_left)
            await given[1].start()
            found.leap(out_for[-1])
            await found.until(lambda: found.health(1).state == "probing")
            assert {(await found.ask()).status for _ in range(3)} == {200}
            assert found.health(1).state == "returning"
        assert all(later > sooner + EJECTION_SECONDS / 2 for sooner, later in pairwise(out_for))
        assert found.ejections("consecutive") == 4
        # And after clean minutes as if nothing had been.
        found.leap(5 * CLEAN_SECONDS)
        given[1].die()
        await ejected(found, given[1], 1)
        assert found.health(1).seconds_left < EJECTED


async def test_never_more_than_half_of_a_pool_is_out_and_never_the_only_pod() -> None:
    given = pods(4, SIDECAR)
    async with given[0], given[1], given[2], given[3], scene(given) as found:
        for _ in range(40):
            await found.ask()
        assert found.sample("poolgate_pods", pool="chat", state="ejected") == 2
    alone = pods(1, SIDECAR)
    async with alone[0], scene(alone) as found:
        for _ in range(10):
            assert (await found.ask()).error["code"] == "upstream_bad_response"
        assert len(alone[0].requests) == 10
        assert found.all_ejections() == 0


# Panic.


async def test_with_too_few_pods_left_an_ejected_one_is_used_and_that_ends_by_itself(side: Side) -> None:
    given = pods(3)
    debug = {"debug": True}
    async with given[0], given[1], given[2], scene(given, side=side, tenant=debug) as found:
        await ejected(found, given[0], 0)
        assert found.sample("poolgate_panic", pool="chat") == 0
        await found.becomes(1, PodState.STARTING)
        await found.until(lambda: found.sample("poolgate_panic", pool="chat") == 1)
        came = [await found.ask() for _ in range(8)]
        assert {each.status for each in came} == {200}
        decisions = {(each.headers["x-poolgate-pod"], each.headers["x-poolgate-decision"]) for each in came}
        assert decisions == {("chat-0", "panic"), ("chat-2", "round_robin")}
        await found.becomes(1, PodState.READY)
        await found.until(lambda: found.sample("poolgate_panic", pool="chat") == 0)
        went = {(await found.ask()).headers["x-poolgate-pod"] for _ in range(6)}
        assert went == {"chat-1", "chat-2"}


async def test_panic_never_reaches_for_a_pod_that_terminates() -> None:
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, tenant={"debug": True}) as found:
        await ejected(found, given[0], 0)
        await found.becomes(1, PodState.DRAINING)
        came = {(await found.ask()).headers["x-poolgate-pod"] for _ in range(6)}
        assert came == {"chat-2"}
        await found.becomes(2, PodState.DRAINING)
        came = {(await found.ask()).headers["x-poolgate-pod"] for _ in range(3)}
        assert came == {"chat-0"}


# Slow and cold.


@pytest.mark.parametrize("policy", ["auto", "least"])
async def test_a_slow_pod_gets_less_than_half_of_its_share_and_is_not_ejected(policy: str) -> None:
    due: list[tuple[float, int, asyncio.Event]] = []
    """When answers are due by the scene's clock, which of them came first, and what each waits for."""

    def taking(seconds: float) -> ScriptedPod:
        def script_of(sent: bytes) -> Sequence[Step]:
            over = asyncio.Event()
            heappush(due, (found.clock() + seconds, sum(len(pod.requests) for pod in given), over))
            return over, GOOD

        return ScriptedPod(script_of=script_of)

    given = [taking(0.2), taking(0.05), taking(0.05)]
    async with given[0], given[1], given[2], scene(given, policy=policy) as found:
        requests = iter(range(120))

        async def caller() -> None:
            for _ in requests:
                assert (await found.ask()).status == 200

        callers = asyncio.gather(*(caller() for _ in range(6)))
        for answered in range(120):
            # However long this machine takes until all six wait for a pod.
            await found.until(lambda: len(due) == min(6, 120 - answered))  # noqa: B023  # waited for here
            at, _, over = heappop(due)
            found.leap(at - found.clock())
            over.set()
        await callers
        assert len(given[0].requests) <= 120 / 3 / 2
        assert found.all_ejections() == 0


async def test_a_new_pod_is_not_given_all_that_waits() -> None:
    given = pods(3, Hang)
    settings = {"max_in_flight_per_pod": 10, "queue_wait_seconds": 300}
    async with given[0], given[1], given[2], scene(given, pool=settings) as found:
        known = found.gateway.source.seen().pods
        await found.exist(known[:2])
        found.leap(RAMP_SECONDS)
        for _ in range(32):
            await found.begin()
        await found.until(lambda: found.waiting == 12)
        await found.exist(known)
        await found.until(lambda: found.waiting == 11)
        found.leap(RAMP_SECONDS / 2)
        await found.until(lambda: found.waiting == 7)
        assert found.health(2).weight == pytest.approx(0.55, abs=0.05)
        found.leap(RAMP_SECONDS / 2)
        await found.until(lambda: found.waiting == 2)
        assert [found.seat(place).in_flight for place in range(3)] == [10, 10, 10]


async def test_nobody_waits_for_a_pod_that_is_ejected_when_all_others_refuse(side: Side) -> None:
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        await ejected(found, given[1], 1)
        for place in (0, 2):
            given[place].refuse()
        found.gateway.pools.close()
        for stream in (False, True):
            came = await found.ask(stream=stream)
            assert (came.status, came.error["code"]) == (503, "no_ready_pod")
            line = await found.running.last_line()
            assert (line["attempts"], line["queue_ms"]) == (2, 0.0)
            assert found.health(1).state == "ejected"


async def test_a_model_whose_only_pod_is_ejected_waits_for_it_if_it_comes_back_in_time(side: Side) -> None:
    """The others of its pool, which have other models, keep that from being panic."""
    given = pods(3)
    given[1].models = MODELS.replace(b'"m"', b'"solo"')
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        given[1].scripts = [[SIDECAR]]
        while found.health(1).state != "ejected":
            assert (await found.ask(model="solo")).status == 502
        given[1].scripts = [[GOOD]]
        came = await found.ask(model="solo")
        assert (came.status, came.error["code"]) == (503, "no_ready_pod")
        assert (await found.running.last_line())["queue_ms"] == 0.0
        found.leap(EJECTED - 5)
        asking = found.asking(model="solo")
        await found.until(lambda: found.waiting == 1)
        assert await found.ask_briefly(asking) is None
        found.leap(5)
        assert (await asking).status == 200
