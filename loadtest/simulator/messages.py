"""`/v1/messages`: Anthropic's API, as vLLM serves it on top of its chat completions.

What FastAPI refuses before the handler runs comes in OpenAI's shape, what the handler refuses in Anthropic's.
An error in a stream is an `error` event without `message_stop`: vLLM fails to read its own chat's error event
as a chunk, and says so in pydantic's words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import orjson

from loadtest.simulator import asked, refusals, schema
from loadtest.simulator.asked import Asked, Refused
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import (
    ChatAnswer,
    Choice,
    Counts,
    Dialect,
    Usage,
    derived_id,
    named_event,
    read_answer,
)
from loadtest.simulator.schema import Problem
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply

_ROLES = "'user', 'assistant' or 'system'"


class _Text(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[_Text] | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _CountBody(msgspec.Struct, kw_only=True):
    model: str
    messages: list[_Message]
    output_config: dict[str, Any] | None = None
    system: str | list[_Text] | None = None
    thinking: dict[str, Any] | None = None
    tool_choice: _ToolChoice | None = None
    tools: list[_Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    sim_fault: Any = None


class _Body(_CountBody, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    cache_salt: str | None = None


BodyT = TypeVar("BodyT", bound=_CountBody)


def read_messages(request: ReceivedRequest, settings: PodSettings) -> tuple[Asked, Dialect]:
    """Raises Refused."""
    body = _read(request, _Body)
    if body.max_tokens <= 0:
        text = "max_tokens must be positive"
        more = f", 'ctx': {{'error': ValueError({text!r})}}"
        raise schema.unfit([Problem("value_error", "body.max_tokens", f"Value error, {text}", body.max_tokens, more)])
    chat = _chat(body)
    chat |= {
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "cache_salt": body.cache_salt,
    }
    if body.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    window = settings.max_model_len_tokens
    if body.max_tokens > window and body.model in settings.served_names:
        raise Refused(anthropic(refusals.too_many_tokens("max_completion_tokens", body.max_tokens, window)))
    return _ask(chat, settings), Messages()


def count_tokens(request: ReceivedRequest, settings: PodSettings) -> Reply:
    """`/v1/messages/count_tokens`. Raises Refused."""
    wanted = _ask(_chat(_read(request, _CountBody)), settings)
    tokens = wanted.prompts[0].tokens
    return Reply(200, b'{"input_tokens":%d,"context_management":{"original_input_tokens":%d}}' % (tokens, tokens))


def anthropic(reply: Reply) -> Reply:
    """OpenAI's error in Anthropic's shape: the type stays vLLM's own."""
    told = orjson.loads(reply.body)
    error = told.get("error") if isinstance(told, dict) else None
    if not isinstance(error, dict) or "message" not in error:
        return reply
    body = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    return Reply(reply.status, orjson.dumps(body), reply.content_type, reply.before, reply.after)


def _read(request: ReceivedRequest, into: type[BodyT]) -> BodyT:
    body = schema.read(request.body, request.raw_header(b"content-type"), into)
    for ordinal, message in enumerate(body.messages):
        if message.role not in ("user", "assistant", "system"):
            place = f"body.messages.{ordinal}.role"
            more = f", 'ctx': {{'expected': {_ROLES!r}}}"
            raise schema.unfit([Problem("literal_error", place, f"Input should be {_ROLES}", message.role, more)])
    return body


def _ask(chat: dict[str, Any], settings: PodSettings) -> Asked:
    try:
        return asked.read_chat(schema.written(chat), b"application/json", settings)
    except Refused as refused:
        raise Refused(anthropic(refused.reply)) from None


def _chat(body: _CountBody) -> dict[str, Any]:
    chat: dict[str, Any] = {"model": body.model, "messages": _chat_messages(body)}
    if body.chat_template_kwargs is not None:
        chat["chat_template_kwargs"] = body.chat_template_kwargs
    config = body.output_config or {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    wanted = config.get("format")
    if isinstance(wanted, dict) and wanted.get("schema") is not None:
        json_schema = {"name": "json_schema", "schema": wanted["schema"]}
        chat["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if body.tools is not None:
        chat["tools"] = [_chat_tool(tool) for tool in body.tools]
        chat["tool_choice"] = "auto"
    choice = body.tool_choice
    if choice is not None:
        chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        named = {"type": "function", "function": {"name": choice.name}}
        chat["tool_choice"] = named if choice.type == "tool" else {"any": "required"}.get(choice.type, choice.type)
    if body.sim_fault is not None:
        chat["sim_fault"] = body.sim_fault
    return chat


def _chat_tool(tool: _Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _chat_messages(body: _CountBody) -> list[dict[str, Any]]:
    system = body.system if isinstance(body.system, str) else _system_text(body.system or [])
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in body.messages:
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        else:
            messages += _chat_turn(message.role, message.content)
    return messages


def _chat_turn(role: str, blocks: list[_Block]) -> list[dict[str, Any]]:
    """One message of blocks: the results of tools first, each a message of its own."""
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        if block.type == "text" and block.text:
            parts.append({"type": "text", "text": block.text})
        elif block.type == "image":
            parts.append({"type": "image_url", "image_url": {"url": "data:"}})
        elif block.type == "tool_use":
            function = {"name": block.name or "", "arguments": schema.written(block.input or {}).decode()}
            calls.append({"id": block.id or "", "type": "function", "function": function})
        elif block.type == "tool_result":
            content = block.content
            text = content if isinstance(content, str) else "\n".join(_texts(content or []))
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": text})
    turn: dict[str, Any] = {"role": role}
    if calls:
        turn["tool_calls"] = calls
    if parts:
        turn["content"] = parts
    return [*messages, turn] if parts or calls else messages


def _texts(blocks: list[_Text]) -> list[str]:
    return [block.text for block in blocks if block.type == "text" and block.text]


def _system_text(blocks: list[_Text]) -> str:
    """Without the line of Claude Code's that differs from request to request and would spoil the prefix cache."""
    return "".join(text for text in _texts(blocks) if not text.startswith("x-anthropic-billing-header"))


class Messages(Dialect):
    """A chat's answer as Anthropic's, one block at a time."""

    def __init__(self) -> None:
        self._started = False
        self._broken = False
        self._index = -1
        self._open: str | None = None  # the kind of the open block
        self._call: int | None = None  # which call of the chat the open tool_use block is
        self._arguments: list[str] = []
        self._called = False
        self._finish: Choice | None = None

    def refused(self, reply: Reply) -> Reply:
        return anthropic(reply)

    def is_last(self, event: bytes) -> bool:
        return event == self.last()

    def last(self) -> bytes:
        return named_event("message_stop", b'{"type":"message_stop"}')

    def told(self, event: bytes, counts: Callable[[], Counts]) -> list[bytes]:
        if self._broken:
            return []
        payload = event.removeprefix(b"data: ").strip()
        if payload == b"[DONE]":
            return [*self._closed(), self.last()]
        answer = read_answer(payload)
        if answer.error is not None:
            self._broken = True
            return [named_event("error", _unreadable(payload))]
        events = [] if self._started else [self._start(answer)]
        if not answer.choices:
            return [*events, *self._closed(), self._end(answer.usage)]
        choice = answer.choices[0]
        if choice.finish_reason is not None:
            self._finish = choice
        if choice.delta.reasoning:
            events += self._piece("thinking", "thinking_delta", "thinking", choice.delta.reasoning)
        if choice.delta.content:
            events += self._piece("text", "text_delta", "text", choice.delta.content)
        for call in choice.delta.tool_calls or []:
            if call.id is not None and call.function.name is not None and call.index != self._call:
                block = {"type": "tool_use", "id": call.id, "name": call.function.name, "input": {}}
                events += [*self._closed(), self._opened(block)]
                self._call, self._arguments, self._called = call.index, [], True
            if call.function.arguments:
                self._arguments.append(call.function.arguments)
                events.append(self._delta({"type": "input_json_delta", "partial_json": call.function.arguments}))
        return events

    def _start(self, answer: ChatAnswer) -> bytes:
        self._started = True
        message: dict[str, Any] = {
            "id": self.identity.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.identity.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(answer.usage),
        }
        return _event({"type": "message_start", "message": message})

    def _piece(self, block: str, delta: str, field: str, text: str) -> list[bytes]:
        events = []
        if self._open != block:
            events = [*self._closed(), self._opened({"type": block, field: ""})]
        return [*events, self._delta({"type": delta, field: text})]

    def _opened(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = block["type"]
        return _event({"type": "content_block_start", "content_block": block, "index": self._index})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "delta": delta, "index": self._index})

    def _closed(self) -> list[bytes]:
        kind, self._open, self._call = self._open, None, None
        if kind is None:
            return []
        events = []
        if kind == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": self._signature(self._index)}))
        return [*events, _event({"type": "content_block_stop", "index": self._index})]

    def _signature(self, index: int) -> str:
        return derived_id("", self.identity.id, index) + derived_id("", self.identity.id, index, "more")

    def _end(self, usage: Usage | None) -> bytes:
        reason, sequence = _stopped(self._finish, self._called, _is_json("".join(self._arguments)))
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return _event({"type": "message_delta", "delta": delta, "usage": _usage(usage)})

    def whole(self, body: bytes, counts: Callable[[], Counts]) -> bytes:
        answer = read_answer(body)
        choice = answer.choices[0]
        said = choice.message
        calls = said.tool_calls or []
        content: list[dict[str, Any]] = []
        if said.reasoning:
            content.append({"type": "thinking", "thinking": said.reasoning, "signature": self._signature(0)})
        if said.content:
            content.append({"type": "text", "text": said.content})
        for call in calls:
            arguments = orjson.loads(call.function.arguments or "{}")
            content.append({"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments})
        reason, sequence = _stopped(choice if choice.finish_reason else None, bool(calls), True)
        told = {
            "id": self.identity.id,
            "type": "message",
            "role": "assistant",
            "content": content or [{"type": "text", "text": ""}],
            "model": self.identity.model,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(answer.usage),
        }
        return orjson.dumps({key: value for key, value in told.items() if value is not None})


def _stopped(finish: Choice | None, called: bool, call_is_whole: bool) -> tuple[str | None, str | None]:
    """`stop_reason` and `stop_sequence`. A chat says "stop" behind a named call; Anthropic says tool_use."""
    if finish is None:
        return None, None
    if finish.finish_reason == "length":
        return "max_tokens", None
    if called and call_is_whole:
        return "tool_use", None
    if isinstance(finish.stop_reason, str):
        return "stop_sequence", finish.stop_reason
    return ("tool_use" if called or finish.finish_reason == "tool_calls" else "end_turn"), None


def _usage(usage: Usage | None) -> dict[str, int]:
    """Anthropic counts what the cache gave and took beside `input_tokens`, not within."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    details = usage.prompt_tokens_details
    if details is None:
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    found, added = details.get("cached_tokens") or 0, details.get("created_cache_tokens") or 0
    return {
        "input_tokens": max(usage.prompt_tokens - found - added, 0),
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": added,
        "cache_read_input_tokens": found,
    }


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _event(payload: dict[str, Any]) -> bytes:
    return named_event(payload["type"], orjson.dumps(payload))


def _unreadable(payload: bytes) -> bytes:
    """What vLLM says of a chat's error event that it took for a chunk; the error's own text is cut out of it."""
    shown = str(orjson.loads(payload))
    shown = f"{shown[:25]}...{shown[-24:]}"
    lines = ["2 validation errors for ChatCompletionStreamResponse"]
    for field in ("model", "choices"):
        lines += [
            field,
            f"  Field required [type=missing, input_value={shown}, input_type=dict]",
            "    For further information visit https://errors.pydantic.dev/2.14/v/missing",
        ]
    message = "\n".join(lines)
    return orjson.dumps({"type": "error", "error": {"type": "internal_error", "message": message}})
