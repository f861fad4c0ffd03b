"""What comes back for some bytes on one connection."""

import asyncio
import re
from typing import NamedTuple

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
QUIET_SECONDS = 0.4
"""A server that has said nothing for so long waits for more."""


class Said(NamedTuple):
    """All that a server said on a connection, and whether it closed it."""

    statuses: tuple[int, ...]
    """Of its answers, in order; interim ones left out."""
    closed: bool
    port: int
    """Ours: by it a server tells its clients apart."""


async def say(port: int, raw: bytes, quiet: float = QUIET_SECONDS) -> Said:
    """Send these bytes, and hear until the server closes, or is quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    own = writer.get_extra_info("sockname")[1]
    writer.write(raw)
    said, closed = b"", False
    try:
        while not closed:
            async with asyncio.timeout(quiet):
                data = await reader.read(65536)
            said += data
            closed = not data
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    finally:
        writer.transport.abort()
    return Said(tuple(int(status) for status in _STATUS.findall(said) if status >= b"200"), closed, own)
