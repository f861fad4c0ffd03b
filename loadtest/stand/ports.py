"""A port that stays somebody's own, though for a while nobody listens there."""

import random
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 18_000


def lasting_port() -> int:
    """Below those that the kernel gives to outgoing connections: none of them takes it between a stop and a start."""
    end = min(int(_RANGE.read_text().split()[0]), 32_000) if _RANGE.exists() else 32_000
    for _ in range(1_000):
        # Not the scenario's chance: which port it is does not belong to what is measured.
        port = random.randrange(_LOWEST, max(end, _LOWEST + 1_000))
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port below those of outgoing connections")
