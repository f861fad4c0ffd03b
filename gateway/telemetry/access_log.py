"""One JSON object per request on stdout; a short coloured line on a terminal.

Never a prompt, an answer, a key or an address: the fields are named one by one below. Lines gather in memory and a
thread of its own writes them, so that a full pipe cannot hold up the loop; when it falls too far behind, lines are
dropped and counted instead of kept.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import BinaryIO

import orjson

from gateway.core.call import Outcome, Trail
from gateway.core.clock import iso_date

MAX_FIELD_CHARACTERS = 256
MAX_WAITING_BATCHES = 64
MAX_BATCH_LINES = 4096


class AccessLog:
    """`write` on the loop, `flush` from the loop's tick, `close` at the end."""

    def __init__(self, out: BinaryIO, wall: Callable[[], float]) -> None:
        self._out = out
        self._wall = wall
        self._render = _line_for_eyes if out.isatty() else _line
        self._lines: list[bytes] = []
        self.dropped = 0
        """Lines lost since start because the reader of stdout was too slow."""
        self._batches: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_BATCHES)
        self._writer = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._writer.start()

    def write(self, trail: Trail) -> None:
        """Note one request that has ended."""
        if len(self._lines) >= MAX_BATCH_LINES:
            self.dropped += 1
            return
        self._lines.append(self._render(trail, self._wall()))

    def flush(self) -> None:
        """Hand what has gathered to the writer. Never waits."""
        if not self._lines:
            return
        try:
            self._batches.put_nowait(b"".join(self._lines))
        except queue.Full:
            self.dropped += len(self._lines)
        self._lines.clear()

    def sync(self) -> None:
        """Flush, and wait until all of it is written. Blocks: not for the loop's hot hours."""
        self.flush()
        self._batches.join()

    def close(self) -> None:
        """Write what is left; waits for the writer, two seconds at most."""
        self.flush()
        with contextlib.suppress(queue.Full):
            self._batches.put(None, timeout=1)
        self._writer.join(timeout=1)

    def _write_batches(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._out.write(batch)
                self._out.flush()
            except (OSError, ValueError):
                # Nobody reads any more. Requests are served all the same.
                self.dropped += batch.count(b"\n")
            finally:
                self._batches.task_done()


def _line(trail: Trail, wall: float) -> bytes:
    return orjson.dumps(_fields(trail, wall), option=orjson.OPT_APPEND_NEWLINE)


def _fields(trail: Trail, wall: float) -> dict[str, object]:
    usage = trail.usage
    tenant = trail.tenant
    return {
        "ts": iso_date(wall),
        "level": "error" if trail.outcome is Outcome.INTERNAL else "info",
        "request_id": trail.request_id,
        "tenant": tenant.team if tenant is not None else None,
        "key_id": tenant.key_id if tenant is not None else None,
        "operation": trail.operation,
        "model": _text(trail.model),
        "pool": trail.pool,
        "pod": trail.pod,
        "status": trail.status,
        "outcome": trail.outcome,
        "code": trail.code,
        "stream": trail.stream,
        "prompt_tokens": usage.prompt_tokens if usage is not None else None,
        "completion_tokens": usage.completion_tokens if usage is not None else None,
        "cached_tokens": usage.cached_tokens if usage is not None else None,
        "usage_source": None if usage is None else "estimated" if usage.estimated else "reported",
        "queue_ms": 0,
        "ttft_ms": _milliseconds(trail.ttft_seconds),
        "duration_ms": _milliseconds(trail.duration_seconds),
        "overhead_ms": _milliseconds(trail.overhead_seconds),
        "attempts": trail.attempts,
        "decision": trail.decision,
        "finish": _text(trail.finish),
    }


def _text(value: str) -> str:
    """A string from outside: cut, and without what UTF-8 cannot say."""
    return value[:MAX_FIELD_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


_COLOURS = {Outcome.COMPLETED: "32", Outcome.CLIENT_LEFT: "33", Outcome.REFUSED: "33"}


def _line_for_eyes(trail: Trail, wall: float) -> bytes:
    told = _fields(trail, wall)
    colour = _COLOURS.get(trail.outcome, "31")
    model = _text(trail.model).encode("unicode_escape").decode("ascii") or "-"
    tokens = f"{told['prompt_tokens']}+{told['completion_tokens']} tokens" if trail.usage is not None else ""
    ttft = f"ttft {told['ttft_ms']} ms" if told["ttft_ms"] is not None else ""
    moment = str(told["ts"])[11:23]
    outcome = f"\x1b[{colour}m{trail.status or '---'} {trail.outcome:<16}\x1b[0m"
    return (
        f"{moment} {outcome} {trail.operation:<11} {model} → {trail.pod or '-'}  "
        f"{told['duration_ms']} ms  {ttft}  {tokens}  {trail.code}  {trail.request_id}\n"
    ).encode()
