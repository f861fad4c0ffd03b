"""Whatever the API server does, the pods known stay in force until it says otherwise, and then they are right."""

import asyncio
import json
import logging
from collections.abc import Callable
from itertools import pairwise
from math import log2
from typing import Any

import pytest

from gateway.discovery.pods import POOL_LABEL
from gateway.discovery.reflector import Pace
from tests.apiserver import statuses
from tests.apiserver.http import Answer, Delivery
from tests.apiserver.log import at_version
from tests.apiserver.server import ApiServer, CutBody, Hang
from tests.apiserver.statuses import failed_watch
from tests.apiserver.watching import bookmark, event
from tests.discovering import SOON, Followed, appear, asked, eventually, followed, watched
from tests.turns import within


def tell(server: ApiServer, kind: str, name: str, version: int, namespace: str = "models") -> bytes:
    """An event line of no server's making."""
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return event(kind, {"metadata": metadata | {"labels": {POOL_LABEL: "chat"}}})


async def hears(server: ApiServer, seen: Followed, name: str = "marker") -> None:
    """Whatever was before, the source hears of a new pod."""
    appear(server, name)
    await seen.until(lambda: seen.states.get(name) == "ready")


async def lasts(seconds: float) -> None:
    """Time passes, where time itself is what matters."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await eventually(lambda: loop.time() >= until)


# --- Its deaths.


async def test_a_killed_server_takes_no_pod_with_it_and_is_caught_up_with(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poolgate.discovery")
    async with ApiServer() as server, followed(server) as seen:
        gone, stays = appear(server, "gone"), appear(server, "stays")
        await seen.sees(gone="ready", stays="ready")
        kept = seen.pods["stays"]
        before = len(asked(server, "list"))
        await server.kill()
        await seen.until(lambda: seen.source.stale_seconds() > 0)
        gone.vanish()
        appear(server, "new")
        assert seen.states == {"gone": "ready", "stays": "ready"}
        # Several attempts fail before it is back.
        await eventually(lambda: seen.source.stale_seconds() > 0.3)
        assert seen.states == {"gone": "ready", "stays": "ready"}
        await server.restart()
        await seen.sees(SOON, new="ready", stays="ready")
        assert seen.pods["stays"] == kept
        assert len(asked(server, "list")) <= before + 2
        assert stays.uid in kept.uid
        appear(server, "later")
        await seen.sees(SOON, new="ready", stays="ready", later="ready")
        told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("pods in models")]
        # One when it breaks, one when nothing listens any more, one when it is over.
        assert len(told) <= 3
        assert told[-1] == "pods in models: listed, and watched again"
        await eventually(lambda: seen.source.stale_seconds() == 0, SOON)


async def test_attempts_at_a_dead_server_grow_rare(caplog: pytest.LogCaptureFixture) -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.01, longest_pause=10)) as seen:
        await server.kill()
        attempts = 0

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attempts
            attempts += 1
            writer.transport.abort()

        async with await asyncio.start_server(hang_up, "127.0.0.1", server.port):
            await eventually(lambda: seen.source.stale_seconds() > 0.8 and attempts >= 4)
            # Each pause is at least half of 0.01 s, and twice as long as the one before. Two reflectors have so many;
            # before each they list, in it they watch, and aiohttp tries twice.
            pauses = 2 + log2(1 + seen.source.stale_seconds() / 0.005)
            assert attempts <= 2 * pauses * 2 * 2
        await server.start()


async def test_a_terminated_server_is_mute_and_the_next_one_is_asked_when_it_ends() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.terminate()
        await server.start()
        pod.become_unready()
        server.clock.advance(59)
        assert seen.states == {"a": "ready"}
        server.clock.advance(1)
        await seen.sees(SOON, a="starting")


async def test_a_mute_watch_is_given_up_and_the_pods_listed_anew() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.01, silence=0.2, quiet=0.1)) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.terminate()
        await server.start()
        pod.vanish()
        await eventually(lambda: seen.source.stale_seconds() >= 0.1, SOON)
        assert seen.states == {"a": "ready"}
        await seen.sees(SOON)
        assert "silence" in seen.reasons


async def test_a_frozen_server_makes_the_pods_stale_and_takes_none() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.01, silence=0.3, quiet=0.1)) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.freeze()
        pod.vanish()
        await eventually(lambda: seen.source.stale_seconds() > 0.1, SOON)
        # Beyond the silence: the old watch is given up, and a list is asked for in vain.
        await eventually(lambda: seen.source.stale_seconds() > 0.5, SOON)
        assert seen.states == {"a": "ready"}
        server.thaw()
        await seen.sees(SOON)
        await eventually(lambda: seen.source.stale_seconds() == 0, SOON)


async def test_a_watch_that_bookmarks_keep_alive_is_neither_stale_nor_given_up() -> None:
    async def said_in_time(server: ApiServer) -> bool:
        """Follow pods by bookmarks for twice as long as a watch may be silent. False: this machine came too late."""
        loop = asyncio.get_running_loop()
        async with followed(server, pace=Pace(first_pause=0.01, silence=1.0, quiet=0.8)) as seen:
            for _ in range(10):
                said_at = loop.time()
                server.say(bookmark(server.log.version))
                await lasts(0.2)
                if loop.time() - said_at > 0.35:
                    return False
                assert seen.source.stale_seconds() == 0
            assert set(seen.reasons) == {"start"}
            return True

    async with ApiServer() as server, within(60):
        while not await said_in_time(server):
            await watched(server, 0)


async def test_a_server_that_is_away_at_the_start_is_awaited() -> None:
    async with ApiServer() as server:
        appear(server, "a")
        await server.kill()
        async with followed(server, listed=False) as seen:
            await eventually(lambda: seen.source.stale_seconds() > 0.2)
            assert not seen.source.seen().listed
            await server.start()
            await seen.sees(SOON, a="ready")
            assert seen.source.seen().listed


async def test_nothing_counts_as_listed_before_every_namespace_is() -> None:
    async with ApiServer() as server:
        appear(server, "a", namespace="one")
        server.answer_with(statuses.internal_error(), "list", "two", times=None)
        async with followed(server, namespaces=("one", "two"), listed=False) as seen:
            await seen.until(lambda: set(seen.pods) == {"one/a"})
            assert not seen.source.seen().listed
            server.heal()
            await seen.until(lambda: seen.source.seen().listed, SOON)


# --- Versions.


async def test_410_as_an_event_leads_to_a_list_that_takes_away_what_is_gone() -> None:
    async with ApiServer() as server, followed(server) as seen:
        ghost, stays = appear(server, "ghost"), appear(server, "stays")
        await seen.sees(ghost="ready", stays="ready")
        kept = seen.pods["stays"]
        flapped = []

        def look() -> bool:
            if seen.pods.get("stays") != kept:
                flapped.append(seen.pods)
            return seen.states == {"new": "ready", "stays": "ready"}

        await server.kill()
        ghost.vanish()
        appear(server, "new")
        server.log.expire()
        await server.start()
        await seen.until(look)
        assert not flapped
        assert stays.uid in kept.uid


async def test_410_as_an_event_in_an_open_watch_leads_to_a_list() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        server.say_error(410, "Expired", "too old resource version: 1 (2)")
        await seen.until(lambda: "expired" in seen.reasons)
        await hears(server, seen)


async def test_410_as_a_status_of_the_watch_leads_to_a_list() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        server.answer_with(statuses.expired_list(), "watch", "models", times=None)
        server.end_watches()
        await seen.until(lambda: "expired" in seen.reasons)
        server.heal()
        await hears(server, seen)


async def test_410_in_the_middle_of_a_list_begins_it_anew() -> None:
    async with ApiServer() as server:
        for number in range(150):
            appear(server, f"pod-{number:03}", ip="10.0.0.1")
        # The first page comes, and etcd is compacted before the second one is asked for.
        async with followed(server, listed=False) as seen:
            await server.until(lambda: len(asked(server, "list")) == 1)
            server.log.expire()
            await seen.until(lambda: seen.source.seen().listed)
            assert len(seen.pods) == 150
        tokens = [bool(asking.query.get("continue")) for asking in asked(server, "list")]
        assert tokens in ([False, True, False, True], [False, True])


async def test_410_for_every_second_page_is_no_loop_without_an_end() -> None:
    async with ApiServer() as server:
        for number in range(150):
            appear(server, f"pod-{number:03}", ip="10.0.0.1")
        async with followed(server, listed=False) as seen:
            # Each first page is answered truly, each second one with 410.
            for count in (1, 3):
                await server.until(lambda count=count: len(asked(server, "list")) >= count)  # type: ignore[misc]
                server.answer_with(statuses.expired_list(), "list", "models")
            await seen.until(lambda: len(seen.pods) == 150)


@pytest.mark.parametrize(
    "instead", [failed_watch(), statuses.expired_list(), failed_watch(500, "InternalError", "etcd is away")]
)
async def test_a_server_that_refuses_every_watch_is_asked_ever_more_rarely(instead: Any) -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.02, longest_pause=0.2)) as seen:
        await hears(server, seen, "a")
        server.answer_with(instead, "watch", "models", times=None)
        before = len(seen.relists)
        server.end_watches()
        await seen.until(lambda: len([why for why in seen.reasons[before:] if why != "disconnected"]) >= 6)
        times = [at for why, at in seen.relists[before:] if why in ("expired", "refused")]
        gaps = [later - sooner for sooner, later in pairwise(times)]
        # The shortest that chance makes of 0.02, 0.04, 0.08 and then 0.16 and 0.2 s.
        assert all(gap >= least for gap, least in zip(gaps[1:], (0.02, 0.04, 0.08, 0.1), strict=False)), gaps
        # What happens meanwhile is learned from the lists.
        appear(server, "b")
        await seen.sees(a="ready", b="ready")
        server.heal()
        await watched(server)


async def test_a_server_restored_from_a_backup_is_believed() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        backup = server.log.backup()
        appear(server, "b")
        await seen.sees(a="ready", b="ready")
        server.log.write_elsewhere(1000)
        await server.restore(backup)
        await seen.sees(SOON, a="ready")
        await hears(server, seen)


async def test_a_watch_from_the_future_is_silent_and_ends_in_a_list() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.01, silence=0.2, quiet=0.1)) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        backup = server.log.backup()
        # A version that the restored cluster is far from, and a clean end: so a watch is begun from there.
        server.say(bookmark(server.log.version + 100_000))
        await hears(server, seen, "b")
        server.cluster.log = backup
        server.end_watches()
        await seen.sees(2.0, a="ready")
        await hears(server, seen, "c")


@pytest.mark.parametrize("in_pause", [False, True], ids=["in-a-watch", "in-a-pause"])
async def test_a_version_that_goes_backwards_in_a_watch_leads_to_a_list(in_pause: bool) -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.3, longest_pause=0.3)) as seen:
        await hears(server, seen, "a")
        if in_pause:
            # A watch that ends at once is followed by a pause, in which another one is open.
            server.end_watches()
            await watched(server, 0)
            await watched(server)
        server.say(tell(server, "ADDED", "ghost", 1))
        await seen.until(lambda: "ghost" in seen.pods)
        await seen.until(lambda: "ghost" not in seen.pods, 2.0)
        assert "backwards" in seen.reasons


async def test_a_gateway_timeout_is_waited_out_as_long_as_it_says() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.answer_with(statuses.too_large_version(9999, 1), "list", "models")
        began = len(asked(server, "list"))
        loop = asyncio.get_running_loop()
        server.say_error(410, "Expired", "too old resource version")
        await server.until(lambda: len(asked(server, "list")) == began + 1)
        refused_at = loop.time()
        await server.until(lambda: len(asked(server, "list")) == began + 2)
        assert loop.time() - refused_at >= 0.95
        await hears(server, seen, "b")


async def test_a_quiet_namespace_in_a_busy_cluster_needs_no_new_list() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        other = appear(server, "busy", namespace="elsewhere")
        for _ in range(6):
            other.become_unready()
            server.log.write_elsewhere(1000)
            heard = asked(server, "watch")[-1].query["resourceVersion"]
            server.clock.advance(60)
        lists, watches = len(asked(server, "list")), len(asked(server, "watch"))
        # The bookmarks have been heard when the watch ends and the next one begins from the last of them.
        server.log.forget_watch_cache()
        server.end_watches()
        await server.until(lambda: len(asked(server, "watch")) == watches + 1)
        assert int(asked(server, "watch")[-1].query["resourceVersion"]) > int(heard)
        await hears(server, seen, "b")
        assert len(asked(server, "list")) == lists
        assert set(seen.states) == {"a", "b"}


async def test_a_watch_that_ends_in_time_goes_on_where_it_was() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        kept, lists = seen.source.seen(), len(asked(server, "list"))
        last = asked(server, "watch")[-1].query
        assert 240 <= int(last["timeoutSeconds"]) <= 300
        assert last["allowWatchBookmarks"] == "true"
        server.clock.advance(300)
        await watched(server, 0)
        await watched(server)
        assert seen.source.seen() == kept
        assert len(asked(server, "list")) == lists
        assert int(asked(server, "watch")[-1].query["resourceVersion"]) > int(last["resourceVersion"])
        await hears(server, seen, "b")


async def test_a_watch_that_ends_at_once_is_not_begun_without_a_pause() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.05, longest_pause=0.4)) as seen:
        await hears(server, seen, "a")
        begun = len(asked(server, "watch"))
        server.answer_with(statuses.WatchLines(()), "watch", "models", times=None)
        loop = asyncio.get_running_loop()
        server.end_watches()
        since = loop.time()
        await lasts(0.7)
        # At the shortest a pause takes 0.025 s, then 0.05, 0.1, and 0.2 from then on. In each there is another watch.
        pauses = 4 + (loop.time() - since - 0.375) / 0.2
        assert len(asked(server, "watch")) - begun <= 2 * (1 + pauses)


# --- What was missed.


async def test_a_missed_deletion_is_mended_by_the_next_full_list() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(relist=0.3, first_pause=0.01)) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        # Only the list knows: no event was ever written.
        del server.log.pods["models", "a"]
        before, lists = seen.reasons.count("periodic"), len(asked(server, "list"))
        await seen.sees(SOON)
        # By the next one; our own namespace has its own meanwhile.
        assert len(asked(server, "list")) <= lists + 1
        assert before < seen.reasons.count("periodic") <= before + 3


async def test_a_deletion_while_the_watch_is_away_is_heard_with_the_next_one() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.end_watches()
        pod.vanish()
        await seen.sees(SOON)


async def test_a_late_deletion_of_a_former_pod_is_not_that_of_its_heir() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "chat-0")
        await seen.sees(chat_0="ready")
        former = pod.object
        pod.replace()
        pod.become_ready()
        await seen.until(lambda: pod.uid in seen.pods["chat-0"].uid)
        # No server is known to say it so late.
        server.say(event("DELETED", at_version(former, server.log.version)))
        await hears(server, seen)
        assert seen.states == {"chat-0": "ready", "marker": "ready"}


async def test_full_lists_come_again_and_again_and_change_nothing() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(relist=0.1, first_pause=0.01)) as seen:
        await hears(server, seen, "a")
        kept = seen.source.seen()
        await seen.until(lambda: seen.reasons.count("periodic") >= 6)
        assert seen.source.seen() == kept
        assert set(seen.reasons) == {"start", "periodic"}
        await eventually(lambda: seen.source.stale_seconds() == 0, SOON)


# --- Lists that fail, and lists that are empty.


@pytest.mark.parametrize(
    "instead",
    [
        statuses.internal_error(),
        statuses.too_many_requests(0),
        statuses.starting_up(0),
        statuses.gateway_timeout(0),
        statuses.not_found("/api/v1/namespaces/models/pods"),
        CutBody(100),
        CutBody(0),
        Answer(200, b""),
        Answer(200, b"<html>"),
        Answer(200, b"[]"),
        Answer(200, b"{}"),
        Answer(200, b'{"kind":"Status","metadata":{}}'),
        Answer(200, b'{"metadata":{"resourceVersion":5}}'),
        Answer(200, b'{"metadata":{"resourceVersion":"5"},"items":5}'),
        Answer(200, b'{"metadata":{"resourceVersion":"5"}}'),
        Answer(200, b"\xff" * 10),
        Answer(200, b"[" * 100_000),
        Answer(302, b"", {"Location": "http://127.0.0.1:1/"}),
    ],
    ids=lambda instead: f"{getattr(instead, 'status', '')}{getattr(instead, 'body', instead)!r:.40}",
)
async def test_a_list_that_fails_takes_no_pod_away(instead: Any) -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.answer_with(instead, "list", "models", times=3)
        begun = len(asked(server, "list"))
        emptied = []

        def look(holds: Callable[[], bool]) -> bool:
            if "a" not in seen.pods:
                emptied.append(seen.source.seen())
            return holds()

        server.say_error(410, "Expired", "too old resource version")
        await seen.until(lambda: look(lambda: len(asked(server, "list")) >= begun + 4))
        await seen.until(lambda: look(lambda: bool(server.watches)))
        await hears(server, seen, "b")
        assert (emptied, set(seen.states)) == ([], {"a", "b"})


async def test_a_list_that_succeeds_and_is_empty_is_believed() -> None:
    async with ApiServer() as server, followed(server) as seen:
        pods = [appear(server, name) for name in "abc"]
        await seen.until(lambda: len(seen.pods) == 3)
        await server.kill()
        for pod in pods:
            pod.vanish()
        server.log.expire()
        await server.start()
        await seen.sees(SOON)
        assert seen.source.seen().listed


async def test_a_list_that_hangs_takes_no_pod_away() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.answer_with(Hang(), "list", "models")
        begun = len(asked(server, "list"))
        server.say_error(410, "Expired", "too old resource version")
        await server.until(lambda: len(asked(server, "list")) == begun + 1)
        await eventually(lambda: seen.source.stale_seconds() > 0.1, SOON)
        assert seen.states == {"a": "ready"}
        await server.restart()
        await hears(server, seen, "b")


async def test_events_are_heard_while_lists_fail() -> None:
    async with ApiServer() as server, followed(server, pace=Pace(first_pause=0.5, longest_pause=0.5)) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.answer_with(statuses.internal_error(), "list", "models", times=None)
        lists = len(asked(server, "list"))
        server.say(b"garbage\n")
        await server.until(lambda: len(asked(server, "list")) > lists)
        await watched(server)
        pod.become_unready()
        await seen.sees(SOON, a="starting")


async def test_a_namespace_that_is_deleted_and_made_again_is_followed_all_the_time() -> None:
    async with ApiServer() as server, followed(server) as seen:
        # An API server answers for a namespace that does not exist as for an empty one.
        for round_ in range(3):
            pods = [appear(server, f"{name}-{round_}") for name in "ab"]
            await seen.until(lambda: len(seen.pods) == 2)
            for pod in pods:
                pod.delete()
                pod.vanish()
            await seen.sees(SOON)


async def test_a_selector_that_matches_nothing_is_a_list_of_nothing() -> None:
    async with ApiServer() as server:
        server.cluster.create_ready("unlabelled")
        async with followed(server) as seen:
            assert seen.source.seen().listed
            assert seen.source.seen().pods == ()
            assert {asking.query["labelSelector"] for asking in asked(server, "list")} == {POOL_LABEL}


# --- Bytes.


@pytest.mark.parametrize("delivery", [Delivery(chunk_bytes=7), Delivery(piece_bytes=11), Delivery(1, 100)])
async def test_events_may_be_cut_anywhere(delivery: Delivery) -> None:
    async with ApiServer() as server, followed(server) as seen:
        server.delivery = delivery
        server.end_watches()
        await watched(server, 0)
        await watched(server)
        for name in "abc":
            appear(server, name)
        await seen.sees(a="ready", b="ready", c="ready")
        assert set(seen.reasons) == {"start"}


async def test_an_event_of_250_kilobytes_is_an_event() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a", annotations={"blob": "ü" * 125_000})
        await seen.sees(a="ready")
        assert set(seen.reasons) == {"start"}


async def test_a_list_that_comes_compressed_is_a_list() -> None:
    async with ApiServer() as server:
        appear(server, "a", annotations={"blob": "x" * 140_000})
        async with followed(server) as seen:
            assert seen.states == {"a": "ready"}
            assert "gzip" in asked(server, "list")[0].headers["accept-encoding"]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\xff\xfe\n",
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":null}\n',
        b'{"type":"ADDED","object":{}}\n',
        b'{"type":"ADDED","object":{"metadata":[]}}\n',
        b'{"type":"ADDED","object":{"metadata":{}}}\n',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":7}}}\n',
        b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"' + b"9" * 5000 + b'"}}}\n',
        b'{"type":"BOOKMARK","object":{"metadata":{}}}\n',
        b"[" * 100_000 + b"\n",
        b"9" * 5000 + b"\n",
        b'{"type":"ERROR","object":null}\n',
        b'{"type":"ERROR","object":[]}\n',
        b'{"type":"ERROR","object":{"code":"x","details":[]}}\n',
        b'{"type":"ERROR","object":{"code":500,"details":{"retryAfterSeconds":"soon"}}}\n',
        b'{"type":"ERROR","object":{"code":500,"details":{"retryAfterSeconds":-1}}}\n',
    ],
    ids=lambda line: f"{line[:48]!r}",
)
async def test_a_line_that_is_no_event_leads_to_a_list_and_hurts_nobody(line: bytes) -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        lists = len(asked(server, "list"))
        for watch in server.watches:
            if watch.asked.namespace == "models":
                watch.say(line)
        await server.until(lambda: len(asked(server, "list")) > lists)
        await hears(server, seen, "b")
        assert set(seen.states) == {"a", "b"}


async def test_a_line_cut_by_the_end_of_the_watch_leads_to_a_list() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.say(b'{"type":"ADD')
        server.end_watches()
        await seen.until(lambda: "garbage" in seen.reasons)
        await hears(server, seen, "b")


async def test_an_event_of_an_unknown_type_is_passed_over() -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.say(b'{"type":"STRANGE","object":{"metadata":{"resourceVersion":"1"}}}\n')
        server.say(bookmark(server.log.version))
        await hears(server, seen, "b")
        assert set(seen.states) == {"a", "b"}
        assert set(seen.reasons) == {"start"}


@pytest.mark.parametrize(
    ("code", "reason"), [(500, "InternalError"), (429, "TooManyRequests"), (403, "Forbidden"), (504, "Timeout")]
)
async def test_an_error_event_of_any_code_leads_to_a_list(code: int, reason: str) -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        server.say_error(code, reason, "an etcd of that name is away")
        await seen.until(lambda: "refused" in seen.reasons)
        await hears(server, seen, "b")


@pytest.mark.parametrize("names", [5, ["a"], {"x": 1}, None, "\ud800"])
async def test_an_object_whose_fields_are_of_other_kinds_hurts_nobody(names: Any) -> None:
    async with ApiServer() as server, followed(server) as seen:
        await hears(server, seen, "a")
        metadata = {"name": "x", "namespace": "models", "uid": "u", "resourceVersion": str(server.log.version)}
        odd: list[dict[str, Any]] = [
            {"metadata": metadata | {"name": names}},
            {"metadata": metadata | {"uid": names}},
            {"metadata": metadata | {"labels": names, "annotations": names, "creationTimestamp": names}},
            {"metadata": metadata | {"labels": {POOL_LABEL: names}}, "spec": names, "status": names},
            {"metadata": metadata | {"labels": {POOL_LABEL: "p"}}, "spec": {"containers": names}},
            {"metadata": metadata | {"labels": {POOL_LABEL: "p"}}, "status": {"podIP": names, "phase": names}},
            {"metadata": metadata | {"labels": {POOL_LABEL: "p"}}, "status": {"phase": "Running", "conditions": names}},
        ]
        for told in odd:
            server.say(json.dumps({"type": "MODIFIED", "object": told}).encode() + b"\n")
        await hears(server, seen, "b")
        assert set(seen.reasons) == {"start"}
        assert {"a", "b"} <= set(seen.states)
