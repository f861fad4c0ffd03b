"""Ports that stay somebody's own, though for a while nobody listens there."""

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from loadtest.bench.processes import BenchError

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 18_000
_MOST_TRIES: Final = 1_000


@contextmanager
def lasting_ports(count: int) -> Iterator[Sequence[int]]:
    """Ours until this ends: who asks for a free port meanwhile gets another one, though nobody listens there yet.

    Below those that the kernel gives to outgoing connections: none of them takes one between a stop and a start. On
    each stands a socket that does not listen, bound while it was alone. Only then it lets others in, so a server that
    reuses addresses, as all of ours do, may come and go beside it, and who looks for a free port, as we do here, may
    not. Who connects meanwhile is refused. Raises BenchError where too few are free.
    """
    end = min(int(_RANGE.read_text().split()[0]), 32_000) if _RANGE.exists() else 32_000
    found: list[int] = []
    with ExitStack() as held:
        for _ in range(_MOST_TRIES + count):
            if len(found) == count:
                break
            # Not the scenario's chance: which port it is does not belong to what is measured.
            port = random.randrange(_LOWEST, max(end, _LOWEST + 1_000))
            probe = held.enter_context(closing(socket.socket()))
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.append(port)
        if len(found) < count:
            raise BenchError(
                f"{len(found)} of {count} ports are free from {_LOWEST} on, below those of outgoing connections"
            )
        yield found
