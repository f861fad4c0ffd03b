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

    text: str
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
        self._second_text = ""
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
            self._second_text = iso_seconds(second)
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
        moment = f"{self._second_text}.{int((wall - second) * 1000):03d}Z"
        self._lines.append(self._render(trail, moment, told))

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


def _line_for_machines(trail: Trail, moment: str, told: Told) -> bytes:
    prompt, completion, cached, _ = trail.usage or _NO_USAGE
    ttft = _milliseconds(trail.ttft_seconds) if trail.stream else "null"
    overhead = trail.overhead_seconds
    # The request id is made of letters that need no escape in JSON.
    return (
        f'{{"ts":"{moment}","request_id":"{trail.request_id}",'
        f"{'' if trail.trace is None else _trace_member(trail)}{told.text}"
        f'"prompt_tokens":{prompt},"completion_tokens":{completion},"cached_tokens":{cached},'
        f'"queue_ms":{_milliseconds(trail.queue_seconds) if trail.queue_seconds else 0},'
        f'"ttft_ms":{ttft},"duration_ms":{(trail.ended_at - trail.received_at) * 1000:.3f},'
        f'"overhead_ms":{"null" if overhead is None else f"{overhead * 1000:.3f}"}}}\n'
    ).encode()


_NO_USAGE = ("null", "null", "null", None)


def _trace_member(trail: Trail) -> str:
    return f'"trace_id":"{trail.trace_id}",' if trail.trace_id else ""


def _milliseconds(seconds: float | None) -> str:
    return "null" if seconds is None else f"{seconds * 1000:.3f}"


def _line_for_eyes(trail: Trail, moment: str, told: Told) -> bytes:
    ttft = f"  ttft {trail.ttft_seconds * 1000:.1f} ms" if trail.ttft_seconds is not None else ""
    tokens = f"  {trail.usage.prompt_tokens}+{trail.usage.completion_tokens} tokens" if trail.usage is not None else ""
    waited = f"  waited {trail.queue_seconds * 1000:.1f} ms" if trail.queue_seconds else ""
    took = f"{trail.duration_seconds * 1000:.1f} ms"
    return f"{moment[11:23]} {told.picture}  {took}{waited}{ttft}{tokens}  {trail.request_id}\n".encode()


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
    return Told(one_line(text, len(text))[1:-1] + ",", picture)


_COLOURS = {Outcome.COMPLETED: "32", Outcome.CLIENT_LEFT: "33", Outcome.REFUSED: "33"}
