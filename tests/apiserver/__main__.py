"""A cluster for benches, in a process of its own: `python -m tests.apiserver --pods 1000 --kubeconfig FILE ...`.

All pods are ready, bear a label such as `poolgate.dev/pool: bench` and the port as an annotation, and have the
addresses of a network on the loopback, one after the other: `python -m loadtest.bench.backend --all-addresses` answers
for them. Once it listens, one JSON line says where; it serves until SIGTERM.

With `--pool few:3 --pool many:997` there are several pools. The pods of each are a minute older than those of the
next, so that the first pool owns each model name that pods of several pools list.

With `--churn N`, N pods of the last pool lose their readiness at the beginning of each second, all at once, and have it
again half a second later; the next second it is the turn of the next N. So a watcher gets 2 N events a second, in
bursts of N.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Network
from itertools import cycle, islice
from pathlib import Path

from tests.apiserver.cluster import Cluster, Pod
from tests.apiserver.server import ApiServer

POOL_LABEL = "poolgate.dev/pool"
PORT_ANNOTATION = "poolgate.dev/port"
POOL = "bench"


def fill(
    cluster: Cluster, pools: Sequence[tuple[str, int]], namespace: str, network: IPv4Network, port: int
) -> list[list[Pod]]:
    """The ready pods of each pool: `pools` says its name and how many. The network must have an address for each."""
    addresses = network.hosts()
    now = cluster.now
    filled = []
    for place, (pool, count) in enumerate(pools):
        # Of several pools that list a model, the one with the oldest pod has it.
        created = now() - timedelta(minutes=len(pools) - 1 - place)
        cluster.now = partial(_same, created)
        filled.append(
            [
                cluster.create_ready(
                    f"{pool}-{number:05}",
                    namespace,
                    ip=str(address),
                    labels={"app": "vllm", POOL_LABEL: pool},
                    annotations={PORT_ANNOTATION: str(port)},
                    owner=pool,
                )
                for number, address in enumerate(islice(addresses, count))
            ]
        )
    cluster.now = now
    return filled


def _same(moment: datetime) -> datetime:
    return moment


def turns(pods: Sequence[Pod], size: int) -> Iterator[list[Pod]]:
    """For ever `size` pods, each time the next ones."""
    endless = cycle(pods)
    while True:
        yield list(islice(endless, size))


async def churn(pods: Sequence[Pod], size: int) -> None:
    """For ever. A burst is one step of the event loop: it is in the log before a watcher hears of its first."""
    loop = asyncio.get_running_loop()
    for second, chosen in enumerate(turns(pods, size), int(loop.time()) + 1):
        await asyncio.sleep(second - loop.time())
        for pod in chosen:
            pod.become_unready()
        await asyncio.sleep(second + 0.5 - loop.time())
        for pod in chosen:
            pod.become_ready()


async def serve(asked: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with ApiServer() as server:
        *_, last = fill(server.cluster, asked.pool, asked.namespace, asked.network, asked.port_of_pods)
        asked.kubeconfig.write_text(server.kubeconfig(namespace=asked.namespace))
        print(json.dumps({"url": server.url, "kubeconfig": str(asked.kubeconfig)}), flush=True)
        async with asyncio.TaskGroup() as tasks:
            churning = tasks.create_task(churn(last, asked.churn)) if asked.churn else None
            await stopped.wait()
            if churning is not None:
                churning.cancel()


def size_of_pool(text: str) -> tuple[str, int]:
    """`few:3` as a name and a number."""
    name, _, count = text.partition(":")
    if not name or int(count) < 1:
        raise ValueError(text)
    return name, int(count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.apiserver", description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=1000, help=f"how many, in the pool {POOL}")
    parser.add_argument(
        "--pool",
        type=size_of_pool,
        action="append",
        metavar="NAME:N",
        help="that many pods in that pool; may be repeated",
    )
    parser.add_argument("--namespace", default="vllm", help="where they are")
    parser.add_argument("--port-of-pods", type=int, required=True, help="their annotated port")
    parser.add_argument("--network", type=IPv4Network, default="127.1.0.0/16", help="where their addresses are from")
    parser.add_argument(
        "--churn", type=int, default=0, metavar="N", help="pods of the last pool whose readiness flips, each second"
    )
    parser.add_argument("--kubeconfig", type=Path, required=True, metavar="FILE", help="is written")
    asked = parser.parse_args()
    asked.pool = asked.pool or [(POOL, asked.pods)]
    pods, last = sum(count for _, count in asked.pool), asked.pool[-1][1]
    if pods > asked.network.num_addresses - 2:
        parser.error(f"--network {asked.network} has no {pods} addresses for --pods")
    if not 0 <= asked.churn <= last:
        parser.error(f"--churn {asked.churn}: from 0 to the {last} pods of the last pool")
    asyncio.run(serve(asked))


if __name__ == "__main__":
    main()
