"""One GET, or POST, past all that is measured: what a pod or a gateway's ops port tells."""

import asyncio
from contextlib import suppress
from typing import Final

HOST: Final = "127.0.0.1"
SECONDS: Final = 10.0
"""For who is asked to answer in, on a busy machine too; who is down refuses at once."""


async def asked(port: int, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    """(status, body). Raises OSError where nobody answers, a late one among them."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _asked(port, path, method, body)
    except (TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
        raise ConnectionError(f"port {port} gave no answer to {method} {path}") from error


async def _asked(port: int, path: str, method: str, body: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        told = await reader.readuntil(b"\r\n\r\n")
        return int(told.split(b" ", 2)[1]), _unchunked(told, await reader.read(-1))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _unchunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts = []
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        parts.append(body[:size])
        body = body[size + 2 :] if size else b""
    return b"".join(parts)


def series_in(text: str) -> dict[str, float]:
    """Every series of an exposition, by its name with its labels."""
    told = (line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("#", ""))
    return {series: float(value) for series, _, value in told}


def total(series: dict[str, float], name: str, *labels: str) -> float:
    """Of a metric's series with all these labels (`mode="redis"`), the sum."""
    return sum(
        value
        for each, value in series.items()
        if each.partition("{")[0] == name and all(label in each for label in labels)
    )
