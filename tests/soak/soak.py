"""One soak: everything started, traffic and faults for so long, and what came of it."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from gateway.limits.keys import digest, new_key
from loadtest.invariants import Bounds, Checker
from loadtest.invariants.events import FaultBegan, FaultEnded, Text
from tests.apiserver.server import ApiServer
from tests.discovering import HOME, NAMESPACE, kubeconfig
from tests.running import NO_LIMITS
from tests.soak.callers import (
    BAD_KEY,
    CANARY,
    CHAT_MODEL,
    EMBEDDING_MODEL,
    OPEN_KEY,
    TIGHT_KEY,
    Book,
    Callers,
    keys_file,
)
from tests.soak.faults import COLD_SECONDS, FAULTS, STALLED_SECONDS, Stage
from tests.soak.pods import Fleet
from tests.soak.replicas import Replicas, replicas
from tests.soak.resting import Rest, percentile, witness
from tests.valkey import Valkey

TIGHT_PER_MINUTE = 60
ABORT_SECONDS = 1.0
"""I10 says 0.25 s; the machine is shared with everything else that runs here."""
RECOVERY_SECONDS = 10.0
LATE_SHARE = 0.5
FAULT_TRIES = 3
"""A fault may meet a pod that has nothing to do at that moment: then it is made once more, at whichever pod it is."""
QUIET_SECONDS = 20.0
"""Within so long all is at rest when nobody asks any more."""
POOL = {
    "ttft_seconds": STALLED_SECONDS,
    "idle_seconds": STALLED_SECONDS,
    "response_seconds": STALLED_SECONDS + 2,
    "stream_seconds": 60,
}


@dataclass(frozen=True)
class Plan:
    """How long, how much, and which faults."""

    seed: int
    seconds: float
    rps: float = 50.0
    replicas: int = 3
    chat_pods: int = 4
    embedding_pods: int = 2
    every_seconds: float = 30.0
    """From the beginning of a fault to that of the next; or as soon as it is over, if it takes longer."""
    calm_seconds: float = 75.0
    """Without faults, at the end: pods are warm again, and their shares can be judged."""
    faults: Sequence[str] = tuple(FAULTS)
    lag_seconds: float = 0.05
    most_bytes_per_request: float = 64.0
    """By which memory may grow. The least that can be kept of a request is an entry in a dict, of about a hundred."""

    @property
    def most_kib_per_minute(self) -> float:
        """The same, of one gateway."""
        return self.most_bytes_per_request * self.rps * 60 / self.replicas / 1024


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    checker: Checker
    faults: dict[str, list[bool]] = field(default_factory=dict)
    """By name, whether each time it had an effect."""
    kinds: Counter[str] = field(default_factory=Counter)
    rests: list[Rest] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What is wrong beside violations of the invariants."""
    shares_judged: int = 0
    machine_lags: list[float] = field(default_factory=list)
    """How late a process woke that only sleeps: the latest of each second."""

    @property
    def passed(self) -> bool:
        return not (self.checker.counts or self.wrong)

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.plan.seed,
            "seconds": self.plan.seconds,
            "rps": self.plan.rps,
            "passed": self.passed,
            "violations": dict(self.checker.counts),
            "first_violations": [str(violation) for violation in self.checker.violations[:200]],
            "wrong": self.wrong,
            "requests": dict(self.kinds),
            "endings": dict(self.checker.endings),
            "events": dict(self.checker.heard),
            "faults": {name: {"times": len(each), "with_effect": sum(each)} for name, each in self.faults.items()},
            "shares_judged": self.shares_judged,
            "machine_lag_p99_ms": percentile(self.machine_lags, 0.99) * 1e3,
            "gateways": [
                {
                    "name": rest.gateway,
                    "rss_kib": rest.rss_kib,
                    "kib_per_minute": rest.slope.per_minute,
                    "at_least_kib_per_minute": rest.slope.lowest if rest.slope.windows > 2 else None,
                    "windows": rest.slope.windows,
                    "descriptors": rest.descriptors,
                    "lag_p99_ms": rest.lag_p99_seconds * 1e3,
                }
                for rest in self.rests
            ],
        }


async def soak(plan: Plan, say: Callable[[str], None] = lambda words: None) -> Report:
    """Run it. Raises what the soak itself died of, such as a gateway that does not start."""
    clock = asyncio.get_running_loop().time
    canaries = [CANARY]
    bounds = Bounds(
        abort_seconds=ABORT_SECONDS,
        per_minute={TIGHT_KEY: TIGHT_PER_MINUTE},
        canaries=canaries,
        lag_seconds=plan.lag_seconds,
        late_share=LATE_SHARE,
        recovery_seconds=RECOVERY_SECONDS,
    )
    report = Report(plan, Checker(bounds))
    chance = Random(plan.seed)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            witness(report.checker.hear, clock, report.machine_lags),
            _stage(plan, report.checker, clock, canaries, chance, Path(folder)) as stage,
        ):
            callers = Callers(stage.book, report.checker.hear, clock, Random(chance.random()), plan.rps)
            watching = asyncio.create_task(stage.replicas.watch())
            calling = asyncio.create_task(callers.run())
            try:
                await _suffer(plan, report, stage, clock, say)
                await _stopped(calling)
                async with asyncio.timeout(QUIET_SECONDS):
                    await callers.settled()
            finally:
                callers.close()
                await _stopped(calling)
                await _stopped(watching)
            report.kinds = callers.counts
            await _rest(plan, report, stage, clock)
    return report


async def _suffer(
    plan: Plan, report: Report, stage: Stage, clock: Callable[[], float], say: Callable[[str], None]
) -> None:
    """Faults, until it is time for the calm at the end."""
    hear = report.checker.hear
    begun_at = clock()
    faults_end_at = begun_at + plan.seconds - plan.calm_seconds
    even_from = 0.0
    names: list[str] = []
    await asyncio.sleep(min(5.0, plan.every_seconds))
    while clock() < faults_end_at:
        if not names:
            names = list(plan.faults)
            stage.chance.shuffle(names)
        name = names.pop()
        due = clock() + plan.every_seconds
        hear(FaultBegan(clock(), name))
        had_effect = False
        try:
            for _ in range(FAULT_TRIES):
                if had_effect := await FAULTS[name].run(stage):
                    break
        except TimeoutError:
            report.wrong.append(f"{name}: what was to come of it did not come in time")
        cold = COLD_SECONDS if FAULTS[name].cold else RECOVERY_SECONDS
        even_from = max(even_from, clock() + cold)
        hear(FaultEnded(clock(), name, even_from))
        report.faults.setdefault(name, []).append(had_effect)
        say(f"{clock() - begun_at:6.0f} s  {name}{'' if had_effect else ' (no effect)'}")
        await asyncio.sleep(max(plan.every_seconds / 10, min(due, faults_end_at) - clock()))
    await asyncio.sleep(max(0.0, begun_at + plan.seconds - clock()))


async def _rest(plan: Plan, report: Report, stage: Stage, clock: Callable[[], float]) -> None:
    """Wait until all is at rest, and judge it."""
    checker, running = report.checker, stage.replicas.running
    gauges = ("poolgate_in_flight", "poolgate_pod_in_flight", "poolgate_queue_depth", "poolgate_connections")
    with suppress(TimeoutError):
        await stage.replicas.until(
            lambda replica: not any(replica.value(name) for name in gauges) and _descriptors_are_back(replica),
            QUIET_SECONDS,
        )
    async with asyncio.timeout(QUIET_SECONDS):
        # Lines are written by a thread of the gateway's own, and may come after the count.
        for replica in running:
            while checker.world.line_counts.get(replica.name, 0) < replica.value("poolgate_requests_total"):
                await asyncio.sleep(0.05)
                replica.read()
    checker.hear(Text(clock(), "Valkey's keys", b"\n".join(stage.valkey.names()).decode("latin-1")))
    checker.quiescent(clock())
    report.rests = [Rest.of(replica) for replica in [*stage.replicas.ended, *running]]
    report.wrong += stage.notes
    report.wrong += [
        f"{replica.name} logged:\n{tell}"
        for replica in [*stage.replicas.ended, *running]
        for tell in replica.tracebacks
    ]
    for rest in report.rests[len(stage.replicas.ended) :]:
        report.wrong += rest.wrong(plan.most_kib_per_minute)
    report.wrong += [
        f"{name}: without effect all {len(each)} times" for name, each in report.faults.items() if not any(each)
    ]
    report.shares_judged = sum(getattr(rule, "judged_shares", 0) for rule in checker.rules)


def _descriptors_are_back(replica: Any) -> bool:
    return not Rest.of(replica).wrong(float("inf"))


@asynccontextmanager
async def _stage(
    plan: Plan, checker: Checker, clock: Callable[[], float], canaries: list[str], chance: Random, folder: Path
) -> AsyncIterator[Stage]:
    async with ApiServer() as server, Valkey() as valkey:
        with kubeconfig(server) as file:
            for number in range(plan.replicas):
                labels = {"app.kubernetes.io/name": "poolgate"}
                server.cluster.create_ready(f"gateway-{number}", HOME, labels=labels)
            fleet = await Fleet.start(
                server,
                {
                    "chat": (plan.chat_pods, CHAT_MODEL, ("--shutdown=drain", "--shutdown-timeout=10")),
                    "embedding": (plan.embedding_pods, EMBEDDING_MODEL, ("--task=embed",)),
                },
                checker.hear,
                clock,
            )
            try:
                book, entries = _keys()
                canaries += list(book.keys.values())
                canaries += [f"127.0.0.1:{pod.tap.port}" for pod in fleet.pods]
                config, keys = _written(folder, entries, valkey)
                async with replicas(
                    plan.replicas, config, {"KUBECONFIG": str(file)}, book.doors, checker.hear, clock
                ) as gateways:
                    await _until_they_know(gateways, plan)
                    yield Stage(
                        chance, checker, clock, server, fleet, gateways, valkey, book, config, keys, entries, canaries
                    )
            finally:
                await fleet.close()


async def _until_they_know(gateways: Replicas, plan: Plan) -> None:
    """Each has all pods, and counts in Redis."""
    pods = plan.chat_pods + plan.embedding_pods
    await gateways.scrape()
    await gateways.until(
        lambda replica: (
            replica.value("poolgate_pods", 'state="ready"') == pods
            and replica.value("poolgate_limit_mode", 'mode="redis"') == 1
        )
    )


def _keys() -> tuple[Book, list[dict[str, Any]]]:
    keys, entries = {}, []
    for name in (OPEN_KEY, TIGHT_KEY, BAD_KEY):
        key_id, keys[name] = new_key()
        entry: dict[str, Any] = {"id": key_id, "sha256": digest(keys[name].encode()), "team": name}
        if name == TIGHT_KEY:
            entry["requests_per_minute"] = TIGHT_PER_MINUTE
        if name != BAD_KEY:
            entries.append(entry)
    return Book(keys, []), entries


def _written(folder: Path, entries: list[dict[str, Any]], valkey: Valkey) -> tuple[Path, Path]:
    """(configuration, keys)."""
    config, keys = folder / "poolgate.yaml", folder / "keys.yaml"
    keys.write_text(keys_file(entries))
    settings = {
        "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, "drain_seconds": 20},
        "discovery": {"mode": "kubernetes", "namespaces": [NAMESPACE], "pod_networks": ["127.0.0.0/8"]},
        "pools": {"chat": POOL, "embedding": POOL},
        "auth": {"keys_file": str(keys)},
        "limits": {"redis_url": valkey.url, "default": NO_LIMITS},
    }
    config.write_text(json.dumps(settings, indent=1))
    return config, keys


async def _stopped(task: asyncio.Task[None]) -> None:
    """End it. Raises what it had died of before."""
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
