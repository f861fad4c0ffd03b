"""One JSON object per request on stdout; a short coloured line on a terminal.

Never a prompt, an answer, a key or an address: the fields are named one by one below. Most of a line is the same for
many requests, and is kept: only the id, the tokens and the times are written anew. Lines gather in memory and a
thread of its own writes them, so that a full pipe cannot hold up the loop; when it falls too far behind, lines are
dropped and counted instead of kept.
"""

import contextlib
import queue
import threading
from typing import BinaryIO, NamedTuple

import orjson

from gateway.core.call import Outcome, Trail
from gateway.core.caller import Tenant
from gateway.core.clock import iso_seconds
from gateway.core.words import one_line, readable
from gateway.telemetry.log import write_whole

MAX_FIELD_CHARACTERS = 256
MAX_WAITING_BATCHES = 64
MAX_BATCH_LINES = 4096
MAX_KINDS = 1024


class Told(NamedTuple):
    """What many requests' lines have in common: the members of the JSON, and the words for a terminal."""

    text: bytes
    picture: str


_Kind = tuple[Tenant | None, str, str, str, str, int, Outcome, str, bool, bool | None, int, str, str]


class AccessLog:
    """`write` on the loop, `flush` from the loop's tick, `close` at the end.

    `out` has no buffer of its own where it may stand still: its lock would be the writer's, and held at the exit.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._render = _line_for_eyes if out.isatty() else _line_for_machines
        self._told: dict[_Kind, Told] = {}
        self._second = 0
        self._second_text = b""
        self._lines: list[bytes] = []
        self.dropped = 0
        """Lines lost since start because the reader of stdout was too slow."""
        self._batches: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_BATCHES)
        self._writer = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._writer.start()

    def write(self, trail: Trail, wall: float) -> None:
        """Note one request that ended at this wall-clock time (seconds since 1970)."""
        if len(self._lines) >= MAX_BATCH_LINES:
            self.dropped += 1
            return
        second = int(wall)
        if second != self._second:
            self._second = second
            self._second_text = iso_seconds(second).encode("ascii")
        usage = trail.usage
        kind = (
            trail.tenant,
            trail.operation,
            trail.model[:MAX_FIELD_CHARACTERS],
            trail.pool,
            trail.pod,
            trail.status,
            trail.outcome,
            trail.code,
            trail.stream,
            None if usage is None else usage.estimated,
            trail.attempts,
            trail.decision,
            trail.finish[:MAX_FIELD_CHARACTERS],
        )
        told = self._told.get(kind)
        if told is None:
            if len(self._told) >= MAX_KINDS:
                self._told.clear()
            told = self._told[kind] = _tell(kind)
        self._lines.append(self._render(trail, self._second_text, int((wall - second) * 1000), told))

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
                write_whole(self._out, batch)
                self._out.flush()
            except (OSError, ValueError):
                # Nobody reads any more. Requests are served all the same.
                self.dropped += batch.count(b"\n")
            finally:
                self._batches.task_done()


_LINE = (
    b'{"ts":"%b.%03dZ","request_id":"%b",%b%b"prompt_tokens":%d,"completion_tokens":%d,"cached_tokens":%d,'
    b'"queue_ms":%b,"ttft_ms":%b,"duration_ms":%.3f,"overhead_ms":%b}\n'
)
"""Put together as bytes, in one step: as text it took twice as long."""
_LINE_WITHOUT_USAGE = _LINE.replace(b"%d", b"%b")
_NO_USAGE = (b"null", b"null", b"null", None)


def _line_for_machines(trail: Trail, second: bytes, milliseconds: int, told: Told) -> bytes:
    usage = trail.usage
    prompt, completion, cached, _ = usage or _NO_USAGE
    overhead = trail.overhead_seconds
    return (_LINE_WITHOUT_USAGE if usage is None else _LINE) % (
        second,
        milliseconds,
        # It is made of letters that need no escape in JSON.
        trail.request_id.encode(),
        b"" if trail.trace is None else _trace_member(trail),
        told.text,
        prompt,
        completion,
        cached,
        _milliseconds(trail.queue_seconds) if trail.queue_seconds else b"0",
        _milliseconds(trail.ttft_seconds) if trail.stream else b"null",
        (trail.ended_at - trail.received_at) * 1000,
        b"null" if overhead is None else b"%.3f" % (overhead * 1000),
    )


def _trace_member(trail: Trail) -> bytes:
    return b'"trace_id":"%b",' % trail.trace_id.encode() if trail.trace_id else b""


def _milliseconds(seconds: float | None) -> bytes:
    return b"null" if seconds is None else b"%.3f" % (seconds * 1000)


def _line_for_eyes(trail: Trail, second: bytes, milliseconds: int, told: Told) -> bytes:
    moment = f"{second[11:].decode('ascii')}.{milliseconds:03d}"
    ttft = f"  ttft {trail.ttft_seconds * 1000:.1f} ms" if trail.ttft_seconds is not None else ""
    tokens = f"  {trail.usage.prompt_tokens}+{trail.usage.completion_tokens} tokens" if trail.usage is not None else ""
    waited = f"  waited {trail.queue_seconds * 1000:.1f} ms" if trail.queue_seconds else ""
    took = f"{trail.duration_seconds * 1000:.1f} ms"
    return f"{moment} {told.picture}  {took}{waited}{ttft}{tokens}  {trail.request_id}\n".encode()


def _tell(kind: _Kind) -> Told:
    tenant, operation, model, pool, pod, status, outcome, code, stream, estimated, attempts, decision, finish = kind
    members = {
        "level": "error" if outcome is Outcome.INTERNAL else "info",
        "tenant": tenant.team if tenant is not None else None,
        "key_id": tenant.key_id if tenant is not None else None,
        "operation": operation,
        "model": readable(model),
        "pool": pool,
        "pod": pod,
        "status": status,
        "outcome": outcome,
        "code": code,
        "stream": stream,
        "usage_source": None if estimated is None else "estimated" if estimated else "reported",
        "attempts": attempts,
        "decision": decision,
        "finish": readable(finish),
    }
    colour = _COLOURS.get(outcome, "31")
    shown = readable(model).encode("unicode_escape").decode("ascii") or "-"
    picture = f"\x1b[{colour}m{status or '---'} {outcome:<16}\x1b[0m {operation:<11} {shown} → {pod or '-'} {code}"
    # What stands behind a backslash there means the same in JSON.
    text = orjson.dumps(members).decode()
    return Told((one_line(text, len(text))[1:-1] + ",").encode(), picture)


_COLOURS = {Outcome.COMPLETED: "32", Outcome.CLIENT_LEFT: "33", Outcome.REFUSED: "33"}
