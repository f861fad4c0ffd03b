"""The port to the client: one request and its answer, as the pipeline sees them.

Two sides implement it, `edge.exchange` and `api.inference`. Nothing here waits: a side that cannot send at once
keeps a bounded buffer and pauses the `Source` of the bytes until it is empty again.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.pipeline.proxies import HasPeer

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values, as they stand in an answer's head."""


class Head(NamedTuple):
    """What is known of a request before its body. Header names are lower case, the first of each name counts."""

    method: bytes
    target: bytes
    """Path and query, raw."""
    fields: dict[bytes, bytes]
    repeated: frozenset[bytes]
    """Names that came more than once; usually empty."""
    received_at: float
    """Monotonic seconds."""
    connection: HasPeer | None = None
    """That it came on."""


class Source(Protocol):
    """Where an answer's bytes come from."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Exchange(Protocol):
    """One answer to one client."""

    source: Source | None
    """Paused while the client reads slower than bytes come."""
    write_chunk: Callable[[bytes], None] | None
    """Takes whole HTTP chunks, as they are to be sent. None while the body, or this side of it, is not framed so."""

    @property
    def paused(self) -> bool:
        """The client is behind already: a source that is set now must pause itself."""
        ...

    @property
    def client_gone(self) -> bool:
        """The client closed its connection, or its half of it."""
        ...

    def start(
        self,
        status: int,
        content_type: bytes,
        length: int | None,
        headers: Headers = (),
    ) -> None:
        """The answer's head. `length` None: not known, the body is framed as it comes."""
        ...

    def whole(self, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
        """All of a 200 that was not begun: its head and its body."""
        ...

    def write(self, data: bytes) -> None:
        """A piece of body, sent in the same turn of the loop."""
        ...

    def finish(self, data: bytes = b"") -> None:
        """The last piece, and the clean end of the body."""
        ...

    def abort(self) -> None:
        """Close the connection without a clean end: the body is not whole."""
        ...
