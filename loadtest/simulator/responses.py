"""`/v1/responses`, as a vLLM without a store serves it: every request stands for itself.

As in vLLM 0.32 an answer cut at `max_output_tokens` ends its stream with `response.completed` too, with the
status "incomplete" in it, and an engine that dies ends the connection without a word and without the last
chunk. The `error` event a fault asks for is OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from loadtest.simulator import asked, refusals, schema
from loadtest.simulator.asked import Asked, Refused
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import Counts, Dialect, ToolCall, derived_id, named_event, read_answer
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply

NO_STORE = (
    "This vLLM engine does not support `store=True` and therefore does not support the background mode. To enable "
    "these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server."
)


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Item(msgspec.Struct):
    """Of an input: a message, a call, or what a call gave."""

    type: str = "message"
    role: str = "user"
    content: str | list[_Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: Any = None


class _Body(msgspec.Struct, kw_only=True):
    background: bool | None = None
    input: str | list[_Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str = "auto"
    store: bool | None = True
    stream: bool | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    top_p: float | None = None
    truncation: str | None = "disabled"
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    sim_fault: Any = None


def read_responses(request: ReceivedRequest, settings: PodSettings) -> tuple[Asked, Dialect]:
    """Raises Refused."""
    content_type = request.raw_header(b"content-type")
    body = schema.read(request.body, content_type, _Body, filled_in={"tool_choice": "none"})
    if body.background and body.store is False:
        message = "background can only be used when `store` is true (parameter=background)"
        raise Refused(refusals.bad_request(message, "background"))
    if body.tool_choice == "required" and not body.tools:
        message = "Tool choice 'required' must be specified with 'tools' parameter. (parameter=tool_choice)"
        raise Refused(refusals.bad_request(message, "tool_choice"))
    if body.model is None or body.model in settings.served_names:
        _check_storeless(body)
        window = settings.max_model_len_tokens
        if body.max_output_tokens is not None and body.max_output_tokens > window:
            raise Refused(refusals.too_many_tokens("max_output_tokens", body.max_output_tokens, window))
    wanted = asked.read_chat(schema.written(_chat(body)), b"application/json", settings)
    return wanted, Responses(body, wanted.max_tokens)


def unknown_response(response_id: str) -> Reply:
    """What `GET /v1/responses/{id}` and `POST …/cancel` get: nothing is ever stored."""
    message = f"Response with id '{response_id}' not found."
    return refusals.nested(404, message, "invalid_request_error", "response_id")


def _check_storeless(body: _Body) -> None:
    if body.store and body.background:
        raise Refused(refusals.nested(400, NO_STORE, "invalid_request_error", "background"))
    if body.previous_response_id is not None:
        raise Refused(unknown_response(body.previous_response_id))


def _chat(body: _Body) -> dict[str, Any]:
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": _chat_messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "cache_salt": body.cache_salt,
        "stop": body.stop,
        "ignore_eos": body.ignore_eos,
    }
    if body.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if body.tools:
        chat["tools"] = [_chat_tool(tool) for tool in body.tools if tool.get("type") == "function"]
        choice = body.tool_choice
        named = {"type": "function", "function": {"name": choice.get("name")}} if isinstance(choice, dict) else choice
        chat["tool_choice"] = named
        if body.parallel_tool_calls is not None:
            chat["parallel_tool_calls"] = body.parallel_tool_calls
    wanted = (body.text or {}).get("format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        json_schema = {key: wanted[key] for key in ("name", "schema", "strict") if key in wanted}
        chat["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    elif isinstance(wanted, dict) and wanted.get("type") == "json_object":
        chat["response_format"] = {"type": "json_object"}
    if body.reasoning and body.reasoning.get("effort") is not None:
        chat["reasoning_effort"] = body.reasoning["effort"]
    if body.sim_fault is not None:
        chat["sim_fault"] = body.sim_fault
    return {key: value for key, value in chat.items() if value is not None}


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _chat_messages(body: _Body) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    if not body.input:
        return []  # refused as an empty conversation, instructions or not
    for item in body.input:
        if item.type == "message":
            messages.append({"role": item.role, "content": _chat_content(item.content)})
        elif item.type == "function_call":
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages.append({"role": "assistant", "tool_calls": [call]})
        elif item.type == "function_call_output":
            text = item.output if isinstance(item.output, str) else schema.written(item.output).decode()
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
    return messages


def _chat_content(content: str | list[_Part] | None) -> object:
    if not isinstance(content, list):
        return content
    return [
        {"type": "image_url", "image_url": {"url": "data:"}}
        if part.type == "input_image"
        else {"type": "text", "text": part.text}
        for part in content
    ]


class Responses(Dialect):
    """A chat's answer as items: reasoning, a message, calls of functions."""

    id_prefix = "resp_"
    takes_request_id = False

    def __init__(self, body: _Body, max_tokens: int) -> None:
        self.own_id = body.request_id
        self._body = body
        self._max_tokens = max_tokens
        self._events = 0
        self._items: list[dict[str, Any]] = []  # those that are done
        self._open: str | None = None
        self._call: ToolCall | None = None
        self._item_id = ""
        self._text: list[str] = []
        self._finish: str | None = None
        self._completed = False

    def is_last(self, event: bytes) -> bool:
        return event.startswith(b"event: response.completed\n")

    def last(self) -> bytes:
        return self._event("response.completed", {"response": self._response("in_progress", None)})

    def opening(self) -> list[bytes]:
        response = self._response("in_progress", None)
        return [self._event(kind, {"response": response}) for kind in ("response.created", "response.in_progress")]

    def told(self, event: bytes, counts: Callable[[], Counts]) -> list[bytes]:
        payload = event.removeprefix(b"data: ").strip()
        if payload == b"[DONE]" or self._completed:
            return []
        answer = read_answer(payload)
        if not answer.choices:
            return [*self._closed(), self._complete(counts())]
        choice = answer.choices[0]
        self._finish = choice.finish_reason or self._finish
        events: list[bytes] = []
        if choice.delta.reasoning:
            events += self._piece("reasoning", choice.delta.reasoning)
        if choice.delta.content:
            events += self._piece("message", choice.delta.content)
        for call in choice.delta.tool_calls or []:
            if call.id is not None and (self._call is None or call.index != self._call.index):
                events += [*self._closed(), *self._opened("function_call", call)]
            if call.function.arguments:
                self._text.append(call.function.arguments)
                events.append(self._part_event("response.function_call_arguments.delta", delta=call.function.arguments))
        return events

    def _complete(self, counts: Counts) -> bytes:
        self._completed = True
        return self._event("response.completed", {"response": self._response(self._status(self._finish), counts)})

    def _status(self, finish: str | None) -> str:
        if finish is None:
            return "in_progress"
        return "incomplete" if finish == "length" else "completed"

    def failure(self, message: str, status: int) -> list[bytes]:
        return [self._event("error", {"code": str(status), "message": message, "param": None})]

    def death(self) -> list[bytes]:
        return []

    def _piece(self, kind: str, text: str) -> list[bytes]:
        events = [] if self._open == kind else [*self._closed(), *self._opened(kind, None)]
        self._text.append(text)
        if kind == "reasoning":
            return [*events, self._part_event("response.reasoning_text.delta", content_index=0, delta=text)]
        more = {"content_index": 0, "delta": text, "logprobs": []}
        return [*events, self._part_event("response.output_text.delta", **more)]

    def _opened(self, kind: str, call: ToolCall | None) -> list[bytes]:
        self._open, self._call, self._text = kind, call, []
        prefix = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}[kind]
        self._item_id = derived_id(prefix, self.identity.id, len(self._items))
        item = self._item("in_progress")
        index = len(self._items)
        added = self._event("response.output_item.added", {"item": item, "output_index": index})
        if kind == "function_call":
            return [added]
        part = _text_part("", []) if kind == "message" else {"text": "", "type": "reasoning_text"}
        return [added, self._part_event("response.content_part.added", content_index=0, part=part)]

    def _closed(self) -> list[bytes]:
        kind = self._open
        if kind is None:
            return []
        text = "".join(self._text)
        item = self._item("completed")
        if kind == "function_call":
            done = "response.function_call_arguments.done"
            events = [self._part_event(done, arguments=text, name=item["name"])]
        elif kind == "message":
            part = _text_part(text, None)
            events = [
                self._part_event("response.output_text.done", content_index=0, text=text, logprobs=[]),
                self._part_event("response.content_part.done", content_index=0, part=part),
            ]
        else:
            part = {"text": text, "type": "reasoning_text"}
            events = [
                self._part_event("response.reasoning_text.done", content_index=0, text=text),
                self._part_event("response.content_part.done", content_index=0, part=part),
            ]
        index = len(self._items)
        events.append(self._event("response.output_item.done", {"item": item, "output_index": index}))
        self._items.append(item)
        self._open, self._call = None, None
        return events

    def _item(self, status: str) -> dict[str, Any]:
        text = "".join(self._text)
        if self._open == "function_call" and self._call is not None:
            return _call_item(self._item_id, self._call.id, self._call.function.name, text, status)
        if self._open == "reasoning":
            content = [{"text": text, "type": "reasoning_text"}] if status == "completed" else None
            return _reasoning_item(self._item_id, content, status)
        return _message_item(self._item_id, text, status)

    def _part_event(self, kind: str, **more: Any) -> bytes:
        return self._event(kind, {**more, "item_id": self._item_id, "output_index": len(self._items)})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        """Keys stand in the order of their names, as in the OpenAI library's models; there `name` came later."""
        fields = {**fields, "sequence_number": self._events, "type": kind}
        self._events += 1
        return named_event(kind, schema.written({key: fields[key] for key in sorted(fields, key=_place)}))

    def whole(self, body: bytes, counts: Callable[[], Counts]) -> bytes:
        choice = read_answer(body).choices[0]
        said = choice.message
        origin = self.identity.id
        items: list[dict[str, Any]] = []
        if said.reasoning:
            content = [{"text": said.reasoning, "type": "reasoning_text"}]
            items.append(_reasoning_item(derived_id("rs_", origin, 0), content, None))
        if said.content or not said.tool_calls:
            items.append(_message_item(derived_id("msg_", origin, len(items)), said.content or "", "completed"))
        for call in said.tool_calls or []:
            item_id = derived_id("fc_", origin, len(items))
            arguments = call.function.arguments or ""
            items.append(_call_item(item_id, call.id, call.function.name, arguments, "completed"))
        self._items = items
        return schema.written(self._response(self._status(choice.finish_reason), counts()))

    def _response(self, status: str, counts: Counts | None) -> dict[str, Any]:
        body = self._body
        return {
            "id": self.identity.id,
            "created_at": self.identity.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": body.metadata,
            "model": self.identity.model,
            "object": "response",
            "output": self._items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": 1.0 if body.temperature is None else float(body.temperature),
            "tool_choice": _echoed_choice(body),
            "tools": [_echoed_tool(tool) for tool in body.tools],
            "top_p": 1.0 if body.top_p is None else float(body.top_p),
            "background": bool(body.background),
            "max_output_tokens": self._max_tokens,
            "max_tool_calls": body.max_tool_calls,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": _echoed(body.reasoning, ("context", "effort", "generate_summary", "mode", "summary")),
            "service_tier": body.service_tier,
            "status": status,
            "text": _echoed_text(body.text),
            "top_logprobs": None,
            "truncation": body.truncation,
            "usage": None if counts is None else _usage(counts),
            "user": body.user,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _place(field: str) -> tuple[bool, str]:
    return field == "name", field


def _text_part(text: str, logprobs: list[Any] | None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _message_item(item_id: str, text: str, status: str) -> dict[str, Any]:
    content = [_text_part(text, None)] if text else []
    return {
        "id": item_id,
        "content": content,
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": None,
    }


def _reasoning_item(item_id: str, content: list[Any] | None, status: str | None) -> dict[str, Any]:
    return {
        "id": item_id,
        "summary": [],
        "type": "reasoning",
        "content": content,
        "encrypted_content": None,
        "status": status,
    }


def _call_item(item_id: str, call_id: str | None, name: str | None, arguments: str, status: str) -> dict[str, Any]:
    return {
        "arguments": arguments,
        "call_id": call_id,
        "name": name,
        "type": "function_call",
        "id": item_id,
        "async": None,
        "caller": None,
        "namespace": None,
        "status": status,
    }


def _usage(counts: Counts) -> dict[str, Any]:
    prompt, completion, cached, created = counts
    per_turn: list[int] = []
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": created,
            "input_tokens_per_turn": per_turn,
            "cached_tokens_per_turn": per_turn,
        },
        "output_tokens": completion,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": per_turn,
            "tool_output_tokens_per_turn": per_turn,
        },
        "total_tokens": prompt + completion,
    }


def _echoed(given: dict[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """With every field of the OpenAI library's model, null where it was left out."""
    return None if given is None else {key: given.get(key) for key in keys}


def _echoed_choice(body: _Body) -> object:
    if isinstance(body.tool_choice, dict):
        return _echoed(body.tool_choice, ("name", "type"))
    return body.tool_choice if body.tools else "none"


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    first = ("name", "parameters", "strict", "type")
    keys = (*first, "allowed_callers", "async", "defer_loading", "description", "output_schema")
    return {key: tool.get(key) for key in keys}


def _echoed_text(text: dict[str, Any] | None) -> dict[str, Any] | None:
    if text is None:
        return None
    wanted = text.get("format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        wanted = {key: wanted.get(key) for key in ("name", "schema", "type", "description", "strict")}
    return {"format": wanted, "verbosity": text.get("verbosity")}
