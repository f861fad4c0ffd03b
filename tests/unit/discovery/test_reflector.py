"""List, watch, list again: each way in which a watch can end, and what follows. Sockets: tests/integration."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from gateway.discovery.reflector import MAX_LINE_BYTES, ApiFailed, Pace, Reflector
from tests.turns import within

PACE = Pace(relist=1000.0, first_pause=0.002, longest_pause=0.02, healthy=0.2)
UNREACHABLE = ApiFailed(0, "the API server cannot be reached")


class Ends:
    """Watch script: a clean end."""


class Hangs:
    """Script: nothing more, until the reflector leaves."""


Step = bytes | ApiFailed | type[Ends] | type[Hangs]
Steps = list[Step]


def told(name: str, uid: str = "", version: int = 0, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}, **more}


def page(*names: str, version: int = 100, token: str = "") -> bytes:
    metadata = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    return json.dumps({"kind": "PodList", "metadata": metadata, "items": [told(name) for name in names]}).encode()


def event(kind: str, name: str, version: int, uid: str = "") -> bytes:
    return json.dumps({"type": kind, "object": told(name, uid, version)}).encode() + b"\n"


def error(code: int, seconds: int | None = None) -> bytes:
    details = {} if seconds is None else {"details": {"retryAfterSeconds": seconds}}
    return json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": code, **details}}).encode() + b"\n"


class Scripted:
    """An API that plays a script: a step for each page of a list, steps for each watch; at their ends it hangs."""

    def __init__(self, lists: Sequence[Step], watches: Sequence[Sequence[Step]] = ()) -> None:
        self._lists = list(lists)
        self._watches = [list(steps) for steps in watches]
        self.asked: list[str] = []
        """`list TOKEN` and `watch VERSION`, as they came."""
        self.asked_at: list[float] = []

    async def list_page(self, token: str) -> bytes:
        self._note(f"list {token}".strip())
        step = self._lists.pop(0) if self._lists else Hangs
        if isinstance(step, ApiFailed):
            raise step
        if isinstance(step, bytes):
            return step
        await asyncio.Event().wait()
        raise AssertionError

    @asynccontextmanager
    async def watch(self, version: str, seconds: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self._note(f"watch {version}")
        steps = self._watches.pop(0) if self._watches else []
        if steps and isinstance(steps[0], ApiFailed):
            raise steps[0]
        yield self._played(steps)

    async def _played(self, steps: list[Step]) -> AsyncIterator[bytes]:
        for step in steps:
            if isinstance(step, bytes):
                yield step
            elif isinstance(step, ApiFailed):
                raise step
            elif step is Ends:
                return
        await asyncio.Event().wait()

    def _note(self, asked: str) -> None:
        self.asked.append(asked)
        self.asked_at.append(time.monotonic())


def _name_of(pod: Mapping[str, Any]) -> str:
    name: str = pod["metadata"]["name"]
    return name


class Following:
    """A reflector that runs before an API."""

    def __init__(self, api: Scripted, pace: Pace) -> None:
        self.api = api
        self.relists: Counter[str] = Counter()
        self.sets: list[set[str]] = []
        """What was held after each change."""
        self._happened = asyncio.Event()
        self.reflector = Reflector(
            "pods", api, _name_of, self._changed, self._relisted, time.monotonic, lambda: 0.5, pace
        )

    def _changed(self) -> None:
        self.sets.append(self.held)
        self._happened.set()

    def _relisted(self, reason: str) -> None:
        self.relists[reason] += 1

    @property
    def held(self) -> set[str]:
        return set(self.reflector.held())

    async def until(self, holds: Callable[[], bool]) -> None:
        async with within(2):
            while not holds():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def following(
    lists: Sequence[Step], watches: Sequence[Sequence[Step]] = (), pace: Pace = PACE
) -> AsyncIterator[Following]:
    at = Following(Scripted(lists, watches), pace)
    task = asyncio.create_task(at.reflector.run())
    try:
        yield at
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_list_in_pages_then_a_watch_from_its_version() -> None:
    async with following([page("a", token="t"), page("b", version=100)], [[event("ADDED", "c", 101)]]) as at:
        await at.until(lambda: at.held == {"a", "b", "c"})
        assert at.api.asked == ["list", "list t", "watch 100"]
        assert at.relists == {"start": 1}
        assert at.reflector.listed
        assert at.reflector.stale_seconds() == 0.0
        assert at.sets[0] == {"a", "b"}


async def test_events_are_applied_and_bookmarks_move_the_version_only() -> None:
    events: Steps = [event("MODIFIED", "a", 101), event("DELETED", "b", 105), event("BOOKMARK", "", 140), Ends]
    async with following([page("a", "b")], [events, [Hangs]]) as at:
        await at.until(lambda: "watch 140" in at.api.asked)
        assert at.held == {"a"}
        assert at.api.asked == ["list", "watch 100", "watch 140"]


async def test_lines_may_come_in_any_pieces() -> None:
    data = event("ADDED", "b", 101) + event("ADDED", "c" * 300_000, 102) + event("DELETED", "a", 103)
    for size in (1000, 4096, 250_000, len(data)):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        async with following([page("a")], [pieces]) as at:
            await at.until(lambda: at.held == {"b", "c" * 300_000})


async def test_a_pod_that_was_replaced_under_its_name_is_not_taken_away_by_the_old_ones_end() -> None:
    events: Steps = [event("ADDED", "a", 101, "new"), event("DELETED", "a", 102, "uid-a"), event("BOOKMARK", "", 103)]
    events.append(Ends)
    async with following([page("a")], [events]) as at:
        await at.until(lambda: "watch 103" in at.api.asked)
        assert at.held == {"a"}
        assert at.relists == {"start": 1}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([error(410)], "expired"),
        ([ApiFailed(410, "gone")], "expired"),
        ([error(500)], "refused"),
        ([error(429, seconds=0)], "refused"),
        ([ApiFailed(403, "forbidden")], "refused"),
        ([UNREACHABLE], "disconnected"),
        ([event("ADDED", "x", 101), UNREACHABLE], "disconnected"),
        ([b'{"type": "ADDED", "object"', Ends], "garbage"),
        ([b"{}\n"], "garbage"),
        ([b"\n"], "garbage"),
        ([b"\xff\xfe\n"], "garbage"),
        ([b'{"type": "ADDED", "object": 7}\n'], "garbage"),
        ([b'{"type": "ADDED", "object": {"metadata": {}}}\n'], "garbage"),
        ([b"[" * 100_000 + b"\n"], "garbage"),
        ([b"x" * (MAX_LINE_BYTES + 1)], "garbage"),
        ([event("ADDED", "x", 99)], "backwards"),
    ],
)
async def test_every_end_but_a_clean_one_is_followed_by_a_full_list(steps: list[Step], reason: str) -> None:
    async with following([page("a", "b"), page("b", "c", version=200)], [steps, [Hangs]]) as at:
        await at.until(lambda: at.held == {"b", "c"})
        assert at.relists == {"start": 1, reason: 1}
        await at.until(lambda: at.api.asked[-1] == "watch 200")
        # From the old set to the new one in one step, never over an empty one.
        assert all({"b"} <= held for held in at.sets)


async def test_unknown_events_are_passed_over() -> None:
    strange = json.dumps({"type": "PAINTED", "object": told("x", version=101)}).encode() + b"\n"
    async with following([page("a")], [[strange, event("ADDED", "b", 102)]]) as at:
        await at.until(lambda: at.held == {"a", "b"})
        assert at.relists == {"start": 1}


async def test_a_failed_list_changes_nothing_and_a_successful_empty_one_is_the_truth() -> None:
    junk = [b"junk", b"[]", b"{}", b'{"metadata": 7, "items": 7}', b'{"metadata": {"resourceVersion": 7}}']
    lists: Steps = [page("a"), UNREACHABLE, ApiFailed(500, "no"), *junk, page(version=300)]
    async with following(lists, [[UNREACHABLE]] * 20) as at:
        await at.until(lambda: at.reflector.listed and at.held == set())
        assert at.sets == [{"a"}, set()]
        assert at.relists == {"start": 1, "disconnected": 1}


async def test_an_empty_list_may_be_null() -> None:
    nothing = b'{"metadata": {"resourceVersion": "5"}, "items": null}'
    async with following([page("a"), nothing], [[error(410)]]) as at:
        await at.until(lambda: at.sets == [{"a"}, set()])


async def test_an_expired_page_begins_the_list_anew() -> None:
    async with following([page("a", token="t"), ApiFailed(410, "expired"), page("b")]) as at:
        await at.until(lambda: at.held == {"b"})
        assert at.api.asked[:3] == ["list", "list t", "list"]


async def test_silence_ends_in_a_list_and_what_is_held_grows_stale() -> None:
    pace = Pace(silence=0.1, quiet=0.03, first_pause=0.002, longest_pause=0.01)
    async with following([page("a"), UNREACHABLE, page("b")], [[Hangs], [UNREACHABLE]], pace) as at:
        await at.until(lambda: at.reflector.stale_seconds() > 0.03)
        assert at.held == {"a"}
        await at.until(lambda: at.held == {"b"})
        assert at.relists == {"start": 1, "silence": 1}
        assert at.reflector.stale_seconds() < 0.03


async def test_a_list_is_made_from_time_to_time_whatever_happens() -> None:
    async with following([page("a"), page("b"), page("c")], pace=Pace(relist=0.05)) as at:
        await at.until(lambda: at.held == {"c"})
        assert at.relists == {"start": 1, "periodic": 2}


async def test_while_lists_fail_the_watch_goes_on() -> None:
    pace = Pace(relist=0.05, first_pause=0.05, longest_pause=0.05)
    lists: Steps = [page("a"), *[ApiFailed(500, "overloaded")] * 100]
    watches: list[Steps] = [[Hangs], [event("ADDED", "b", 101)], [event("DELETED", "a", 102)]]
    async with following(lists, watches, pace) as at:
        await at.until(lambda: at.held == {"b"})
        assert at.relists == {"start": 1}


async def test_a_server_that_answers_410_to_every_watch_is_not_asked_in_a_tight_loop() -> None:
    pace = Pace(first_pause=0.01, longest_pause=0.04)
    async with following([page("a")] * 1000, [[error(410)]] * 1000, pace) as at:
        await at.until(lambda: at.relists["expired"] == 6)
        lists = [when for when, what in zip(at.api.asked_at, at.api.asked, strict=True) if what == "list"]
        pauses = [later - sooner for sooner, later in pairwise(lists)]
        # chance() is 0.5 here: three quarters of 10, 20, 40, 40, ... ms.
        assert all(pause >= least for pause, least in zip(pauses, (0.0075, 0.015, 0.03, 0.03, 0.03), strict=False))


async def test_a_watch_that_lived_long_enough_ends_a_row_of_failures() -> None:
    pace = Pace(first_pause=0.01, longest_pause=10.0, healthy=0.0)
    async with following([page("a")] * 30, [[UNREACHABLE]] * 100, pace) as at:
        # With pauses that grow this would take minutes.
        await at.until(lambda: at.relists["disconnected"] == 29)


async def test_retry_after_is_kept_and_bounded() -> None:
    pace = Pace(first_pause=0.001, longest_pause=0.002, longest_retry_after=0.1)
    refusal = ApiFailed(429, "too many", retry_after_seconds=3600.0)
    async with following([page("a"), refusal, page("b")], [[error(410)]], pace) as at:
        await at.until(lambda: at.held == {"b"})
        lists = [when for when, what in zip(at.api.asked_at, at.api.asked, strict=True) if what == "list"]
        assert lists[2] - lists[1] >= 0.1
        # Nothing at all was asked meanwhile: neither a list nor a watch.
        assert at.api.asked == ["list", "watch 100", "list", "list", "watch 100"]


async def test_a_clean_end_is_taken_up_where_it_ended_without_a_list() -> None:
    watches: list[Steps] = [[event("ADDED", "b", 101), Ends], [event("ADDED", "c", 102), Ends], [Hangs]]
    async with following([page("a")], watches) as at:
        await at.until(lambda: "watch 102" in at.api.asked)
        assert at.held == {"a", "b", "c"}
        assert at.relists == {"start": 1}


async def test_trouble_is_told_when_it_begins_and_when_it_ends_not_with_each_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "poolgate.discovery")
    forbidden = ApiFailed(403, "we may not list pods in the namespace vllm (403)")
    # The watch comes up each time, and says 410 at once: that is not well, and not told again and again either.
    lists: Steps = [*[UNREACHABLE] * 5, *[forbidden] * 5, *[page("a")] * 5]
    expired: Steps = [error(410)]
    watches: list[Steps] = [expired, expired, expired, expired, [event("ADDED", "b", 101)]]
    async with following(lists, watches) as at:
        await at.until(lambda: at.held == {"a", "b"})
        await at.until(lambda: "again" in caplog.messages[-1])
    assert caplog.messages == [
        "pods: the API server cannot be reached; no pod is known yet",
        "pods: we may not list pods in the namespace vllm (403); no pod is known yet",
        "pods: the watch was ended with 410; the last 1 pods known stay in force",
        "pods: listed, and watched again",
    ]


async def test_before_the_first_list_it_is_stale_since_the_start() -> None:
    async with following([Hangs]) as at:
        await at.until(lambda: at.reflector.stale_seconds() > 0.005)
        assert not at.reflector.listed
