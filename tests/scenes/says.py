"""What a scripted pod says: vLLM's answers, piece by piece. `stream("a", "b")` is a whole one."""

import json
from typing import Any

from tests.fakes import STREAM_HEAD, answer, chunk

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
"""Of a chunked body."""


def event(told: object) -> bytes:
    """One event, unframed."""
    return b"data: " + json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def token(text: str = "a", index: int = 0) -> bytes:
    """A piece of content."""
    return event({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]})


def finish(index: int = 0) -> bytes:
    """A choice has ended."""
    return event({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})


def usage(**told: Any) -> bytes:
    """What was spent: the event that the gateway asks for."""
    return event({"choices": [], "usage": USAGE | told})


def stream(*texts: str) -> bytes:
    """A whole stream, framed, with its head."""
    events = [*map(token, texts or ("a",)), finish(), usage(), DONE]
    return STREAM_HEAD + b"".join(map(chunk, events)) + END


def whole(text: str = "a", **more: Any) -> bytes:
    """A whole answer that is not a stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return answer(json.dumps({"model": "m", "choices": [choice], "usage": USAGE} | more).encode())


def failure(message: str, status: bytes = b"500 Internal Server Error") -> bytes:
    """vLLM's nested error."""
    told = {"error": {"message": message, "type": "InternalServerError", "param": None, "code": int(status[:3])}}
    return answer(json.dumps(told).encode(), status)


GOOD = whole()
