"""The JSON of answers, key for key as vLLM 0.32.0 writes it. Pure, and by hand: it is the hot path.

An event of a stream is `head + word + tail`, and only the word differs from token to token, so head and tail
are made once per choice. Composed answers have an event made for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
import orjson

from loadtest.simulator import logprobs
from loadtest.simulator.composing import ComposedAnswer
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
    tells_created_tokens: bool

    def opening(self, identity: Identity, index: int) -> bytes:
        """An event of choice `index` up to its word."""

    def middle(self) -> bytes:
        """From behind the word to the end of `choices`, for a token that is not the last."""

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes: ...

    def role(self, identity: Identity, sequence: Sequence, usage: bytes) -> bytes:
        """The event that precedes the first token; empty if there is none."""

    def composed(
        self, identity: Identity, sequence: Sequence, answer: ComposedAnswer, finish: tuple[bytes, bytes] | None
    ) -> bytes:
        """Up to the end of `choices`, for the token just produced; empty if it makes no event."""

    def end(self, identity: Identity, sequence: Sequence, finish: tuple[bytes, bytes], *, parsed: bool) -> bytes:
        """The same for an end of turn, which has no text. `parsed`: a parser has looked at it."""

    def usage_event(self, identity: Identity, usage: bytes) -> bytes: ...

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes: ...


class Chat:
    id_prefix = "chatcmpl-"
    tells_created_tokens = True

    def opening(self, identity: Identity, index: int) -> bytes:
        return b'{%b,"choices":[{"index":%d,"delta":{"content":"' % (self._fields(identity), index)

    def middle(self) -> bytes:
        return b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]'

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes:
        return b'"},"logprobs":null,"finish_reason":%b,"stop_reason":%b,"token_ids":null}]' % (
            finish_reason,
            stop_reason,
        )

    def role(self, identity: Identity, sequence: Sequence, usage: bytes) -> bytes:
        return (
            b'{%b,"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}]%b,%b}'
        ) % (self._fields(identity), sequence.index, usage, _of_prompt(sequence))

    def composed(
        self, identity: Identity, sequence: Sequence, answer: ComposedAnswer, finish: tuple[bytes, bytes] | None
    ) -> bytes:
        at = sequence.produced - 1
        delta = answer.tokens[at].delta
        wishes = answer.wishes
        told_anyway = (wishes.logprobs is not None or wishes.token_ids) and not wishes.hides_reasoning
        if delta is None and finish is None and not told_anyway:
            return b""
        ids = _token_ids(answer, at, at + 1)
        probabilities = logprobs.chat_logprobs(answer, at, at + 1)
        return self._delta_event(identity, sequence, delta or b"{}", finish, probabilities, ids)

    def end(self, identity: Identity, sequence: Sequence, finish: tuple[bytes, bytes], *, parsed: bool) -> bytes:
        delta = b"{}" if parsed else b'{"content":""}'
        return self._delta_event(identity, sequence, delta, finish, b"null", b"null")

    def _delta_event(
        self,
        identity: Identity,
        sequence: Sequence,
        delta: bytes,
        finish: tuple[bytes, bytes] | None,
        probabilities: bytes,
        ids: bytes,
    ) -> bytes:
        reasons = b"null" if finish is None else b'%b,"stop_reason":%b' % finish
        return b'{%b,"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b,"token_ids":%b}]' % (
            self._fields(identity),
            sequence.index,
            delta,
            probabilities,
            reasons,
            ids,
        )

    def usage_event(self, identity: Identity, usage: bytes) -> bytes:
        return b'{%b,"choices":[],"usage":%b,%b}' % (self._fields(identity), usage, FINGERPRINT)

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes:
        choices = b",".join([self._choice(sequence, finishes) for sequence in sequences])
        return (
            b'{%b,"choices":[%b],"service_tier":null,%b,"usage":%b,"prompt_logprobs":%b,%b,'
            b'"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
        ) % (
            identity.fields(b"chat.completion"),
            choices,
            FINGERPRINT,
            usage,
            _prompt_logprobs(sequences[0]),
            _of_prompt(sequences[0]),
        )

    def _choice(self, sequence: Sequence, finishes: bool) -> bytes:
        answer = sequence.answer
        if isinstance(answer, ComposedAnswer):
            message = answer.message
            content, reasoning = orjson.dumps(message.content), orjson.dumps(message.reasoning)
            calls = b'"tool_calls":[%b],' % b",".join(message.calls) if message.calls else b""
            probabilities = logprobs.chat_logprobs(answer, 0, sequence.produced)
            ids = _token_ids(answer, 0, sequence.produced)
        else:
            content, reasoning, calls = b'"%b"' % b"".join(answer.pieces), b"null", b""
            probabilities = ids = b"null"
        return (
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":null,'
            b'"audio":null,"function_call":null,%b"reasoning":%b},"logprobs":%b,"finish_reason":%b,'
            b'"stop_reason":%b,"token_ids":%b,"routed_experts":null}'
        ) % (sequence.index, content, calls, reasoning, probabilities, *finish_of(sequence, finishes), ids)

    def _fields(self, identity: Identity) -> bytes:
        return identity.fields(b"chat.completion.chunk")


class Completion:
    id_prefix = "cmpl-"
    tells_created_tokens = False

    def opening(self, identity: Identity, index: int) -> bytes:
        return b'{%b,"choices":[{"index":%d,"text":"' % (self._fields(identity), index)

    def middle(self) -> bytes:
        return self.last_middle(b"null", b"null")

    def last_middle(self, finish_reason: bytes, stop_reason: bytes) -> bytes:
        return b'","logprobs":null,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":null,"token_ids":null}]' % (
            finish_reason,
            stop_reason,
        )

    def role(self, identity: Identity, sequence: Sequence, usage: bytes) -> bytes:
        return b""

    def composed(
        self, identity: Identity, sequence: Sequence, answer: ComposedAnswer, finish: tuple[bytes, bytes] | None
    ) -> bytes:
        wishes, at = answer.wishes, sequence.produced - 1
        first = at == 0
        echo = wishes.echo and first
        end = 0 if wishes.prompt_only else at + 1
        text = b"" if wishes.prompt_only else answer.pieces[at]
        return (
            b'{%b,"choices":[{"index":%d,"text":"%b%b","logprobs":%b,"finish_reason":%b,"stop_reason":%b,'
            b'"prompt_token_ids":%b,"token_ids":%b}]'
        ) % (
            self._fields(identity),
            sequence.index,
            _echoed(sequence) if echo else b"",
            text,
            logprobs.completion_logprobs(answer, sequence.prompt, at, end, echo=echo),
            *(finish or (b"null", b"null")),
            # vLLM tells them with an echo, wished for or not.
            orjson.dumps(sequence.prompt.token_ids) if first and (wishes.token_ids or wishes.echo) else b"null",
            _token_ids(answer, at, end),
        )

    def end(self, identity: Identity, sequence: Sequence, finish: tuple[bytes, bytes], *, parsed: bool) -> bytes:
        return self.opening(identity, sequence.index) + self.last_middle(*finish)

    def usage_event(self, identity: Identity, usage: bytes) -> bytes:
        return b'{%b,"choices":[],"usage":%b,%b}' % (self._fields(identity), usage, FINGERPRINT)

    def whole(self, identity: Identity, sequences: list[Sequence], usage: bytes, finishes: bool) -> bytes:
        choices = b",".join([self._choice(sequence, finishes) for sequence in sequences])
        return (
            b'{%b,"choices":[%b],"service_tier":null,%b,"usage":%b,"kv_transfer_params":null,'
            b'"ec_transfer_params":null,"metrics":null}'
        ) % (self._fields(identity), choices, FINGERPRINT, usage)

    def _choice(self, sequence: Sequence, finishes: bool) -> bytes:
        answer = sequence.answer
        text = b"".join(answer.pieces)
        probabilities = ids = prompt_ids = b"null"
        if isinstance(answer, ComposedAnswer):
            echo = answer.wishes.echo
            end = 0 if answer.wishes.prompt_only else sequence.produced
            text = (_echoed(sequence) if echo else b"") + (text if end else b"")
            probabilities = logprobs.completion_logprobs(answer, sequence.prompt, 0, end, echo=echo)
            ids = _token_ids(answer, 0, end)
            prompt_ids = orjson.dumps(sequence.prompt.token_ids) if answer.wishes.token_ids else b"null"
        return (
            b'{"index":%d,"text":"%b","logprobs":%b,"finish_reason":%b,"stop_reason":%b,"token_ids":%b,'
            b'"prompt_logprobs":%b,"prompt_token_ids":%b,"routed_experts":null}'
        ) % (
            sequence.index,
            text,
            probabilities,
            *finish_of(sequence, finishes),
            ids,
            _prompt_logprobs(sequence),
            prompt_ids,
        )

    def _fields(self, identity: Identity) -> bytes:
        return identity.fields(b"text_completion")


CHAT = Chat()
COMPLETION = Completion()


def finish_of(sequence: Sequence, finishes: bool) -> tuple[bytes, bytes]:
    """Finish and stop reason as JSON; both null if the answer is to look unfinished."""
    if not finishes:
        return b"null", b"null"
    answer = sequence.answer
    return orjson.dumps(answer.told_as or answer.finish_reason), orjson.dumps(answer.stop_reason)


def _token_ids(answer: ComposedAnswer, start: int, end: int) -> bytes:
    wishes = answer.wishes
    told = wishes.token_ids and not wishes.hides_reasoning
    return logprobs.token_ids(answer.tokens[start:end]) if told else b"null"


def _prompt_logprobs(sequence: Sequence) -> bytes:
    answer = sequence.answer
    if not isinstance(answer, ComposedAnswer) or answer.wishes.prompt_logprobs is None:
        return b"null"
    return logprobs.prompt_logprobs(sequence.prompt, answer.wishes.prompt_logprobs)


def _of_prompt(sequence: Sequence) -> bytes:
    """The two fields in which a chat tells its prompt."""
    answer = sequence.answer
    if not isinstance(answer, ComposedAnswer):
        return b'"prompt_token_ids":null,"prompt_text":null'
    prompt, wishes = sequence.prompt, answer.wishes
    ids = orjson.dumps(prompt.token_ids) if wishes.token_ids else b"null"
    text = orjson.dumps("".join(prompt.token_texts)) if wishes.prompt_text else b"null"
    return b'"prompt_token_ids":%b,"prompt_text":%b' % (ids, text)


def _echoed(sequence: Sequence) -> bytes:
    return orjson.dumps("".join(sequence.prompt.token_texts))[1:-1]


def usage_whole(prompt: int, completion: int, details: bytes, reasoning: int | None = None) -> bytes:
    return (
        b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%b,'
        b'"completion_tokens_details":%b}'
    ) % (prompt, prompt + completion, completion, details, _completion_details(reasoning))


def usage_final(prompt: int, completion: int, details: bytes | None, reasoning: int | None = None) -> bytes:
    """The usage event's: details only if the pod tells them."""
    more = b"" if details is None else b',"prompt_tokens_details":%b' % details
    if reasoning is not None:
        more += b',"completion_tokens_details":%b' % _completion_details(reasoning)
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
        prompt,
        prompt + completion,
        completion,
        more,
    )


def usage_running(prompt: int, completion: int, reasoning: int | None = None) -> bytes:
    """The one on every event under `continuous_usage_stats`, with its comma and key."""
    return (
        b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":%b}'
    ) % (prompt, prompt + completion, completion, _completion_details(reasoning))


def _completion_details(reasoning: int | None) -> bytes:
    """Told by a pod with a parser of reasoning only."""
    return b"null" if reasoning is None else b'{"reasoning_tokens":%d}' % reasoning


def details_whole(cached: int, created: int | None) -> bytes:
    told = b"null" if created is None else b"%d" % created
    return b'{"cached_tokens":%d,"created_cache_tokens":%b,"multimodal_tokens":null}' % (cached, told)


def details_final(cached: int, created: int | None) -> bytes:
    """In the usage event nulls are left out."""
    more = b"" if created is None else b',"created_cache_tokens":%d' % created
    return b'{"cached_tokens":%d%b}' % (cached, more)


def model_list(
    model: str, aliases: tuple[str, ...], adapters: Mapping[str, str], max_model_len: int, created: int
) -> bytes:
    """`adapters` maps names to where they were loaded from."""

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
            "root": f"/models/{model}" if parent is None else adapters[name],
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    cards = [card(name, None, max_model_len, ordinal) for ordinal, name in enumerate((model, *aliases))]
    cards += [card(name, model, None, len(cards) + ordinal) for ordinal, name in enumerate(adapters)]
    return orjson.dumps({"object": "list", "data": cards})
