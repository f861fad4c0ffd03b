"""The bytes of the bench: chat requests, and a vLLM's answers to them.

The shapes are those of vLLM 0.32 behind uvicorn, byte for byte but for the values (the project's captures
`10-chat.http`, `12-chat-stream-usage.http`). Two things are put where a model's text would be, because
text is what every proxy must leave alone: a token's content is the instant it was sent, in microseconds of
CLOCK_MONOTONIC (one clock for the whole host, so the client can tell how long the bytes were under way),
and the last token's content is how many tokens were sent in all. What the client wants of the pod stands
in the user's message for the same reason: a gateway drops headers it does not know, and may refuse body
fields.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

MODEL: Final = "bench"
CHAT_PATH: Final = "/v1/chat/completions"
NUMBER_WIDTH: Final = 14  # digits of a microsecond clock: three years of uptime; makes an event 227 bytes

ROLE_ENDS_WITH: Final = b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}'
TOKEN_ENDS_WITH: Final = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
LAST_ENDS_WITH: Final = b'"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}'
DONE: Final = b"data: [DONE]"
EVENT_END: Final = b"\n\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_UVICORN: Final = b"HTTP/1.1 %s\r\ndate: Mon, 23 Nov 2026 18:34:14 GMT\r\nserver: uvicorn\r\n"
STREAM_HEAD: Final = (
    _UVICORN % b"200 OK"
    + b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True)
class Wish:
    """How a stream is to be paced: `tokens`, one each `period_us`, `phase_us` after the common beat; a period of 0: as
    fast as they are taken."""

    tokens: int
    period_us: int
    phase_us: int

    def __str__(self) -> str:
        return f"tokens={self.tokens} period_us={self.period_us} phase_us={self.phase_us}"


_WISH: Final = re.compile(r"tokens=(\d+) period_us=(\d+) phase_us=(\d+)")


def wish_in(message: str) -> Wish:
    """The wish a user's message holds; 16 tokens at 50/s if it holds none (somebody's curl)."""
    found = _WISH.search(message)
    if found is None:
        return Wish(tokens=16, period_us=20_000, phase_us=0)
    return Wish(*(int(number) for number in found.groups()))


def spread(streams: int, period_us: int) -> tuple[int, ...]:
    """One phase per stream, evenly over one period, so that no two streams of a rate share an instant."""
    return tuple(index * period_us // streams for index in range(streams))


# --- requests -----------------------------------------------------------------------------------------------


def chat_body(size: int) -> bytes:
    """A chat that is not streamed, of exactly `size` bytes (at least 250)."""
    empty = _chat_body("")
    if size < len(empty):
        raise ValueError(f"a chat body has at least {len(empty)} bytes; asked for {size}")
    return _chat_body(("Name three colours. " * (size // 20 + 1))[: size - len(empty)])


def stream_body(wish: Wish) -> bytes:
    """A streamed chat of about 400 bytes that does not ask for usage (most callers do not)."""
    return _chat_body(f"{wish} " + "Name three colours. " * 6, stream=True)


def _chat_body(content: str, **fields: object) -> bytes:
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer briefly and in plain words."},
        {"role": "user", "content": content},
    ]
    chat: dict[str, object] = {"model": MODEL, "messages": messages, "temperature": 0.2, "max_tokens": 256}
    return json.dumps(chat | fields, separators=(",", ":")).encode()


def chat_request(host: str, port: int, key: str, body: bytes, more: bytes = b"") -> bytes:
    """The whole request, with the headers any OpenAI client sends, and `more` lines of them."""
    head = (
        f"POST {CHAT_PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: poolgate-bench\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    return head.encode() + more + b"\r\n" + body


# --- answers ------------------------------------------------------------------------------------------------


def json_answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return (
        _UVICORN % status
        + b"content-length: %d\r\ncontent-type: application/json\r\nvary: Origin\r\n\r\n" % len(body)
        + body
    )


def _completion(content: str) -> bytes:
    message = {
        "role": "assistant", "content": content, "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "reasoning": None,
    }  # fmt: skip
    choice = {
        "index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None,
        "token_ids": None, "routed_experts": None,
    }  # fmt: skip
    usage = {
        "prompt_tokens": 34, "total_tokens": 58, "completion_tokens": 24, "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }  # fmt: skip
    completion = {
        "id": "chatcmpl-a1ec63ec4ce26c30", "object": "chat.completion", "created": 1795458853, "model": MODEL,
        "choices": [choice], "service_tier": None, "system_fingerprint": "vllm-0.32.0-4070a632",
        "usage": usage,
        "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None,
        "ec_transfer_params": None, "metrics": None,
    }  # fmt: skip
    return json.dumps(completion, separators=(",", ":")).encode()


COMPLETION: Final = _completion("x" * (1024 - len(_completion(""))))  # 1 KiB exactly

MODELS: Final = json.dumps(
    {
        "object": "list",
        "data": [
            {
                "id": MODEL, "object": "model", "created": 1795458853, "owned_by": "vllm",
                "root": "/models/bench", "parent": None, "max_model_len": 1_048_576, "permission": [],
            }
        ],
    },
    separators=(",", ":"),
).encode()  # fmt: skip


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(json_text: bytes) -> bytes:
    """One HTTP chunk that holds one server-sent event, as vLLM writes them."""
    return chunk(b"data: " + json_text + EVENT_END)


class StreamBytes:
    """The chunks of one stream; a token costs one formatting."""

    def __init__(self, number: int) -> None:
        self._start = (
            b'{"id":"chatcmpl-%016x","object":"chat.completion.chunk","created":1795458855,"model":"%s","choices":['
            % (number, MODEL.encode())
        )
        content = self._start + b'{"index":0,"delta":{"content":"'
        sample = event(content + b"0" * NUMBER_WIDTH + TOKEN_ENDS_WITH)
        before, after = sample.split(b"0" * NUMBER_WIDTH + TOKEN_ENDS_WITH)
        self._token = before.replace(b"%", b"%%") + b"%014d" + TOKEN_ENDS_WITH + after
        self._content = content

    def role(self) -> bytes:
        delta = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        return event(self._start + delta + ROLE_ENDS_WITH)

    def token(self, sent_us: int) -> bytes:
        return self._token % sent_us

    def last(self, tokens: int) -> bytes:
        """The last token, whose content is the number of all (itself among them)."""
        return event(self._content + b"%014d" % tokens + LAST_ENDS_WITH)

    def usage(self, tokens: int) -> bytes:
        counts = b'"usage":{"prompt_tokens":34,"total_tokens":%d,"completion_tokens":%d}' % (
            34 + tokens,
            tokens,
        )
        return event(self._start + b"]," + counts + b',"system_fingerprint":"vllm-0.32.0-4070a632"}')

    @staticmethod
    def done() -> bytes:
        return chunk(DONE + EVENT_END) + LAST_CHUNK
