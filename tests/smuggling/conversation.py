"""What comes back for some bytes on one connection."""

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple

from tests.turns import within

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
QUIET_SECONDS = 0.4
"""A server that has said nothing for so long waits for more. They are turns of this loop: on a machine that has other
things to do, a server of this process has them as well."""


class Said(NamedTuple):
    """All that a server said on a connection, and whether it closed it."""

    statuses: tuple[int, ...]
    """Of its answers, in order; interim ones left out."""
    closed: bool
    port: int
    """Ours: by it a server tells its clients apart."""


async def say(
    port: int, raw: bytes, quiet: float = QUIET_SECONDS, at_work: Callable[[], object] = lambda: False
) -> Said:
    """Send these bytes, and hear until the server closes, or is quiet. `at_work`: it is known to have something to say,
    and to wait for another process until it can."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    own = writer.get_extra_info("sockname")[1]
    writer.write(raw)
    said, closed = b"", False
    try:
        while not closed:
            try:
                async with within(quiet):
                    data = await reader.read(65536)
            except TimeoutError:
                if at_work():
                    continue
                break
            said += data
            closed = not data
    except ConnectionError:
        closed = True
    finally:
        writer.transport.abort()
    return Said(tuple(int(status) for status in _STATUS.findall(said) if status >= b"200"), closed, own)
