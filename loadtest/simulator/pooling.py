"""Embeddings, scores and rerankings: prompts that are computed and give numbers, not tokens.

The numbers are drawn by a hash of the seed and the text, so they are the same on every pod and mean nothing. A
pooling request runs in the same engine as a generation and leaves it when its prompt is computed.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import shake_128
from math import sqrt
from typing import Any

import msgspec
import orjson

from loadtest.simulator import refusals, schema
from loadtest.simulator.answers import Answer
from loadtest.simulator.asked import Refused
from loadtest.simulator.connection import Exchange, ReceivedRequest
from loadtest.simulator.engine import Engine
from loadtest.simulator.engine import Sequence as EngineSequence
from loadtest.simulator.faults import BadFault, Fault, fault_from_json
from loadtest.simulator.prompts import BYTES_PER_TOKEN, Prompt, read_prompt, render_chat, render_token_ids
from loadtest.simulator.schema import Problem
from loadtest.simulator.settings import PodSettings, Task
from loadtest.simulator.wire import Reply

_ENCODINGS = "'float', 'base64', 'bytes' or 'bytes_only'"
# vLLM tries the request as each of its kinds, completion-like and chat-like, and tells what each one misses.
_EMBEDDING_MISSES = ("input", "messages", "messages", "messages", "input", "messages", "input")
_SCORE_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class Pooled(msgspec.Struct, frozen=True, kw_only=True):
    """One request, checked. `told` makes the answer of its id and the time."""

    id_prefix: str
    prompts: tuple[Prompt, ...]
    told: Callable[[str, int], Reply]
    fault: Fault | None


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    truncate_prompt_tokens: int | None = None
    sim_fault: Any = None


class _EmbeddingBody(_Body, kw_only=True):
    input: Any = None
    messages: list[dict[str, Any]] | None = None
    encoding_format: str = "float"
    dimensions: int | None = None


class _ScoreBody(_Body, kw_only=True):
    queries: Any = None
    documents: Any = None
    items: Any = None
    data_1: Any = None
    data_2: Any = None
    text_1: Any = None
    text_2: Any = None


class _RerankBody(_Body, kw_only=True):
    query: Any
    documents: Any
    top_n: int = 0


def read_embeddings(request: ReceivedRequest, settings: PodSettings) -> Pooled:
    """Raises Refused."""
    body = schema.read(request.body, request.raw_header(b"content-type"), _EmbeddingBody)
    if body.input is None and body.messages is None:
        value = schema.read_object(request.body)
        raise schema.unfit([schema.missing(field, value) for field in _EMBEDDING_MISSES])
    if body.encoding_format not in ("float", "base64", "bytes", "bytes_only"):
        more = f", 'ctx': {{'expected': {_ENCODINGS!r}}}"
        text = f"Input should be {_ENCODINGS}"
        raise schema.unfit([Problem("literal_error", "body.encoding_format", text, body.encoding_format, more)])
    texts = _embedded_texts(body)
    _check_model(body, settings)
    length = settings.embedding_dimensions
    if body.dimensions is not None:
        length = _checked_dimensions(body.dimensions, settings)
    if not texts:
        raise Refused(refusals.bad_request("You must pass at least one prompt"))
    prompts = _prompts(texts, body, settings)

    def told(request_id: str, created: int) -> Reply:
        vectors = [embed(text, length=length, seed=settings.seed) for text in texts]
        head = {"id": request_id, "created": created, "model": settings.model}
        return _embedding_reply(body.encoding_format, head, vectors, _count(prompts))

    return Pooled(id_prefix="embd-", prompts=prompts, told=told, fault=_fault(body))


def read_score(request: ReceivedRequest, settings: PodSettings) -> Pooled:
    """Raises Refused."""
    body = schema.read(request.body, request.raw_header(b"content-type"), _ScoreBody)
    named = next((pair for pair in _SCORE_PAIRS if all(getattr(body, field) is not None for field in pair)), None)
    if named is None:
        value = schema.read_object(request.body)
        raise schema.unfit(
            [schema.missing(field, value) for pair in _SCORE_PAIRS for field in pair if field not in value]
        )
    _check_model(body, settings)
    left, right = (_texts(getattr(body, field)) for field in named)
    if not left or not right:
        raise Refused(refusals.bad_request("At least one text_pair element must be given"))
    if len(left) not in (1, len(right)):
        raise Refused(refusals.bad_request("Input lengths must be either 1:1, 1:N or N:N"))
    prompts = _prompts(_computed(left, right, settings), body, settings)

    def told(request_id: str, created: int) -> Reply:
        scores = _scores(left, right, settings)
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        head = {"id": request_id, "object": "list", "created": created, "model": settings.model}
        return Reply(200, orjson.dumps({**head, "data": data, "usage": _usage(_count(prompts))}))

    return Pooled(id_prefix="score-", prompts=prompts, told=told, fault=_fault(body))


def read_rerank(request: ReceivedRequest, settings: PodSettings) -> Pooled:
    """Raises Refused."""
    body = schema.read(request.body, request.raw_header(b"content-type"), _RerankBody)
    _check_model(body, settings)
    documents = body.documents if isinstance(body.documents, list) else [body.documents]
    if not documents:
        raise Refused(refusals.bad_request("At least one text_pair element must be given"))
    query, texts = [_text(body.query)], _texts(documents)
    prompts = _prompts(_computed(query, texts, settings), body, settings)

    def told(request_id: str, created: int) -> Reply:
        scores = _scores(query, texts, settings)
        best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = [
            {"index": index, "document": _echoed(documents[index]), "relevance_score": scores[index]}
            for index in best_first
        ]
        tokens = _count(prompts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        kept = results[: body.top_n or None]
        return Reply(200, schema.written({"id": request_id, "model": settings.model, "usage": usage, "results": kept}))

    return Pooled(id_prefix="score-", prompts=prompts, told=told, fault=_fault(body))


class PooledAnswer:
    """One pooling request in the engine, from its first prompt to its answer."""

    def __init__(
        self,
        exchange: Exchange,
        engine: Engine,
        prompts: Sequence[Prompt],
        *,
        answer: Callable[[], None],
        left: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        self._exchange = exchange
        self._engine = engine
        self._answer = answer
        self._left = left
        self._over: Callable[[], None] | None = over
        nothing = Answer([], "stop")
        self._sequences = [EngineSequence(self, index, prompt, nothing, None) for index, prompt in enumerate(prompts)]
        self._unfinished = len(self._sequences)

    def begin(self) -> None:
        self._exchange.on_gone = self._client_left
        self._engine.submit(self._sequences)

    def finished(self, sequence: EngineSequence) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self._answer()
            self._end()

    def cut_off(self, sequence: EngineSequence) -> None:
        self.finished(sequence)

    def failed(self) -> None:
        self._exchange.answer(refusals.engine_dead())
        self._end()

    def _client_left(self) -> None:
        self._left()
        self._engine.abort(self._sequences)
        self._end()

    def _end(self) -> None:
        self._sequences = []  # they refer to this: no cycles for the collector to find
        over, self._over = self._over, None
        if over is not None:  # a stalled one ends twice: computed, and left by its client
            over()


def embed(text: bytes, *, length: int, seed: int) -> list[float]:
    """A unit vector. A longer one does not begin with the shorter: each is scaled to length one."""
    draws = array("h", shake_128(b"%d/embed/%b" % (seed, text)).digest(2 * length))
    scale = sqrt(sum(draw * draw for draw in draws)) or 1.0
    return [draw / scale for draw in draws]


def _embedding_reply(encoding: str, head: dict[str, Any], vectors: list[list[float]], tokens: int) -> Reply:
    if encoding in ("float", "base64"):
        data = [
            {
                "index": index,
                "object": "embedding",
                "embedding": vector if encoding == "float" else b64encode(array("f", vector).tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        ordered = {"id": head["id"], "object": "list", "created": head["created"], "model": head["model"]}
        return Reply(200, orjson.dumps({**ordered, "data": data, "usage": _usage(tokens)}))
    raw = b"".join(array("f", vector).tobytes() for vector in vectors)
    before: tuple[tuple[bytes, bytes], ...] = ()
    if encoding == "bytes":
        before = ((b"metadata", _metadata(head, vectors, tokens)),)
    return Reply(200, raw, b"application/octet-stream", before, chunked=True)


def _metadata(head: dict[str, Any], vectors: list[list[float]], tokens: int) -> bytes:
    """What a JSON answer would say beside the numbers, in a header, written by the standard json module."""
    size = 4 * len(vectors[0])
    data = [
        {
            "index": index,
            "embed_dtype": "float32",
            "endianness": "native",
            "start": index * size,
            "end": (index + 1) * size,
            "shape": [len(vector)],
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({**head, "data": data, "usage": usage}).encode()


def _computed(left: list[bytes], right: list[bytes], settings: PodSettings) -> list[bytes]:
    """The prompts: an embedding model embeds each text once and compares; a cross-encoder reads each pair."""
    if settings.task == Task.EMBED:
        return [*left, *right]
    return [one + other for one, other in _pairs(left, right)]


def _scores(left: list[bytes], right: list[bytes], settings: PodSettings) -> list[float]:
    if settings.task != Task.EMBED:
        return [_relevance(one + other, settings.seed) for one, other in _pairs(left, right)]
    length = settings.embedding_dimensions
    vectors = {text: embed(text, length=length, seed=settings.seed) for text in {*left, *right}}
    return [sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True)) for one, other in _pairs(left, right)]


def _pairs(left: list[bytes], right: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))


def _relevance(text: bytes, seed: int) -> float:
    return int.from_bytes(shake_128(b"%d/score/%b" % (seed, text)).digest(6), "little") / 2**48


def _embedded_texts(body: _EmbeddingBody) -> list[bytes]:
    given = body.input
    if given is None:
        return [render_chat([(str(turn.get("role")), str(turn.get("content") or "")) for turn in body.messages or []])]
    if isinstance(given, str):
        return [given.encode("utf-8", "surrogatepass")]
    if not isinstance(given, list):
        raise schema.unfit(_wrong_input(given))
    if given and all(isinstance(item, int) for item in given):
        return [render_token_ids(given)]
    texts = []
    for item in given:
        if isinstance(item, str):
            texts.append(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, list) and all(isinstance(token_id, int) for token_id in item):
            texts.append(render_token_ids(item))
        else:
            raise schema.unfit(_wrong_input(given))
    return texts


def _wrong_input(given: object) -> list[Problem]:
    """As vLLM's union of request kinds fails, one kind after the other."""
    not_a_list = Problem("list_type", "body.input", "Input should be a valid list", given)
    not_text = Problem("string_type", "body.input", "Input should be a valid string", given)
    no_messages = schema.missing("messages", {"model": None, "input": None})
    text = "Input should be an instance of Sequence"
    no_sequence = Problem("is_instance_of", "body.input", text, given, ", 'ctx': {'class': 'Sequence'}")
    return [
        *(not_a_list, not_a_list, not_text, not_a_list),
        *(no_messages, no_messages, no_messages),
        *(not_a_list, no_messages, no_sequence),
    ]


def _texts(given: object) -> list[bytes]:
    return [_text(item) for item in given] if isinstance(given, list) else [_text(given)]


def _text(given: object) -> bytes:
    """A text to be scored; an image or the like counts as its JSON."""
    return given.encode("utf-8", "surrogatepass") if isinstance(given, str) else schema.written(given)


def _prompts(texts: list[bytes], body: _Body, settings: PodSettings) -> tuple[Prompt, ...]:
    window = settings.max_model_len_tokens
    limit = body.truncate_prompt_tokens
    if limit is not None:
        kept = (window if limit == -1 else limit) * BYTES_PER_TOKEN
        texts = [text[:kept] for text in texts]
    if not all(texts):
        raise Refused(refusals.bad_request("The decoder prompt cannot be empty"))
    salt = (settings.seed, "pooling")
    size = settings.block_size_tokens
    prompts = tuple(read_prompt(text, block_size_tokens=size, salt=salt) for text in texts)
    if any(prompt.tokens > window for prompt in prompts):
        raise Refused(refusals.prompt_too_long(window))
    return prompts


def _checked_dimensions(dimensions: int, settings: PodSettings) -> int:
    if not settings.matryoshka:
        message = (
            f"Model {settings.model!r} does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={dimensions})."
        )
        raise Refused(refusals.bad_request(message))
    longest = settings.embedding_dimensions
    if not 1 <= dimensions <= longest:
        message = f"Model {settings.model!r} only supports dimensions in range [1, {longest}], got {dimensions}."
        raise Refused(refusals.bad_request(message))
    return dimensions


def _check_model(body: _Body, settings: PodSettings) -> None:
    if body.model is not None and body.model not in settings.served_names:
        raise Refused(refusals.nested(404, f"The model `{body.model}` does not exist.", "NotFoundError"))


def _fault(body: _Body) -> Fault | None:
    if body.sim_fault is None:
        return None
    try:
        return fault_from_json(schema.written(body.sim_fault))
    except BadFault as error:
        raise Refused(refusals.sim_error(str(error))) from None


def _count(prompts: Sequence[Prompt]) -> int:
    return sum(prompt.tokens for prompt in prompts)


def _usage(tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def _echoed(document: object) -> dict[str, object]:
    if isinstance(document, dict):
        return {"text": None, "multi_modal": document.get("content", [])}
    return {"text": document, "multi_modal": None}
