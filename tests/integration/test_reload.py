"""The configuration changes while requests run: what is new holds for what comes, and what runs goes on."""

import asyncio
import gc
import json
import os
import re
import signal
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from gateway.cli.keys_file import add_key, disable_key
from gateway.config.reading import load_config
from gateway.core.fleet import Fleet, PodState
from gateway.limits.keys import digest, new_key
from tests.discovering import fleet_until, ready_names
from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, Step, answer, chunk
from tests.integration.test_process import ROOT, environment, started
from tests.raw import RawClient, ask, chat, request
from tests.running import HasUrl, Running, running
from tests.turns import within

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def text_of(pods: Sequence[HasUrl], **sections: Any) -> str:
    """A configuration with these pods, one after the other called chat-0 and so on."""
    listed = [{"url": pod.url, "pool": "chat"} for pod in pods]
    return yaml.safe_dump({"discovery": {"pods": listed}, "pools": {"chat": {"policy": "round_robin"}}, **sections})


async def reloaded(gateway: Running, change: Callable[[], object]) -> None:
    """Make a change, and wait until it is in force or refused."""
    state = gateway.gateway.config_state
    before = state.value
    change()
    async with within(5):
        while state.value is before:
            await state.wait_changed()


def replaced(file: Path, text: str) -> None:
    """Another file in its place, at once: a process never sees half of it."""
    made = file.with_suffix(".new")
    made.write_text(text)
    made.replace(file)


async def asked(gateway: Running, **more: Any) -> int:
    """The status of one answer that is not streamed."""
    return (await ask(gateway.port, request(chat(**more), key=gateway.key))).status


async def test_a_new_deadline_holds_for_new_requests_and_not_for_one_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[Hang]]) as pod:
        file.write_text(text_of([pod]))
        async with running([], file=file) as gateway:
            runs = asyncio.create_task(ask(gateway.port, request(chat(stream=True), key=gateway.key)))
            while not pod.requests:
                await asyncio.sleep(0.001)
            await reloaded(gateway, lambda: file.write_text(text_of([pod], pools={"chat": {"ttft_seconds": 0.01}})))
            await fleet_until(gateway, lambda fleet: fleet.routes["m"].pool.deadlines.ttft_seconds == 0.01)
            came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
            assert (came.status, came.error["code"]) == (504, "upstream_ttft_timeout")
            assert not runs.done()
            runs.cancel()
            await asyncio.gather(runs, return_exceptions=True)
            await gateway.settled()


async def test_an_invalid_file_is_refused_and_the_gateway_says_so_and_serves_on(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(good := text_of([pod]))
        async with running([], file=file) as gateway, ops_of(gateway) as ops:
            await reloaded(gateway, lambda: file.write_text("server: {prot: 1}\n"))
            assert gateway.sample("poolgate_config_reloads_total", result="refused") == 1
            told = (await ops.get("/status.json")).json()["config"]
            assert "server.prot: this key does not exist" in told["error"]
            assert told["for_seconds"] > 0
            assert await asked(gateway) == 200
            await reloaded(gateway, lambda: file.write_text(good))
            assert (await ops.get("/status.json")).json()["config"]["error"] == ""
            assert gateway.sample("poolgate_config_reloads_total", result="applied") == 0


async def test_a_symlink_that_leads_elsewhere_is_seen_as_kubernetes_moves_it(tmp_path: Path) -> None:
    def publish(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "poolgate.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    async with ScriptedPod([[GOOD]]) as pod:
        publish("..2026_01", text_of([pod]))
        file = tmp_path / "poolgate.yaml"
        file.symlink_to("..data/poolgate.yaml")
        async with running([], file=file) as gateway:
            assert await asked(gateway, model="new-name") == 404
            models = {"new-name": {"to": [{"model": "m"}]}}
            await reloaded(gateway, lambda: publish("..2026_02", text_of([pod], models=models)))
            assert await asked(gateway, model="new-name") == 200
            assert gateway.sample("poolgate_config_reloads_total", result="applied") == 1


async def test_a_pod_that_is_added_gets_requests(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as one, ScriptedPod([[GOOD]]) as other:
        file.write_text(text_of([one]))
        async with running([], file=file) as gateway:
            assert await asked(gateway) == 200
            await reloaded(gateway, lambda: file.write_text(text_of([one, other])))
            await fleet_until(gateway, lambda fleet: ready_names(fleet) == {"chat-0", "chat-1"})
            assert [await asked(gateway) for _ in range(4)] == [200] * 4
            assert other.requests


async def test_a_pod_that_is_removed_gets_no_request_and_its_stream_ends_well(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    go_on = asyncio.Event()
    script: list[Step] = [STREAM_HEAD, chunk(TOKEN), go_on, chunk(FINAL), chunk(DONE), b"0\r\n\r\n"]
    async with ScriptedPod([script]) as leaving, ScriptedPod([[GOOD]]) as staying:
        file.write_text(text_of([leaving]))
        async with running([], file=file) as gateway:
            (old,) = gateway.gateway.fleet.value.pods
            client = await RawClient.connect(gateway.port)
            client.send(request(chat(stream=True), key=gateway.key))
            begun = await client.reader.readuntil(TOKEN)
            await reloaded(gateway, lambda: file.write_text(text_of([staying])))
            await fleet_until(gateway, lambda fleet: len(fleet.routes["m"].pods) == 1 and old not in fleet.pods)
            assert [await asked(gateway) for _ in range(4)] == [200] * 4
            assert (len(leaving.requests), len(staying.requests)) == (1, 4)
            go_on.set()
            came = await client.answer(begun=begun)
            assert (came.clean, came.body.endswith(FINAL + DONE)) == (True, True)
            client.leave()
            await gateway.settled()
            assert gateway.gateway.balancer.in_flight(old.uid) == 0


async def test_pods_that_stay_are_the_same_wherever_they_stand_and_whatever_their_names(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as first, ScriptedPod([[GOOD]]) as second, ScriptedPod([[GOOD]]) as third:
        file.write_text(text_of([first, second]))
        async with running([], file=file, tenant={"debug": True}) as gateway:
            before = {pod.uid: gateway.gateway.pools.of(pod) for pod in gateway.gateway.fleet.value.pods}
            fleets: list[Fleet] = []
            watching = asyncio.create_task(_collect(gateway, fleets))
            await reloaded(gateway, lambda: file.write_text(text_of([third, second, first])))
            await fleet_until(gateway, lambda fleet: len(ready_names(fleet)) == 3)
            watching.cancel()
            after = {pod.uid: pod for pod in gateway.gateway.fleet.value.pods}
            for uid, pool in before.items():
                assert gateway.gateway.pools.of(after[uid]) is pool
                # Not for a moment were they asked anew, or out of work.
                states = {pod.state for fleet in fleets for pod in fleet.pods if pod.uid == uid}
                assert states == {PodState.READY}
            names = [await ask(gateway.port, request(chat(), key=gateway.key)) for _ in range(3)]
            assert {came.headers["x-poolgate-pod"] for came in names} == {"chat-0", "chat-1", "chat-2"}
            assert {after[uid].name for uid in before} == {"chat-1", "chat-2"}


async def _collect(gateway: Running, fleets: list[Fleet]) -> None:
    while True:
        fleets.append(await gateway.gateway.fleet.wait_changed())


async def test_the_globs_of_a_pool_decide_anew_about_what_its_pods_have_listed(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod]))
        async with running([], file=file) as gateway:
            assert await asked(gateway) == 200
            others = {"chat": {"models": ["other*"]}}
            await reloaded(gateway, lambda: file.write_text(text_of([pod], pools=others)))
            await fleet_until(gateway, lambda fleet: "m" not in fleet.routes)
            assert await asked(gateway) == 404
            await reloaded(gateway, lambda: file.write_text(text_of([pod])))
            await fleet_until(gateway, lambda fleet: "m" in fleet.routes)
            assert await asked(gateway) == 200


async def test_bounds_tokens_and_what_pods_are_told_change_at_once(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod], upstream={"api_key": "old-key"}))
        async with running([], file=file) as gateway, ops_of(gateway) as ops:
            assert await asked(gateway, user="x" * 2000) == 200
            assert (await ops.get("/status.json")).status_code == 200
            text = text_of(
                [pod],
                server={"max_body_bytes": 1024, "max_upload_bytes": 2048, "ops_token": "t0ken", "drain_seconds": 3},
                upstream={"api_key": "new-key", "connect_seconds": 0.5},
            )
            await reloaded(gateway, lambda: file.write_text(text))
            assert await asked(gateway, user="x" * 2000) == 413
            assert await asked(gateway) == 200
            keys = [re.findall(rb"authorization: Bearer ([a-z-]+)", sent) for sent in pod.requests]
            assert keys == [[b"old-key"], [b"new-key"]]
            assert (await ops.get("/status.json")).status_code == 401
            assert gateway.gateway.drain_seconds == 3
            (only,) = gateway.gateway.fleet.value.pods
            assert gateway.gateway.pools.of(only).connect_seconds == 0.5


def ops_of(gateway: Running) -> httpx2.AsyncClient:
    """A client of the ops port."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway.gateway.ops), base_url="http://ops")


async def test_discovery_by_another_mode_and_other_ports_wait_for_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod]))
        async with running([], file=file) as gateway, ops_of(gateway) as ops:
            await reloaded(gateway, lambda: file.write_text("server: {port: 1}\ndiscovery: {mode: kubernetes}\n"))
            told = (await ops.get("/status.json")).json()
            assert told["config"]["waits_for_restart"] == ["server.port", "discovery.mode", "discovery.pods"]
            assert (told["discovery"]["mode"], len(told["pods"])) == ("static", 1)
            assert await asked(gateway) == 200


@pytest.mark.parametrize("flags", [("--insecure-no-auth", "--port", "0", "--ops-port", "0")])
async def test_the_process_follows_its_file_and_keeps_its_flags(tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod]))
        async with started("serve", "--config", str(file), *flags) as process:
            port = int((await process.said(r"serves on http://[\d.]+:(\d+)"))[1])
            replaced(file, "pools: {chat: {polic: x}}\n")
            await process.said(r"ERROR poolgate\.config: .*:1: pools\.chat\.polic: this key does not exist")
            replaced(file, text_of([pod], server={"port": 1}, models={"new-name": {"to": [{"model": "m"}]}}))
            # The port stands in the flags too, which win: nothing waits for a restart.
            await process.said(r"in force; it differs in models\.new-name\n")
            came = await ask(port, request(chat(model="new-name")))
            assert came.status == 200
            process.signal(signal.SIGINT)
            await process.ended_well()
            assert "until a restart" not in "".join(process.err)


# The keys.

OPENS_WITHIN_SECONDS = 5.0


class Keys:
    """A keys file, and the keys that were made for it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def make(self, **more: Any) -> str:
        """A key whose entry stands in the file now."""
        key_id, key = new_key()
        add_key(self.file, {"id": key_id, "sha256": digest(key.encode()), "team": "acme", **more})
        return key

    def revoke(self, key: str) -> None:
        disable_key(self.file, key[6:14])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.yaml")


async def status(gateway: Running, key: str, **more: Any) -> int:
    """The status of one answer to this key."""
    return (await ask(gateway.port, request(chat(**more), key=key))).status


async def test_a_key_that_is_added_opens_and_one_that_is_revoked_does_not(keys: Keys) -> None:
    first = keys.make()
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=keys.file) as gateway, ops_of(gateway) as ops:
        second, _ = new_key()
        assert [await status(gateway, key) for key in (first, second)] == [200, 401]
        made: list[str] = []
        await reloaded(gateway, lambda: made.append(keys.make(models=["other"])))
        assert [await status(gateway, key) for key in (first, *made)] == [200, 403]
        await reloaded(gateway, lambda: keys.revoke(first))
        refused = await ask(gateway.port, request(chat(), key=first))
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert await status(gateway, *made) == 403
        assert gateway.sample("poolgate_config_reloads_total", result="applied") == 2
        assert (await ops.get("/status.json")).json()["config"]["error"] == ""


async def test_rings_of_keys_that_were_replaced_are_let_go(keys: Keys) -> None:
    """Though what was decided on known heads was decided by them."""
    key = keys.make()
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=keys.file) as gateway:
        before = []
        for _ in range(3):
            ring = gateway.gateway.reception.keys
            assert ring is not None
            before.append(weakref.ref(ring))
            del ring
            assert [await status(gateway, key) for _ in range(2)] == [200, 200]
            assert gateway.gateway.edge.known
            await reloaded(gateway, lambda: keys.make())
        await gateway.settled()
        gc.collect()
        assert [ring() for ring in before] == [None] * 3


async def test_a_stream_of_a_key_that_is_revoked_goes_on_to_its_end(keys: Keys) -> None:
    key = keys.make()
    go_on = asyncio.Event()
    script: list[Step] = [STREAM_HEAD, chunk(TOKEN), go_on, chunk(FINAL), chunk(DONE), b"0\r\n\r\n"]
    async with ScriptedPod([script]) as pod, running([pod], keys_file=keys.file) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True), key=key))
        begun = await client.reader.readuntil(TOKEN)
        await reloaded(gateway, lambda: keys.revoke(key))
        assert await status(gateway, key) == 401
        go_on.set()
        came = await client.answer(begun=begun)
        assert (came.clean, came.body.endswith(FINAL + DONE)) == (True, True)
        # The connection lives on, and opens nothing more.
        client.send(request(chat(), key=key))
        assert (await client.answer()).status == 401
        client.leave()
        await gateway.settled()
        assert len(pod.requests) == 1


@pytest.mark.parametrize("text", ["keys: [\n", "", "keys: [{id: a}]\n", None], ids=["cut", "empty", "fault", "gone"])
async def test_a_keys_file_that_cannot_be_used_changes_nothing_and_the_gateway_says_so(
    keys: Keys, text: str | None
) -> None:
    key = keys.make()
    good = keys.file.read_text()
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=keys.file) as gateway, ops_of(gateway) as ops:
        await reloaded(gateway, keys.file.unlink if text is None else lambda: keys.file.write_text(text))
        assert gateway.sample("poolgate_config_reloads_total", result="refused") == 1
        told = (await ops.get("/status.json")).json()["config"]
        assert str(keys.file) in told["error"]
        assert await status(gateway, key) == 200
        await reloaded(gateway, lambda: keys.file.write_text(good))
        assert (await ops.get("/status.json")).json()["config"]["error"] == ""
        assert await status(gateway, key) == 200
        await reloaded(gateway, lambda: keys.file.write_text("keys: []\n"))
        assert await status(gateway, key) == 401


async def test_keys_are_followed_through_the_symlinks_of_a_secret(tmp_path: Path) -> None:
    def publish(name: str) -> Keys:
        (tmp_path / name).mkdir()
        keys = Keys(tmp_path / name / "keys.yaml")
        made.append(keys.make())
        (tmp_path / "..data_tmp").symlink_to(name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        return keys

    made: list[str] = []
    publish("..2026_01")
    file = tmp_path / "keys.yaml"
    file.symlink_to("..data/keys.yaml")
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=file) as gateway:
        assert await status(gateway, made[0]) == 200
        await reloaded(gateway, lambda: publish("..2026_02"))
        assert [await status(gateway, key) for key in made] == [401, 200]


async def test_a_key_is_rotated_while_both_are_good(keys: Keys) -> None:
    """At no moment is the team without a key that opens."""
    old = keys.make()
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=keys.file) as gateway:
        made: list[str] = []
        await reloaded(gateway, lambda: made.append(keys.make()))
        (new,) = made
        assert [await status(gateway, key) for key in (old, new)] == [200, 200]
        await reloaded(gateway, lambda: keys.revoke(old))
        assert [await status(gateway, key) for key in (old, new)] == [401, 200]
        lines = gateway.lines()
        assert [(line["tenant"], line["status"]) for line in lines] == [
            ("acme", 200),
            ("acme", 200),
            (None, 401),
            ("acme", 200),
        ]
        assert (lines[0]["key_id"], lines[1]["key_id"]) == (old[6:14], new[6:14])


async def test_who_calls_stays_the_same_object_while_other_keys_come_and_go(keys: Keys) -> None:
    key = keys.make(concurrent=1)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], keys_file=keys.file) as gateway:
        ring = gateway.gateway.reception.keys
        assert ring is not None
        before = ring.tenant_of(key.encode())
        await reloaded(gateway, lambda: keys.make())
        assert gateway.gateway.reception.keys is not ring
        assert gateway.gateway.reception.keys is not None
        assert gateway.gateway.reception.keys.tenant_of(key.encode()) is before


async def test_another_keys_file_waits_for_a_restart_and_the_one_of_the_start_is_followed_on(
    tmp_path: Path, keys: Keys
) -> None:
    key, elsewhere = keys.make(), Keys(tmp_path / "elsewhere.yaml")
    other_key = elsewhere.make()
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod], auth={"keys_file": str(keys.file)}))
        assert load_config(file, {}).auth.keys_file == keys.file
        async with running([], file=file, keys_file=keys.file) as gateway, ops_of(gateway) as ops:
            there = {"keys_file": str(elsewhere.file)}
            await reloaded(gateway, lambda: file.write_text(text_of([pod], auth=there)))
            assert [await status(gateway, each) for each in (key, other_key)] == [200, 401]
            await reloaded(gateway, lambda: keys.revoke(key))
            assert await status(gateway, key) == 401
            told = (await ops.get("/status.json")).json()["config"]
            assert told["waits_for_restart"] == ["auth.keys_file"]


async def command(*arguments: str) -> str:
    """What a command of ours prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments), cwd=ROOT, env=environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_within_five_seconds_a_process_lets_a_new_key_in_and_a_revoked_one_no_more(keys: Keys) -> None:
    """By the commands, at the pace of a real gateway."""
    key = keys.make()
    config = keys.file.with_name("poolgate.yaml")

    async def until(port: int, key: str, wanted: int) -> None:
        async with within(OPENS_WITHIN_SECONDS):
            while (await ask(port, request(chat(), key=key))).status != wanted:
                await asyncio.sleep(0.05)

    async with ScriptedPod([[GOOD]]) as pod:
        config.write_text(text_of([pod], auth={"keys_file": str(keys.file)}))
        async with started("serve", "--config", str(config), "--port", "0", "--ops-port", "0") as process:
            port = int((await process.said(r"serves on http://[\d.]+:(\d+)"))[1])
            await until(port, key, 200)
            made = json.loads(await command("keys", "create", "--team", "new", "--file", str(keys.file), "--json"))
            await until(port, made["key"], 200)
            await command("keys", "revoke", key[6:14], "--file", str(keys.file))
            await until(port, key, 401)
            await until(port, made["key"], 200)
            keys.file.write_text("keys: [\n")
            await process.said(r"ERROR poolgate\.config: a change of the keys is refused")
            await until(port, made["key"], 200)
            assert made["key"] not in "".join(process.err)
            process.signal(signal.SIGINT)
            await process.ended_well()
