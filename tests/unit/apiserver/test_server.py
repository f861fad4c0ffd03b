"""What no recording shows: restarts, restores, freezes, rights that change, broken bytes, and what is kept of it."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver import statuses
from tests.apiserver.access import service_account
from tests.apiserver.clock import Clock
from tests.apiserver.hearing import Caller, Heard
from tests.apiserver.http import Answer, Delivery
from tests.apiserver.server import ADMIN_TOKEN, ApiServer, CutBody, Hang
from tests.turns import within

PODS = "/api/v1/namespaces/models/pods"


@asynccontextmanager
async def watching(server: ApiServer, query: str = "", path: str = PODS) -> AsyncIterator[Caller]:
    """A watch from now on, whose headers have come."""
    before = len(server.watches)
    async with await Caller.connect(server.port) as caller:
        version = "" if "resourceVersion" in query else f"&resourceVersion={server.log.version}"
        caller.get(f"{path}?watch=1{version}{query}")
        await server.until(lambda: len(server.watches) == before + 1)
        await caller.until(lambda heard: bool(heard.status_line))
        yield caller


async def ask(server: ApiServer, target: str, *headers: str, token: str = ADMIN_TOKEN) -> Heard:
    async with await Caller.connect(server.port) as caller:
        caller.get(target, *headers, token=token)
        return await caller.whole()


def names(heard: Heard) -> list[str]:
    return [pod["metadata"]["name"] for pod in json.loads(heard.plain_body)["items"]]


def code(heard: Heard) -> int:
    return int(heard.status_line.split()[1])


def several(count: int) -> Any:
    return lambda heard: len(heard.lines) >= count


# --- Lists.


async def test_pages_of_all_namespaces_hold_each_pod_once_though_pods_come_between() -> None:
    async with ApiServer() as server:
        for name in "abc":
            server.cluster.create(name, "one")
            server.cluster.create(name, "two")
        found, token = [], ""
        while True:
            page = json.loads((await ask(server, f"/api/v1/pods?limit=2&continue={token}")).body)
            found += [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in page["items"]]
            server.cluster.create(f"late-{len(found)}", "two")
            token = page["metadata"].get("continue", "")
            if not token:
                break
            assert page["metadata"]["remainingItemCount"] == 6 - len(found)
    assert found == [(namespace, name) for namespace in ("one", "two") for name in "abc"]


async def test_the_fresh_token_of_an_expired_page_goes_on_with_what_is_there_now() -> None:
    async with ApiServer() as server:
        pods = [server.cluster.create(name) for name in "abcd"]
        first = json.loads((await ask(server, f"{PODS}?limit=2")).body)
        pods[2].vanish()
        server.log.expire()
        expired = await ask(server, f"{PODS}?limit=2&continue={first['metadata']['continue']}")
        fresh = json.loads(expired.body)["metadata"]["continue"]
        rest = await ask(server, f"{PODS}?limit=2&continue={fresh}")
    assert (code(expired), names(rest)) == (410, ["d"])


async def test_a_list_from_a_version_soon_to_come_waits_for_it() -> None:
    async with ApiServer() as server, await Caller.connect(server.port) as caller:
        caller.get(f"{PODS}?resourceVersion={server.log.version + 1}")
        await server.until(lambda: len(server.requests) == 1)
        server.cluster.create("a")
        assert names(await caller.whole()) == ["a"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("continue=x&resourceVersion=5", 400),
        ("continue=!!", 400),
        ("labelSelector=a b", 400),
        ("resourceVersion=abc", 400),
        ("limt=3", 400),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("sendInitialEvents=true", 422),
        ("watch=1&sendInitialEvents=true", 422),
        ("watch=1&resourceVersion=1&resourceVersionMatch=NotOlderThan", 422),
    ],
)
async def test_options_that_contradict_each_other_are_refused(query: str, status: int) -> None:
    async with ApiServer() as server:
        assert code(await ask(server, f"{PODS}?{query.replace(' ', '%20')}")) == status


async def test_only_large_lists_are_compressed_and_only_when_asked() -> None:
    async with ApiServer() as server:
        server.cluster.create("small")
        small = await ask(server, PODS, "Accept-Encoding: gzip")
        server.cluster.create("large", annotations={"blob": "x" * 140_000})
        plain, packed = await ask(server, PODS), await ask(server, PODS, "Accept-Encoding: gzip")
    assert [heard.header("Content-Encoding") for heard in (small, plain, packed)] == ["", "", "gzip"]
    assert packed.plain_body == plain.body


# --- Watches.


async def test_a_bookmark_comes_each_minute_with_a_newer_version_though_no_pod_changes() -> None:
    async with ApiServer() as server, watching(server, "&allowWatchBookmarks=true") as caller:
        begun = server.log.version
        for count in (1, 2):
            server.clock.advance(60)
            await caller.until(several(count))
            server.log.write_elsewhere()
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in caller.heard.events]
    assert {event["type"] for event in caller.heard.events} == {"BOOKMARK"}
    assert begun < versions[0] < versions[1]


async def test_a_watch_from_the_future_has_neither_events_nor_bookmarks() -> None:
    future = "&allowWatchBookmarks=true&resourceVersion=99999"
    async with ApiServer() as server, watching(server, future) as caller, watching(server) as other:
        server.cluster.create("a")
        server.clock.advance(1000)
        await other.until(several(1))
        server.clock.advance(1000)
        heard = await caller.whole()
    assert (heard.lines, heard.ending) == ([], "whole")


async def test_a_bookmark_never_covers_a_change_that_was_not_yet_sent() -> None:
    async with ApiServer() as server, watching(server, "&allowWatchBookmarks=true") as caller:
        server.freeze()
        server.cluster.create("a", annotations={"blob": "x" * 3000})
        await asyncio.sleep(0)  # the watch takes up this change, and stands still while it sends
        await asyncio.sleep(0)
        server.cluster.create("b")
        server.clock.advance(60)
        server.thaw()
        heard = await caller.until(several(3))
    assert heard.told() == [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")]


async def test_a_streamed_list_from_the_future_is_silent_too() -> None:
    query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=99999&timeoutSeconds=5"
    async with ApiServer() as server:
        server.cluster.create("a")
        async with watching(server, query) as caller:
            server.clock.advance(5)
            heard = await caller.whole()
    assert (heard.lines, heard.ending) == ([], "whole")


async def test_changes_that_come_together_share_a_chunk() -> None:
    async with ApiServer() as server, watching(server) as caller:
        for name in "abc":
            server.cluster.create(name)
        heard = await caller.until(several(3))
    assert len(heard.lines) == 3
    assert heard.chunk_sizes[0] == 2048  # holds the first event and a part of the second


async def test_an_open_watch_outlives_its_token_and_its_rights() -> None:
    async with ApiServer() as server, watching(server) as caller:
        server.accounts = {"new-token": service_account("elsewhere")}
        server.cluster.create("a")
        heard = await caller.until(several(1))
        refused = [code(await ask(server, PODS)), code(await ask(server, PODS, token="new-token"))]
    assert heard.told() == [("ADDED", "a")]
    assert refused == [401, 403]


# --- Rights.


async def test_rights_are_by_verb_and_namespace() -> None:
    accounts = {"lister": service_account("models", verbs=("list",))}
    async with ApiServer(accounts=accounts) as server:
        told = [
            code(await ask(server, target, token="lister"))
            for target in (PODS, f"{PODS}?watch=1", f"{PODS}/a", "/api/v1/pods", "/api/v1/namespaces/other/pods")
        ]
        anonymous = await ask(server, PODS, token="")
        everywhere = await ask(server, "/api/v1/pods", token="lister")
        public = await ask(server, "/version", token="")
    assert told == [200, 403, 403, 403, 403]
    assert b'User \\"system:anonymous\\" cannot list' in anonymous.body
    assert b"at the cluster scope" in everywhere.body
    assert json.loads(public.body)["gitVersion"] == "v1.36.2"
    assert server.verbs() >= {("list", "pods", "models"), ("watch", "pods", "models"), ("get", "pods", "models")}
    assert (server.requests[0].user_agent, server.requests[0].token) == ("test/1", "lister")


# --- Lives and deaths.


async def test_after_a_restart_only_watches_from_the_newest_pod_event_on_go_on() -> None:
    async with ApiServer() as server:
        older = server.log.version
        server.cluster.create("a")
        newest = server.log.newest_change
        await server.restart()
        stale = await ask(server, f"{PODS}?watch=1&resourceVersion={older}")
        async with watching(server, f"&resourceVersion={newest}") as caller:
            server.cluster.create("b")
            heard = await caller.until(several(1))
    assert (code(stale), [event["object"]["code"] for event in stale.events]) == (200, [410])
    assert heard.told() == [("ADDED", "b")]


async def test_a_killed_server_cuts_watches_and_comes_back_on_its_port() -> None:
    async with ApiServer() as server:
        port = server.port
        async with watching(server) as caller:
            await server.kill()
            assert (await caller.whole()).ending == "cut"
        await server.start()
        assert server.port == port
        assert code(await ask(server, PODS)) == 200


async def test_a_kill_spares_no_connection_that_was_just_accepted() -> None:
    loop = asyncio.get_running_loop()
    for turns in range(8):
        async with ApiServer() as server:
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.setblocking(False)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server.kill()
                async with within(1):
                    with suppress(ConnectionResetError):
                        assert await loop.sock_recv(client, 1) == b""


async def test_a_terminated_server_may_start_anew_while_its_old_watch_is_mute() -> None:
    async with ApiServer() as server, watching(server) as old:
        server.terminate()
        await server.start()
        server.cluster.create("a")
        async with watching(server, f"&resourceVersion={server.log.version - 2}") as new:
            await new.until(several(1))
        assert old.heard.lines == []
        server.clock.advance(60)
        heard = await old.whole()
        assert (heard.lines, heard.ending) == ([], "whole")
        await server.until(lambda: server.connections == 0)


async def test_a_restored_server_goes_back_in_versions() -> None:
    async with ApiServer() as server:
        server.cluster.create("a")
        backup = server.log.backup()
        server.cluster.create("b")
        ahead = server.log.version
        await server.restore(backup)
        listed = await ask(server, PODS)
        async with watching(server, f"&resourceVersion={ahead}") as caller:
            async with watching(server) as other:
                server.cluster.create("c")
                await other.until(several(1))
            assert caller.heard.lines == []
    assert names(listed) == ["a"]
    assert int(json.loads(listed.body)["metadata"]["resourceVersion"]) < ahead


async def test_a_frozen_server_accepts_and_says_nothing_until_it_thaws() -> None:
    async with ApiServer() as server, watching(server) as caller, await Caller.connect(server.port) as other:
        server.freeze()
        server.cluster.create("a")
        other.get(PODS)
        with pytest.raises(TimeoutError):
            await other.until(lambda heard: bool(heard.status_line), seconds=0.05)
        assert (caller.heard.lines, len(server.requests)) == ([], 1)
        server.thaw()
        assert (await caller.until(several(1))).told() == [("ADDED", "a")]
        assert code(await other.whole()) == 200


# --- Faults.


async def test_410_on_every_watch_lasts_until_it_is_healed_and_lists_go_on() -> None:
    async with ApiServer() as server:
        server.answer_with(statuses.failed_watch(), "watch", times=None)
        for _ in range(3):
            heard = await ask(server, f"{PODS}?watch=1")
            assert [event["object"]["reason"] for event in heard.events] == ["Expired"]
            assert heard.ending == "whole"
        assert code(await ask(server, PODS)) == 200
        server.heal()
        async with watching(server):
            pass


@pytest.mark.parametrize(
    ("answer", "status", "retry_after"),
    [
        (statuses.too_many_requests(7), 429, "7"),
        (statuses.starting_up(2), 429, "2"),
        (statuses.internal_error(), 500, ""),
        (statuses.internal_error(retry_after=3), 500, "3"),
        (statuses.gateway_timeout(4), 504, "4"),
    ],
)
async def test_an_injected_answer_comes_once(answer: Answer, status: int, retry_after: str) -> None:
    async with ApiServer() as server:
        server.answer_with(answer, "list")
        async with await Caller.connect(server.port) as caller:
            caller.get(PODS)
            refused = await caller.whole()
            caller.get(PODS)  # the connection is kept
            again = await caller.whole()
    assert (code(refused), refused.header("Retry-After"), code(again)) == (status, retry_after, 200)


async def test_a_list_may_be_cut_in_its_body_and_a_request_may_hang() -> None:
    async with ApiServer() as server:
        server.cluster.create("a")
        server.answer_with(CutBody(100))
        server.answer_with(Hang())
        cut = await ask(server, PODS)
        async with await Caller.connect(server.port) as caller:
            caller.get(PODS)
            await server.until(lambda: len(server.requests) == 2)
            with pytest.raises(TimeoutError):
                await caller.whole(seconds=0.05)
        await server.until(lambda: server.connections == 0)
    assert (cut.ending, len(cut.body)) == ("cut", 100)


async def test_a_test_may_say_what_no_server_would() -> None:
    async with ApiServer() as server, watching(server) as caller:
        server.say(b"garbage\n")
        server.say(b'{"type":"STRANGE","object":{}}\n')
        await caller.until(several(2))
        server.say(b'{"type":"ADD')
        await caller.until(lambda heard: heard.body.endswith(b"ADD"))
        await server.kill()
        assert (await caller.whole()).ending == "cut"
    assert caller.heard.lines == [b"garbage", b'{"type":"STRANGE","object":{}}']


async def test_an_error_event_of_any_code_ends_the_watch() -> None:
    async with ApiServer() as server, watching(server) as caller:
        server.say_error(500, "InternalError", "etcd event received with PrevKv=nil")
        heard = await caller.whole()
    assert ([event["object"]["code"] for event in heard.events], heard.ending) == ([500], "whole")


@pytest.mark.parametrize("delivery", [Delivery(chunk_bytes=7), Delivery(piece_bytes=11), Delivery(1, 3)])
async def test_bytes_may_be_split_anywhere_and_mean_the_same(delivery: Delivery) -> None:
    async with ApiServer() as server:
        server.delivery = delivery
        async with watching(server) as caller:
            server.cluster.create("a").kill()
            heard = await caller.until(several(3))
    assert heard.told() == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    if delivery.chunk_bytes:
        assert max(heard.chunk_sizes) == delivery.chunk_bytes


async def test_bytes_may_come_slowly() -> None:
    async with ApiServer() as server:
        server.delivery = Delivery(piece_bytes=200, pause_seconds=0.001)
        began = asyncio.get_running_loop().time()
        await ask(server, PODS)
        assert asyncio.get_running_loop().time() - began >= 0.002


async def test_a_second_of_the_server_may_be_short() -> None:
    async with ApiServer(clock=Clock(second=0.001)) as server, watching(server, "&timeoutSeconds=20") as caller:
        assert (await caller.whole()).ending == "whole"


# --- What a client is given.


def test_a_kubeconfig_names_the_server_and_the_token() -> None:
    server = ApiServer()
    server.port = 6443
    told = json.loads(server.kubeconfig("t", Path("ca.crt")))
    assert told["clusters"][0]["cluster"] == {"server": "http://127.0.0.1:6443", "certificate-authority": "ca.crt"}
    assert told["users"][0]["user"] == {"token": "t"}


@pytest.mark.program("openssl")
async def test_it_speaks_tls_and_a_kill_cuts_that_too(tmp_path: Path) -> None:
    cert, key = tmp_path / "ca.crt", tmp_path / "key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *named, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    trusted = ssl.create_default_context(cafile=str(cert))
    async with ApiServer(tls=tls) as server, await Caller.connect(server.port, trusted) as caller:
        caller.get(f"{PODS}?watch=1")
        await server.until(lambda: len(server.watches) == 1)
        server.cluster.create("a")
        assert (await caller.until(several(1))).told() == [("ADDED", "a")]
        await server.kill()
        assert (await caller.whole()).ending == "cut"
    assert server.url.startswith("https://")
