"""The JSON of answers, key for key as vLLM 0.32.0 writes it. Pure, and by hand: it is the hot path.

An event of a stream is `head + word + tail`, and only the word differs from token to token, so head and tail
are made once per choice.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import orjson

from loadtest.simulator.engine import Sequence

FINGERPRINT = b'"system_fingerprint":"vllm-0.32.0-4070a632"'


class Identity(msgspec.Struct, frozen=True):
    """What every event of one answer repeats. `id` bears its prefix; `model` is plain text."""

    id: str
    created: int
    model: str

    def fields(self, kind: bytes) -> bytes:
        return b'"id":%b,"object":"%b","created":%d,"model":%b' % (
            orjson.dumps(self.id),
            kind,
            self.created,
            orjson.dumps(self.model),
        )


class Shape(Protocol):
    """One of the two operations. All results are payloads: JSON without SSE or HTTP framing."""

    id_prefix: str

    def opening(self, identity: Identity, index: int) -> bytes:
        """An event of choice `index` up to its word."""

    def middle(self) -> bytes:
        """From behind the word to the end of `choices`, for a token that is not the last."""

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes: ...

    def role(self, identity: Identity, index: int, usage: bytes) -> bytes:
        """The event that precedes the first token; empty if there is none."""

    def usage_event(self, identity: Identity, usage: bytes) -> bytes: ...

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes: ...


class Chat:
    id_prefix = "chatcmpl-"

    def opening(self, identity: Identity, index: int) -> bytes:
        return b'{%b,"choices":[{"index":%d,"delta":{"content":"' % (self._fields(identity), index)

    def middle(self) -> bytes:
        return b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]'

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes:
        return b'"},"logprobs":null,"finish_reason":%b,"stop_reason":%b,"token_ids":null}]' % (
            finish_reason,
            stop_reason,
        )

    def role(self, identity: Identity, index: int, usage: bytes) -> bytes:
        return (
            b'{%b,"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}]%b,"prompt_token_ids":null,"prompt_text":null}'
        ) % (self._fields(identity), index, usage)

    def usage_event(self, identity: Identity, usage: bytes) -> bytes:
        return b'{%b,"choices":[],"usage":%b,%b}' % (self._fields(identity), usage, FINGERPRINT)

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes:
        choices = b",".join(
            b'{"index":%d,"message":{"role":"assistant","content":"%b","refusal":null,"annotations":null,'
            b'"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":%b,'
            b'"stop_reason":%b,"token_ids":null,"routed_experts":null}'
            % (sequence.index, b"".join(sequence.answer.pieces), *finish_of(sequence, finishes))
            for sequence in sequences
        )
        return (
            b'{%b,"choices":[%b],"service_tier":null,%b,"usage":%b,"prompt_logprobs":null,"prompt_token_ids":null,'
            b'"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
        ) % (identity.fields(b"chat.completion"), choices, FINGERPRINT, usage)

    def _fields(self, identity: Identity) -> bytes:
        return identity.fields(b"chat.completion.chunk")


class Completion:
    id_prefix = "cmpl-"

    def opening(self, identity: Identity, index: int) -> bytes:
        return b'{%b,"choices":[{"index":%d,"text":"' % (self._fields(identity), index)

    def middle(self) -> bytes:
        return self.last_middle(b"null", b"null")

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes:
        return b'","logprobs":null,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":null,"token_ids":null}]' % (
            finish_reason,
            stop_reason,
        )

    def role(self, identity: Identity, index: int, usage: bytes) -> bytes:
        return b""

    def usage_event(self, identity: Identity, usage: bytes) -> bytes:
        return b'{%b,"choices":[],"usage":%b,%b}' % (self._fields(identity), usage, FINGERPRINT)

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes:
        choices = b",".join(
            b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":%b,"stop_reason":%b,"token_ids":null,'
            b'"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}'
            % (sequence.index, b"".join(sequence.answer.pieces), *finish_of(sequence, finishes))
            for sequence in sequences
        )
        return (
            b'{%b,"choices":[%b],"service_tier":null,%b,"usage":%b,"kv_transfer_params":null,'
            b'"ec_transfer_params":null,"metrics":null}'
        ) % (self._fields(identity), choices, FINGERPRINT, usage)

    def _fields(self, identity: Identity) -> bytes:
        return identity.fields(b"text_completion")


CHAT = Chat()
COMPLETION = Completion()


def finish_of(sequence: Sequence, finishes: bool) -> tuple[bytes, bytes]:
    """Finish and stop reason as JSON; both null if the answer is to look unfinished."""
    if not finishes:
        return b"null", b"null"
    return orjson.dumps(sequence.answer.finish_reason), orjson.dumps(sequence.answer.stop_reason)


def usage_whole(prompt: int, completion: int, details: bytes) -> bytes:
    return (
        b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%b,'
        b'"completion_tokens_details":null}'
    ) % (prompt, prompt + completion, completion, details)


def usage_final(prompt: int, completion: int, details: bytes | None) -> bytes:
    """The usage event's: details only if the pod tells them."""
    more = b"" if details is None else b',"prompt_tokens_details":%b' % details
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
        prompt,
        prompt + completion,
        completion,
        more,
    )


def usage_running(prompt: int, completion: int) -> bytes:
    """The one on every event under `continuous_usage_stats`, with its comma and key."""
    return (
        b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}'
    ) % (prompt, prompt + completion, completion)


def details_whole(cached: int, created: int) -> bytes:
    return b'{"cached_tokens":%d,"created_cache_tokens":%d,"multimodal_tokens":null}' % (cached, created)


def details_final(cached: int, created: int) -> bytes:
    """In the usage event nulls are left out."""
    return b'{"cached_tokens":%d,"created_cache_tokens":%d}' % (cached, created)


def model_list(
    model: str, aliases: tuple[str, ...], adapters: tuple[str, ...], max_model_len: int, created: int
) -> bytes:
    def card(name: str, parent: str | None, length: int | None, ordinal: int) -> dict[str, object]:
        permission = {
            "id": f"modelperm-{created:08x}{ordinal:08x}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": f"/models/{model if parent is None else name}",
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    cards = [card(name, None, max_model_len, ordinal) for ordinal, name in enumerate((model, *aliases))]
    cards += [card(name, model, None, len(cards) + ordinal) for ordinal, name in enumerate(adapters)]
    return orjson.dumps({"object": "list", "data": cards})
