"""From the bytes of an answer to its pieces: the same for the client's side and the pod's, so that they compare.

Left out are what a gateway may drop or add between events: blank lines, and lines that are comments.
"""

import json
import re
from collections.abc import Iterator

from loadtest.invariants.events import Kind, Piece, Shape

MAX_BODY_BYTES = 1 << 20
"""So much of a body is kept for its usage; of a longer one there is the digest only."""
_ENDS = re.compile(rb"\r?\n\r?\n")
_CLOSING = (b"message_stop", b"response.completed", b"response.incomplete", b"response.failed")


def shape_of(path: str, *, stream: bool) -> Shape:
    """Of the good answer of a route."""
    if not stream:
        return Shape.WHOLE
    return Shape.NAMED if path.startswith(("/v1/messages", "/v1/responses")) else Shape.CHAT


class Events:
    """Splits a stream into whole events; what follows the last of them waits."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[Piece, bytes]]:
        """Each event that is whole now, and its bytes."""
        self._rest += data
        while found := _ENDS.search(self._rest):
            event, self._rest = self._rest[: found.end()], self._rest[found.end() :]
            bare = b"".join(line for line in event.lstrip().splitlines(keepends=True) if not line.startswith(b":"))
            if bare.strip():
                yield piece_of(bare, self._shape), bare


def piece_of(event: bytes, shape: Shape) -> Piece:
    """A whole event, without comments."""
    digest = hash(event)
    name = event.partition(b"\n")[0].removeprefix(b"event:").strip() if event.startswith(b"event:") else b""
    if event.startswith(b"data: [DONE]"):
        return Piece(Kind.END, digest)
    if name == b"error" or event.startswith((b'data: {"error"', b'data:{"error"')):
        return Piece(Kind.ERROR, digest)
    tokens = tokens_of(_json_of(event)) if b'"usage"' in event and b'"usage":null' not in event else None
    if shape is Shape.NAMED:
        return Piece(Kind.END if name in _CLOSING else Kind.CONTENT, digest, (), tokens)
    if b'"choices":[]' in event or b'"choices": []' in event:
        return Piece(Kind.USAGE, digest, (), tokens)
    return Piece(Kind.CONTENT, digest, _finishes(event), tokens)


def body_of(parts: list[bytes]) -> Piece:
    """A whole body that is no stream."""
    body = b"".join(parts)
    return Piece(Kind.BODY, hash(body), (), tokens_of(_loaded(body)) if len(body) <= MAX_BODY_BYTES else None)


def tokens_of(told: object) -> tuple[int, int] | None:
    """(prompt, completion) of an answer or an event, in the words of either API; None: it does not tell both."""
    if not isinstance(told, dict):
        return None
    usage = told.get("usage") or (told.get("response") or {}).get("usage")
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return (prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None


def _finishes(event: bytes) -> tuple[int, ...]:
    if b'"finish_reason":' not in event or event.count(b'"finish_reason":null') == event.count(b'"finish_reason":'):
        return ()
    told = _json_of(event)
    choices = told.get("choices", []) if isinstance(told, dict) else []
    return tuple(choice["index"] for choice in choices if choice.get("finish_reason"))


def _json_of(event: bytes) -> object:
    lines = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    return _loaded(b"\n".join(lines))


def _loaded(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
