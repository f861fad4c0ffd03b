"""What a call of the limits costs Redis: `python -m loadtest.scale.counting`, a few seconds, without a gateway.

A real server of its protocol runs `take.lua`, asked by a client of our own that waits for each answer, as a replica
does. Two things vary, one at a time: how many requests a call brings, and on how many replicas the caller has something
running: the count of what runs is a hash with a field for each. The slopes are the figures: CPU by the server's own
threads, memory by what it says of the keys.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from struct import unpack_from
from typing import Any, Final

from redis import Redis as Client

from gateway.limits.batch import PREFIX, Batch, Request
from gateway.limits.bucket import MINUTE, Bucket, Costs, Counts
from gateway.limits.leases import Leases
from loadtest.bench.accounting import cpu_of, difference, process_tree
from loadtest.bench.limits import HOST, redis_server

KEEP_US: Final = 3600e6
NEVER: Final = 1e18
COSTS: Final[Costs] = (1, 100, 256, 356)
REQUESTS: Final = (1, 8, 32)
REPLICAS: Final = (1, 32, 128)
FOR_LONG_US: Final = 1e12
ROUNDS: Final = 5
CALLS: Final = 300


def buckets_of(caller: int, period: float = MINUTE) -> Sequence[Bucket]:
    """Three limits, so large that nothing is refused. A bucket has a key until it is full again."""
    digest = b"%029x" % caller  # as long as the gateway's
    return (
        Bucket(b"r" + digest, "requests", 10_000_000, period),
        Bucket(b"t" + digest, "tokens", 1_000_000_000, period, Counts.BOTH),
        Bucket(b"c" + digest, "concurrent", 1_000_000, 0.0),
    )


@dataclass(frozen=True, slots=True)
class Server:
    """Asks one server as a replica does."""

    client: Any  # redis leaves its answers without a type
    pid: int
    script: str

    def ask(self, replica: str, callers: Sequence[int], period: float = MINUTE) -> None:
        """One call, a request of each caller in it."""
        batch = Batch(Leases(lambda: None), [Request(buckets_of(caller, period), COSTS) for caller in callers])
        keys = batch.keys
        answer = self.client.execute_command(
            "EVALSHA", self.script, len(keys), *keys, replica, batch.asked(KEEP_US, NEVER)
        )
        unpack_from("<d", answer)  # an error would be no bytes

    def memory_bytes(self, caller: int) -> float:
        """Of the caller's buckets."""
        keys = (PREFIX + bucket.key for bucket in buckets_of(caller))
        return float(sum(self.client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys))


def cpu_us(server: Server, replicas: int, requests: int, calls: int) -> tuple[float, float]:
    """(µs of the server, ms until the answer) of a call that brings requests of so many callers, each of whom has
    something running on so many replicas."""
    callers = range(1000 * replicas, 1000 * replicas + requests)
    for replica in range(replicas):
        server.ask(f"{replica:016x}", callers)
    tree = process_tree(server.pid)
    before, began = cpu_of(tree), time.perf_counter()
    for _ in range(calls):
        server.ask(f"{0:016x}", callers)
    waited = time.perf_counter() - began
    return difference(before, cpu_of(tree)).cpu_ns / 1000 / calls, waited * 1000 / calls


def memory_bytes(server: Server, replicas: int) -> float:
    """Of a caller that has something running on so many replicas, and nothing of whose rates is back yet."""
    caller = 2_000_000 + replicas
    for replica in range(replicas):
        server.ask(f"{replica:016x}", [caller], FOR_LONG_US)
    return server.memory_bytes(caller)


def slope(points: Mapping[int, float]) -> float:
    """Of the line from the first to the last: what one more of them costs."""
    (least, low), *_, (most, high) = points.items()
    return (high - low) / (most - least)


def measured(server: Server, rounds: int = ROUNDS, calls: int = CALLS) -> dict[str, float]:
    """The figures, by their names in `figures.json`. Rounds take turns; medians."""
    by_requests: dict[int, list[float]] = {each: [] for each in REQUESTS}
    by_replicas: dict[int, list[float]] = {each: [] for each in REPLICAS}
    waits = []
    for _ in range(rounds):
        for requests, spent in by_requests.items():
            cpu, wait = cpu_us(server, 1, requests, calls)
            spent.append(cpu)
            if requests == 1:
                waits.append(wait)
        for replicas, spent in by_replicas.items():
            spent.append(cpu_us(server, replicas, 1, calls)[0])
    per_request = slope({each: statistics.median(spent) for each, spent in by_requests.items()})
    memory = {each: memory_bytes(server, each) for each in REPLICAS}
    return {
        "redis_call_us": statistics.median(by_requests[1]) - per_request,
        "redis_request_us": per_request,
        "redis_replica_us": slope({each: statistics.median(spent) for each, spent in by_replicas.items()}),
        "redis_caller_bytes": memory[1],
        "redis_replica_bytes": slope(memory),
        "redis_reply_ms": min(waits),  # time of the clock: what others take of the machine is in it
    }


def main() -> int:
    # The server has a core to itself, as in the bench.
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as started:
        os.sched_setaffinity(0, {cores[-1]})
        client: Any = Client(host=HOST, port=started.port)
        script = client.script_load(files("gateway.limits").joinpath("take.lua").read_bytes())
        told = measured(Server(client, started.pid, script))
        client.close()
    print(json.dumps({name: round(value, 4) for name, value in told.items()}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
