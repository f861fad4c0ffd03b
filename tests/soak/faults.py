"""What befalls the gateways' surroundings, one thing at a time, each drawn and timed by chance.

A fault is a coroutine that makes it, waits, and mends it; it says whether it had an effect: that something happened
which does not happen by itself. One without is no fault, and a soak full of them proves nothing.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from gateway.limits.keys import digest, new_key
from loadtest.invariants.checker import Checker
from loadtest.invariants.events import LimitsLost
from tests.apiserver.server import ApiServer
from tests.apiserver.statuses import failed_watch
from tests.discovering import asked
from tests.soak.callers import OPEN_KEY, Book, keys_file
from tests.soak.pods import SEEN_SECONDS, Fleet, Pod
from tests.soak.replicas import Replicas
from tests.valkey import Valkey

STALLED_SECONDS = 3
"""The pools' deadlines of silence."""
COLD_SECONDS = 45.0
"""So long after it came back or failed a pod may have less than its share: ejection, then slow start."""


@dataclass
class Stage:
    """What faults may touch."""

    chance: Random
    checker: Checker
    clock: Callable[[], float]
    server: ApiServer
    fleet: Fleet
    replicas: Replicas
    valkey: Valkey
    book: Book
    config: Path
    keys: Path
    entries: list[dict[str, Any]]
    """Of the keys file."""
    canaries: list[str]
    """What must stand nowhere; the checker looks at this very list."""
    notes: list[str] = field(default_factory=list)

    def chat_pod(self) -> Pod:
        """One of the two that were left alone for longest: one that is cold gets few requests, and a fault there is
        none."""
        pods = sorted((pod for pod in self.fleet.pods if pod.pool == "chat"), key=lambda pod: pod.disturbed_at)
        pod = self.chance.choice(pods[:2])
        pod.disturbed_at = self.clock()
        return pod

    def endings(self, *names: str) -> int:
        """How many requests have ended with one of these codes so far."""
        return sum(count for ending, count in self.checker.endings.items() if any(name in ending for name in names))


class Fault(NamedTuple):
    """`run` says whether it had an effect."""

    run: Callable[[Stage], Awaitable[bool]]
    cold: bool = True
    """The pods' shares are uneven for a while after it."""


# Pods: the process.


async def kill(stage: Stage) -> bool:
    """SIGKILL under load; a while later the kubelet has a new process there."""
    pod, before = stage.chat_pod(), stage.endings("upstream_reset", "upstream_truncated")
    await pod.kill()
    pod.crash()
    await asyncio.sleep(stage.chance.uniform(0.5, 2))
    await pod.start()
    pod.recover()
    return stage.endings("upstream_reset", "upstream_truncated") > before or pod.tap.refused > 0


async def freeze(stage: Stage) -> bool:
    """SIGSTOP for longer than the deadline of silence, then SIGCONT."""
    pod, before = stage.chat_pod(), stage.endings("upstream_stalled", "timeout", "upstream_reset")
    pod.signal(signal.SIGSTOP)
    await asyncio.sleep(STALLED_SECONDS + stage.chance.uniform(1, 3))
    pod.signal(signal.SIGCONT)
    return stage.endings("upstream_stalled", "timeout", "upstream_reset") > before


async def engine_death(stage: Stage) -> bool:
    """The engine dies under load, and the process with it."""
    pod = stage.chat_pod()
    await pod.set_fault(kind="engine_death", exit_seconds=1.0)
    await pod.ended()
    pod.crash()
    await asyncio.sleep(stage.chance.uniform(0.2, 1))
    await pod.start()
    pod.recover()
    return True


async def drain(stage: Stage) -> bool:
    """A pod is deleted as the kubelet does it, and a new one comes in its place."""
    pod = stage.chat_pod()
    pod.delete()
    await asyncio.sleep(SEEN_SECONDS + 0.5)
    pod.signal(signal.SIGTERM)
    code = await pod.ended()
    pod.vanish()
    await pod.start()
    pod.appear()
    return code == 0


def _misbehaves(seconds: float = 0.0, **fault: Any) -> Fault:
    """Some requests of one pod meet this fault; then `seconds` until the deadlines of all have passed."""

    async def run(stage: Stage) -> bool:
        pod, count = stage.chat_pod(), stage.chance.randrange(2, 6)
        await pod.set_fault(count=count, **fault)
        for _ in range(20):
            await asyncio.sleep(0.25)
            if not (await pod.told())["faults"]:
                break
        left: int = sum(held["left"] for held in (await pod.told())["faults"])
        await pod.clear_faults()
        await asyncio.sleep(seconds)
        return left < count

    return Fault(run)


# Pods: what the cluster says.


def _ready(stage: Stage) -> int:
    """Pods of the pool that are ready, as each gateway counts them: the fewest."""
    found = [
        replica.value("poolgate_pods", 'pool="chat"', 'state="ready"')
        + replica.value("poolgate_pods", 'pool="chat"', 'state="ejected"')
        for replica in stage.replicas.running
    ]
    return int(min(found))


async def _until_ready(stage: Stage, count: int) -> None:
    async with asyncio.timeout(20):
        while _ready(stage) != count:
            await stage.replicas.scrape()
            await asyncio.sleep(0.1)


def _places(stage: Stage) -> int:
    return sum(pod.pool == "chat" for pod in stage.fleet.pods)


async def not_ready(stage: Stage) -> bool:
    """A readiness probe fails, and succeeds again."""
    pod = stage.chat_pod()
    pod.become_unready()
    await _until_ready(stage, _places(stage) - 1)
    await asyncio.sleep(stage.chance.uniform(0.5, 2))
    pod.recover()
    await _until_ready(stage, _places(stage))
    return True


async def vanish(stage: Stage) -> bool:
    """The object is gone at once, though the process goes on; later it is there again, under a new name."""
    pod = stage.chat_pod()
    pod.vanish()
    await _until_ready(stage, _places(stage) - 1)
    pod.appear()
    await _until_ready(stage, _places(stage))
    return True


# The API server.


async def watch_ends(stage: Stage) -> bool:
    before = len(asked(stage.server, "watch"))
    stage.server.end_watches()
    await stage.server.until(lambda: len(asked(stage.server, "watch")) > before, 10)
    return True


async def watch_expires(stage: Stage) -> bool:
    """410 on a watch: a full list anew."""
    before = stage.replicas.total("poolgate_discovery_relists_total")
    stage.server.answer_with(failed_watch(), "watch", times=len(stage.replicas.running))
    stage.server.end_watches()
    async with asyncio.timeout(15):
        while stage.replicas.total("poolgate_discovery_relists_total") <= before:
            await stage.replicas.scrape()
            await asyncio.sleep(0.1)
    stage.server.heal()
    return True


async def api_is_silent(stage: Stage) -> bool:
    """Half-open: nothing is said, and what happens meanwhile is seen when it thaws."""
    pod = stage.chat_pod()
    stage.server.freeze()
    pod.become_unready(known_by=float("inf"))
    await asyncio.sleep(stage.chance.uniform(1, 4))
    await stage.replicas.scrape()
    unseen = _ready(stage) == _places(stage)
    stage.server.thaw()
    pod.mark("not_ready")
    await _until_ready(stage, _places(stage) - 1)
    pod.recover()
    await _until_ready(stage, _places(stage))
    return unseen


async def api_is_away(stage: Stage) -> bool:
    """Nobody listens for some seconds; a pod vanishes meanwhile and another one is there when it is back."""
    pod, before = stage.chat_pod(), stage.replicas.total("poolgate_discovery_relists_total")
    await stage.server.kill()
    pod.vanish(known_by=float("inf"))
    await asyncio.sleep(5)
    pod.appear()
    await stage.server.restart()
    async with asyncio.timeout(30):
        while stage.replicas.total("poolgate_discovery_relists_total") <= before:
            await stage.replicas.scrape()
            await asyncio.sleep(0.2)
    await _until_ready(stage, _places(stage))
    return True


# What replicas share.


async def _until_counted(stage: Stage, mode: str) -> None:
    await stage.replicas.until(lambda replica: replica.value("poolgate_limit_mode", f'mode="{mode}"') == 1)


async def valkey_is_silent(stage: Stage) -> bool:
    """SIGSTOP: connections stay, answers stay out."""
    stage.checker.hear(LimitsLost(stage.clock(), len(stage.replicas.running)))
    stage.valkey.pause()
    await _until_counted(stage, "local")
    await asyncio.sleep(stage.chance.uniform(0.5, 2))
    stage.valkey.resume()
    await _until_counted(stage, "redis")
    return True


async def valkey_is_killed(stage: Stage) -> bool:
    """SIGKILL, and a new one that knows nothing."""
    stage.checker.hear(LimitsLost(stage.clock(), len(stage.replicas.running)))
    await asyncio.to_thread(stage.valkey.kill)
    await _until_counted(stage, "local")
    stage.checker.hear(LimitsLost(stage.clock(), len(stage.replicas.running)))
    await stage.valkey.start()
    await _until_counted(stage, "redis")
    return True


async def valkey_forgets_scripts(stage: Stage) -> bool:
    """They are sent again, by the first who misses them."""

    def cached() -> int:
        return int(stage.valkey.client.info("memory")["number_of_cached_scripts"])

    stage.valkey.forget_scripts()
    forgotten = cached() == 0
    async with asyncio.timeout(10):
        while not cached():
            await asyncio.sleep(0.1)
    return forgotten


# The gateways themselves.


async def replace_replica(stage: Stage) -> bool:
    """A rolling update of the youngest replica: the others are there from beginning to end."""
    old = stage.replicas.running[-1]
    await stage.replicas.add()
    code = await stage.replicas.remove(old)
    stage.checker.forget_gateway(old.name)
    if code:
        stage.notes.append(f"{old.name} ended with {code}")
    return True


async def invalid_config(stage: Stage) -> bool:
    """A file that means nothing is refused, and one that does is taken."""
    good = stage.config.read_text()
    stage.config.write_text(good.replace('"pools"', '"pols"'))
    await stage.replicas.until(lambda replica: replica.value("poolgate_config_refused") == 1)
    stage.config.write_text(good)
    await stage.replicas.until(lambda replica: replica.value("poolgate_config_refused") == 0)
    return True


async def rotate_key(stage: Stage) -> bool:
    """A new key beside the old one; callers take it; the old one opens nothing any more."""

    async def applied() -> None:
        stage.keys.write_text(keys_file(stage.entries))
        wanted = {
            replica.name: replica.value("poolgate_config_reloads_total", 'result="applied"') + 1
            for replica in stage.replicas.running
        }
        await stage.replicas.until(
            lambda replica: replica.value("poolgate_config_reloads_total", 'result="applied"') >= wanted[replica.name]
        )

    old = next(entry for entry in stage.entries if entry["team"] == "open")
    key_id, key = new_key()
    new = old | {"id": key_id, "sha256": digest(key.encode())}
    stage.canaries.append(key)
    stage.entries.append(new)
    await applied()
    stage.book.keys[OPEN_KEY] = key
    # Whoever has read the old key has sent its request by then.
    await asyncio.sleep(0.5)
    stage.entries.remove(old)
    await applied()
    return True


FAULTS: Mapping[str, Fault] = {
    "a pod is killed": Fault(kill),
    "a pod stands still": Fault(freeze),
    "an engine dies": Fault(engine_death),
    "a pod drains": Fault(drain),
    "a stall": _misbehaves(STALLED_SECONDS + 1.0, kind="stall", after=3),
    "no answer": _misbehaves(STALLED_SECONDS + 1.0, kind="never_answer"),
    "a drip": _misbehaves(3.0, kind="drip", seconds_per_token=0.1),
    "a close before the head": _misbehaves(kind="close"),
    "a reset before the head": _misbehaves(kind="reset"),
    "a reset in the middle": _misbehaves(kind="reset", after=3),
    "a cut": _misbehaves(kind="cut", after=3),
    "no end mark": _misbehaves(kind="no_done", after=3),
    "no finish reason": _misbehaves(kind="no_finish"),
    "an error event": _misbehaves(kind="error_event", after=3),
    "an error as first event": _misbehaves(kind="error_event"),
    "no HTTP": _misbehaves(kind="garbage", what="not_http"),
    "a chunk size that lies": _misbehaves(kind="garbage", what="bad_chunk_size"),
    "a body of junk": _misbehaves(kind="garbage", what="junk_body"),
    "busy": _misbehaves(kind="status", status=503, retry_after_seconds=1),
    "a server error": _misbehaves(kind="status", status=500),
    "a sidecar's error": _misbehaves(kind="status", status=502, body="no healthy upstream", content_type="text/plain"),
    "a redirect": _misbehaves(kind="status", status=307, location="http://127.0.0.1:9/"),
    "a pod that shuts down": _misbehaves(kind="draining"),
    "a pod is not ready": Fault(not_ready),
    "a pod vanishes": Fault(vanish),
    "a watch ends": Fault(watch_ends, cold=False),
    "a watch expires": Fault(watch_expires, cold=False),
    "the API server is silent": Fault(api_is_silent),
    "the API server is away": Fault(api_is_away),
    "Valkey is silent": Fault(valkey_is_silent, cold=False),
    "Valkey is killed": Fault(valkey_is_killed, cold=False),
    "Valkey forgets its scripts": Fault(valkey_forgets_scripts, cold=False),
    "a gateway is replaced": Fault(replace_replica, cold=False),
    "an invalid configuration": Fault(invalid_config, cold=False),
    "a key is rotated": Fault(rotate_key, cold=False),
}  # fmt: skip
