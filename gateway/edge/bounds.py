"""How much, and for how long: every bound of the public port."""

import resource
from dataclasses import dataclass

MOST_CONNECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a connection may do before a request exists, and all of them together."""

    max_head_bytes: int = 32_768
    max_url_bytes: int = 8_192
    max_line_bytes: int = 8_192
    """Of one header, its name and its value."""
    max_header_count: int = 100
    head_seconds: float = 10.0
    """From the first byte of a head to its last; on a new connection, from the connection."""
    body_seconds: float = 120.0
    body_grace_seconds: float = 10.0
    min_body_rate: int = 1_024
    """Bytes a second that a body must bring on average, once the grace is over."""
    max_bytes_behind: int = 65_536
    """What is read, and thrown away, behind a request that is being served; then nothing more is read until its end."""
    idle_seconds: float = 75.0
    """Between two requests: longer than the usual load balancer's 60 s, so that it closes first."""
    stalled_seconds: float = 30.0
    """How long a client may leave a full buffer unread."""
    linger_seconds: float = 2.0
    """How long bytes of a refused body are read and thrown away, so that the client can read the refusal."""
    write_buffer_bytes: int = 32_768
    """When a client has left so much unread its pod is not read any more. The read that brought it there comes on top
    (`PodPool.receive_bytes`): 128 KiB in all."""
    max_connections: int | None = None
    """None: half of what the process may open, since a stream needs another one to its pod; 10,000 at most."""
    spare_seconds: float = 1.0
    """When all connections are taken, one that has waited so long for a request makes room for a new one."""
    max_buffered_body_bytes: int = 512 << 20
    """All bodies together; less where the container's memory is small (see `app`)."""

    def most_connections(self) -> int:
        """`max_connections`, or what stands for it now."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        half = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, soft // 2)
        return self.max_connections or min(MOST_CONNECTIONS, half)

    def most_sockets(self) -> int:
        """A few more, to tell them why they cannot come in."""
        return self.most_connections() * 9 // 8 + 1
