"""A schedule is played as it was planned, whatever the server does, and the generator owns up to its own lateness."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from loadtest.load.client import BadUrl, Bounds
from loadtest.load.player import Own, Player, UnknownCaller, play
from loadtest.load.progress import Standing
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Schedule
from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, Step, answer, chunk
from tests.running import captured, captured_events
from tests.unit.loadtest.load.planning import closed_loop, evenly, open_loop, planned, refusing

KEYS = {"caller": "sk-test"}
BOUNDS = Bounds(patience_seconds=10.0)
BODY = captured("10-chat.http")[1].partition(b"\r\n\r\n")[2]
WHOLE: list[Step] = [answer(BODY)]
STREAM: list[Step] = [STREAM_HEAD, *map(chunk, captured_events("12-chat-stream-usage.http")), b"0\r\n\r\n"]
STANDS_STILL_AT_NUMBER, STANDS_STILL_SECONDS = 20, 0.6


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def waited(record: Record) -> float:
    assert record.ended_at is not None
    return record.ended_at - record.intended_at


# --- the intended second ------------------------------------------------------------------------------------


class StoodStill(NamedTuple):
    records: list[Record]
    until: float
    """When the server went on, in the records' seconds."""

    @property
    def kept(self) -> list[Record]:
        """Who was due before the server went on, and answered after."""
        return [record for record in self.records if record.intended_at < self.until <= (record.ended_at or 0.0)]


async def on_who_stands_still(schedule: Schedule) -> StoodStill:
    """What comes of a load on a server that answers at once, but for the time in which it stands still.

    From its 20th request on, not from a second on: what a test's process does before it asks takes its time.
    """
    going = asyncio.Event()
    going.set()
    went_on: list[float] = []
    zero = time.monotonic() + 0.05

    def go_on() -> None:
        went_on.append(time.monotonic() - zero)
        going.set()

    def answers(_request: object) -> list[Step]:
        if len(pod.requests) == STANDS_STILL_AT_NUMBER:
            going.clear()
            asyncio.get_running_loop().call_later(STANDS_STILL_SECONDS, go_on)
        return [going, *WHOLE]

    async with ScriptedPod() as pod:
        pod.script_of = answers
        records = await play(schedule, pod.url, KEYS, zero=zero)
    assert {record.ending for record in records} == {Ending.WHOLE}
    return StoodStill(records, *went_on)


async def test_a_server_that_stood_still_is_slow_to_all_who_came_meanwhile_not_only_to_the_one_it_kept() -> None:
    """Coordinated omission: a closed loop waits along with the server, and so sees one slow answer of very many."""
    opened = await on_who_stands_still(evenly(120, 1.2))
    closed = await on_who_stands_still(closed_loop(1, 500))
    assert (len(opened.records), len(closed.records)) == (120, 500)
    # The 20th was due at 0.19 s, 60 more while the server stood still: it cannot have answered any of them meanwhile.
    late = [record for record in opened.kept if waited(record) > 0.1]
    assert len(late) >= 40
    assert all(record.intended_at == record.planned.at for record in opened.records)
    assert len(closed.kept) == 1


async def test_a_server_that_never_answers_slows_the_schedule_by_nothing() -> None:
    """It answers nobody before all have come: who waited for an answer would wait for ever."""
    going = asyncio.Event()
    async with ScriptedPod([[going, *WHOLE]]) as pod:
        playing = asyncio.create_task(play(evenly(100, 0.5), pod.url, KEYS))
        await until(lambda: len(pod.requests) == 100)
        going.set()
        records = await playing
    assert {record.ending for record in records} == {Ending.WHOLE}
    assert [record.intended_at for record in records] == [record.planned.at for record in records]
    assert all(record.sent_at >= record.intended_at for record in records)


async def test_a_generator_that_was_late_says_so_and_does_not_call_it_the_server_s_speed() -> None:
    def dawdle(record: Record) -> None:
        if record.planned.number == 0:
            assert record.ended_at is not None
            time.sleep(max(0.0, 1.7 - record.ended_at))

    own = Own()
    # When all the others are due the generator is not there; the first one's answer has a second to come before them.
    requests = [planned(0, 0.0), *(planned(n, 1.0 + n * 0.005) for n in range(1, 100))]
    async with ScriptedPod([WHOLE]) as pod:
        records = await play(open_loop(requests), pod.url, KEYS, on_record=dawdle, own=own)
    assert [record.intended_at for record in records] == [record.planned.at for record in records]
    assert sum(record.own_lateness > 0.2 for record in records) >= 20
    assert all(waited(record) >= record.own_lateness for record in records)
    assert own.late_max == max(record.own_lateness for record in records)
    assert own.late_p99 > 0.2
    assert not own.kept_up


async def test_a_slow_connection_is_the_server_s_lateness_not_ours() -> None:
    """Seconds until the bytes went out count in the latency, and not among our own."""
    async with ScriptedPod([WHOLE]) as pod:
        (record,) = await play(evenly(1, 0.01), pod.url, KEYS)
    assert record.taken_at is not None
    assert record.intended_at <= record.taken_at < record.sent_at
    assert record.own_lateness == record.taken_at - record.intended_at


async def test_the_own_figures_count_what_was_played() -> None:
    own = Own()
    async with ScriptedPod([STREAM]) as pod:
        await play(evenly(20, 0.4, stream=True), pod.url, KEYS, own=own)
    assert (own.requests, own.events) == (20, 20 * 24)
    assert 1 <= own.connections <= 20
    assert 20 <= own.reads <= 20 * 30
    assert 0 < own.cpu_seconds < own.seconds
    assert own.us_per_request == pytest.approx(own.cpu_seconds * 1e6 / 20)
    assert own.us_per_event == pytest.approx(own.cpu_seconds * 1e6 / 480)
    assert own.busy == pytest.approx(own.cpu_seconds / own.seconds)
    assert 0 <= own.late_p50 <= own.late_p99 <= own.late_max


@pytest.mark.parametrize(
    ("own", "kept_up"),
    [
        (Own(cpu_seconds=0.5, seconds=1.0, late_p99=0.001), True),
        (Own(cpu_seconds=0.9, seconds=1.0, late_p99=0.001), False),
        (Own(cpu_seconds=0.5, seconds=1.0, late_p99=0.02), False),
    ],
)
def test_a_generator_that_was_busy_or_late_did_not_keep_up(own: Own, kept_up: bool) -> None:
    assert own.kept_up is kept_up


def test_the_own_figures_are_told_in_one_line_and_a_generator_that_fell_behind_is_not_to_be_overlooked() -> None:
    own = Own(cpu_seconds=0.5, seconds=1.0, requests=1000, events=20_000, late_p50=4e-5, late_p99=1e-3, late_max=0.004)
    assert str(own) == (
        "the generator took 50% of a core, 500 us per request, 25 us per event; "
        "late p50 0.04 p99 1.00 max 4.00 ms; it kept up"
    )
    own.late_p99 = 0.2
    assert "DID NOT KEEP UP" in str(own)
    own.events = 0
    assert "event" not in str(own)


def test_the_figures_of_nothing_are_nothing() -> None:
    assert (Own().busy, Own().us_per_request, Own().us_per_event) == (0.0, 0.0, 0.0)


async def test_second_0_is_where_the_caller_puts_it() -> None:
    async with ScriptedPod([WHOLE]) as pod:
        zero = time.monotonic() + 0.5
        (record,) = await play(evenly(1, 0.1), pod.url, KEYS, zero=zero)
        assert 0 <= record.sent_at <= time.monotonic() - zero
        (record,) = await play(evenly(1, 0.1), pod.url, KEYS, zero=time.monotonic() - 2.0)
        assert record.intended_at == 0.0
        assert record.own_lateness >= 2.0


async def test_records_stand_in_the_order_of_sending_whichever_ended_first() -> None:
    ended: list[int] = []
    others_ended = asyncio.Event()

    def note(record: Record) -> None:
        ended.append(record.planned.number)
        if len(ended) == 4:
            others_ended.set()

    requests = [planned(n, n * 0.02, key="first" if n == 0 else "caller") for n in range(5)]
    async with ScriptedPod() as pod:
        pod.script_of = lambda request: [others_ended, *WHOLE] if b"sk-first" in request else WHOLE
        records = await play(open_loop(requests), pod.url, {**KEYS, "first": "sk-first"}, on_record=note)
    assert [record.planned.number for record in records] == [0, 1, 2, 3, 4]
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert ended[-1] == 0


async def test_requests_of_one_moment_are_sent_at_once() -> None:
    """None of them waits for another's answer: there is none before all have come."""
    all_came = asyncio.Event()

    def answers(_request: object) -> list[Step]:
        if len(pod.requests) == 20:
            all_came.set()
        return [all_came, *WHOLE]

    async with ScriptedPod() as pod:
        pod.script_of = answers
        async with asyncio.timeout(60):
            records = await play(open_loop([planned(n, 0.05) for n in range(20)]), pod.url, KEYS)
    assert max(record.sent_at for record in records) < min(record.first_at or 0 for record in records)


async def test_an_empty_schedule_is_over_at_once() -> None:
    assert await play(open_loop([]), "http://127.0.0.1:9", KEYS) == []
    assert await play(closed_loop(3, 0), "http://127.0.0.1:9", KEYS) == []


# --- closed loop --------------------------------------------------------------------------------------------


async def test_workers_ask_one_after_the_other_and_never_more_at_once_than_there_are() -> None:
    three_came = asyncio.Event()

    def answers(_request: object) -> list[Step]:
        if len(pod.requests) == 3:
            three_came.set()
        return [three_came, 0.01, *WHOLE]

    async with ScriptedPod() as pod:
        pod.script_of = answers
        async with asyncio.timeout(60):
            records = await play(closed_loop(3, 30), pod.url, KEYS)
    assert [record.planned.number for record in records] == list(range(30))
    assert {record.ending for record in records} == {Ending.WHOLE}
    assert set(_open_at_once(records)) == {1, 2, 3}
    assert all(record.own_lateness == 0.0 for record in records)


def _open_at_once(records: list[Record]) -> Iterator[int]:
    changes = [(record.sent_at, 1) for record in records] + [(record.ended_at or 0.0, -1) for record in records]
    now_open = 0
    for _at, change in sorted(changes):
        now_open += change
        if change > 0:
            yield now_open


async def test_a_closed_loop_sends_nothing_after_its_time_and_hears_the_last_answers_out() -> None:
    async with ScriptedPod([[0.3, *WHOLE]]) as pod:
        records = await play(closed_loop(2, 10_000, seconds=2.0), pod.url, KEYS)
    assert 2 <= len(records) <= 14
    assert {record.ending for record in records} == {Ending.WHOLE}
    assert max(record.intended_at for record in records) < 2.0


async def test_a_worker_without_a_connection_pauses_instead_of_spinning_through_the_schedule() -> None:
    with refusing() as url:
        records = await play(closed_loop(2, 10_000, seconds=1.95), url, KEYS)
    assert {record.code for record in records} == {"ECONNREFUSED"}
    assert 2 <= len(records) <= 40


async def test_a_closed_loop_begins_at_second_0() -> None:
    async with ScriptedPod([WHOLE]) as pod:
        records = await play(closed_loop(1, 1), pod.url, KEYS, zero=time.monotonic() + 0.5)
    assert records[0].sent_at >= -0.002  # the loop's timers are whole milliseconds


# --- many servers -------------------------------------------------------------------------------------------


async def test_requests_are_dealt_to_the_servers_in_turn() -> None:
    async with ScriptedPod([WHOLE]) as one, ScriptedPod([WHOLE]) as other:
        await play(evenly(10, 0.1), [one.url, other.url], KEYS)
        assert (len(one.requests), len(other.requests)) == (5, 5)


async def test_a_server_that_takes_another_s_place_gets_its_requests() -> None:
    async with ScriptedPod([WHOLE]) as old, ScriptedPod([WHOLE]) as new:
        urls = [old.url]

        def replace_at_4(record: Record) -> None:
            if record.planned.number == 4:
                urls[0] = new.url

        # One at a time: the fifth answer is heard before the sixth request is sent.
        await play(closed_loop(1, 10), urls, KEYS, on_record=replace_at_4)
        assert (len(old.requests), len(new.requests)) == (5, 5)


async def test_a_replacement_that_is_no_url_ends_the_play_with_that() -> None:
    async with ScriptedPod([WHOLE]) as pod:
        urls = [pod.url]
        with pytest.raises(BadUrl):
            await play(closed_loop(1, 10), urls, KEYS, on_record=lambda _record: urls.__setitem__(0, "nowhere"))


async def test_each_caller_s_key_is_sent_with_their_requests() -> None:
    requests = [planned(n, None, key=name) for n, name in enumerate(["greedy", "modest", "nobody"])]
    one_at_a_time = replace(closed_loop(1, 0), requests=requests)
    async with ScriptedPod([WHOLE]) as pod:
        await play(one_at_a_time, pod.url, {"greedy": "sk-g", "modest": "sk-m", "nobody": ""})
        keys = [request.partition(b"Bearer ")[2].partition(b"\r\n")[0] for request in pod.requests]
    assert keys == [b"sk-g", b"sk-m", b""]


# --- what cannot be played ----------------------------------------------------------------------------------


async def test_a_caller_without_a_key_is_named_before_anything_is_sent() -> None:
    async with ScriptedPod([WHOLE]) as pod:
        with pytest.raises(UnknownCaller, match="caller"):
            await play(evenly(3, 0.1), pod.url, {"other": "sk"})
        assert pod.requests == []


async def test_a_request_without_a_time_needs_workers() -> None:
    with pytest.raises(ValueError, match="workers"):
        await play(open_loop([planned(0, None)]), "http://127.0.0.1:9", KEYS)


async def test_a_bad_url_is_told_before_anything_is_sent() -> None:
    with pytest.raises(BadUrl):
        await play(evenly(1, 0.1), "127.0.0.1:9", KEYS)


# --- the end ------------------------------------------------------------------------------------------------


async def test_what_the_listener_raises_ends_the_play_and_closes_every_connection() -> None:
    async with ScriptedPod([WHOLE, [Hang]]) as pod:
        with pytest.raises(ZeroDivisionError):
            await play(evenly(10, 0.2), pod.url, KEYS, on_record=lambda _record: 1 / 0)  # type: ignore[arg-type]
        await until(lambda: pod.connections == 0)


async def test_a_cancelled_play_closes_every_connection_before_it_lets_go() -> None:
    for schedule in (evenly(50, 0.1), closed_loop(10, 1000)):
        ended: list[Record] = []
        async with ScriptedPod([[Hang]]) as pod:
            playing = asyncio.create_task(play(schedule, pod.url, KEYS, on_record=ended.append))
            await until(lambda pod=pod: len(pod.requests) >= 10)  # type: ignore[misc]
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
            sent = [record for record in ended if record.ending is Ending.TIMEOUT]
            await until(lambda pod=pod: pod.connections == 0)  # type: ignore[misc]
            # What was sent last the server may have read after the play had let go.
            assert 10 <= len(pod.requests) <= len(sent) <= len(ended) <= 50


async def test_a_play_may_be_cancelled_at_any_moment_of_a_connection_s_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then waits for no farewell that cannot come."""
    monkeypatch.setattr("loadtest.load.client._FAREWELL_SECONDS", 3600.0)
    async with ScriptedPod([[Hang]]) as pod:
        for moment in range(12):
            requests = [planned(number, 0.0) for number in range(5)]
            playing = asyncio.create_task(play(open_loop(requests), pod.url, KEYS, zero=time.monotonic()))
            for _ in range(moment):
                await asyncio.sleep(0)
            playing.cancel()
            ended, _ = await asyncio.wait({playing}, timeout=60)
            assert ended
            assert playing.cancelled()
        await until(lambda: pod.connections == 0)


async def test_a_play_that_is_stopped_sends_nothing_more_and_hears_out_what_is_open() -> None:
    async with ScriptedPod([[0.2, *WHOLE]]) as pod:
        player = Player(evenly(10_000, 200.0), pod.url, KEYS)
        zero = time.monotonic()
        playing = asyncio.create_task(player.play(zero))
        await until(lambda: len(pod.requests) >= 3)
        player.stop()
        stopped_at = time.monotonic() - zero
        records = await asyncio.wait_for(playing, 60)
        assert {record.ending for record in records} == {Ending.WHOLE}
        assert 3 <= len(records) == len(pod.requests)
        assert all(record.taken_at is not None and record.taken_at <= stopped_at for record in records)


async def test_the_collector_is_as_it_was_when_the_play_is_over() -> None:
    usual = gc.get_threshold()
    during: list[tuple[int, int, int]] = []
    async with ScriptedPod([WHOLE]) as pod:
        await play(evenly(1, 0.1), pod.url, KEYS, on_record=lambda _record: during.append(gc.get_threshold()))
    assert gc.get_threshold() == usual
    assert during[0] != usual


async def test_plays_side_by_side_leave_the_collector_as_the_first_found_it() -> None:
    usual = gc.get_threshold()
    async with ScriptedPod([WHOLE]) as pod:
        first = asyncio.create_task(play(evenly(1, 0.1), pod.url, KEYS))
        await asyncio.sleep(0)
        await asyncio.gather(first, play(evenly(5, 0.5), pod.url, KEYS))
    assert gc.get_threshold() == usual


# --- progress -----------------------------------------------------------------------------------------------


class Noted:
    """Progress that keeps what it was shown."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []
        self.twice_while_open = asyncio.Event()

    def show(self, standing: Standing) -> None:
        self.standings.append(standing)
        if standing.open and len(self.standings) > 1:
            self.twice_while_open.set()


async def test_progress_is_shown_while_it_plays_and_once_at_the_end() -> None:
    noted = Noted()
    async with ScriptedPod([[noted.twice_while_open, *STREAM]]) as pod, asyncio.timeout(60):
        await play(evenly(20, 0.8, stream=True), pod.url, KEYS, progress=noted)
    assert len(noted.standings) >= 3
    assert [standing.sent for standing in noted.standings] == sorted(standing.sent for standing in noted.standings)
    assert any(standing.open for standing in noted.standings[:-1])
    last = noted.standings[-1]
    assert (last.sent, last.open, last.tokens, last.seconds) == (20, 0, 480, 0.8)
    assert last.endings == {Ending.WHOLE: 20}


async def test_progress_that_cannot_be_shown_ends_the_play_with_its_error() -> None:
    class Broken:
        def show(self, standing: Standing) -> None:
            raise BrokenPipeError

    async with ScriptedPod([[Hang]]) as pod:
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(play(evenly(5, 0.1), pod.url, KEYS, progress=Broken()), 60)
