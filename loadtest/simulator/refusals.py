"""What vLLM says when it says no, in its own words: four shapes of error body, as captured from 0.32.0.

1. `{"error": {"message", "type", "param", "code"}}` with an integer code, for what the OpenAI server refuses.
2. `{"detail": "..."}` for what FastAPI refuses before a handler runs.
3. `{"error": "Unauthorized"}`, a string, for the key.
4. text, for CORS and for bytes that are not HTTP.
"""

from __future__ import annotations

import orjson

from loadtest.simulator.wire import Reply

BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUT_DOWN = "cannot schedule new futures after shutdown"


class Refused(Exception):
    """Carries the reply that says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status, reply.body)
        self.reply = reply


def nested(status: int, message: str, kind: str, param: str | None = None) -> Reply:
    return Reply(status, error_body(status, message, kind, param))


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def error_payload(status: int, message: str, kind: str) -> bytes:
    """An error inside a stream. vLLM writes this one with the standard json module, hence the spaces."""
    text = orjson.dumps(message).decode()
    return f'{{"error": {{"message": {text}, "type": "{kind}", "param": null, "code": {status}}}}}'.encode()


def bad_request(message: str, param: str | None = None, value: object = None) -> Reply:
    """A request that was understood and refused. With `value`, vLLM names the parameter in the message too."""
    if value is not None:
        message = f"{message} (parameter={param}, value={value})"
    return nested(400, message, "BadRequestError", param)


def invalid(problems: list[str], param: str | None) -> Reply:
    """A request that does not fit the schema. `problems` are Python literals, as pydantic's are printed."""
    plural = "" if len(problems) == 1 else "s"
    message = "\n  ".join([f"{len(problems)} validation error{plural}:", *problems])
    return nested(400, message, "Bad Request", param)


def unknown_model(model: str, served: tuple[str, ...]) -> Reply:
    message = f"The model `{model}` does not exist. Valid aliases: {', '.join(served)}."
    return nested(404, message, "NotFoundError", "model")


def too_many_tokens(field: str, limit: int, window: int) -> Reply:
    message = f"{field}={limit} cannot be greater than max_model_len={window}. Please request fewer output tokens."
    return bad_request(message, field, limit)


def prompt_too_long(window: int) -> Reply:
    """vLLM stops counting a prompt one token behind what fits."""
    message = (
        f"This model's maximum context length is {window} tokens. However, your prompt contains at least "
        f"{window + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        "length of the input prompt."
    )
    return bad_request(message, "input_tokens", window + 1)


def no_priorities(priority: int) -> Reply:
    return bad_request(f"Got priority {priority} but Priority scheduling is not enabled.")


def busy() -> Reply:
    return nested(503, BUSY, "Service Unavailable")


def engine_dead() -> Reply:
    return nested(500, ENGINE_DEAD, "InternalServerError")


def shut_down() -> Reply:
    return nested(500, SHUT_DOWN, "InternalServerError")


def unauthorized() -> Reply:
    # The key is checked outside the CORS middleware, so this one has no `vary`.
    return Reply(401, b'{"error":"Unauthorized"}', after=())


def detail(status: int, text: str) -> Reply:
    return Reply(status, orjson.dumps({"detail": text}))


def not_found() -> Reply:
    return detail(404, "Not Found")


def method_not_allowed(allowed: str) -> Reply:
    return Reply(405, b'{"detail":"Method Not Allowed"}', before=((b"allow", allowed.encode()),))


def bad_body() -> Reply:
    return detail(400, "There was an error parsing the body")


def disallowed_origin(asked_headers: bytes | None) -> Reply:
    asking = b"Access-Control-Request-"
    before = [
        (b"vary", b"Origin, %bMethod, %bHeaders, %bPrivate-Network" % (asking, asking, asking)),
        (b"access-control-allow-methods", b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
        (b"access-control-max-age", b"600"),
    ]
    if asked_headers is not None:
        before.append((b"access-control-allow-headers", asked_headers))
    return Reply(400, b"Disallowed CORS origin", b"text/plain; charset=utf-8", tuple(before), ())


def not_http() -> Reply:
    return Reply(400, b"Invalid HTTP request received.", b"text/plain; charset=utf-8", after=())


def body_too_large(limit_bytes: int) -> Reply:
    """Ours: vLLM reads whatever comes."""
    return Reply(413, orjson.dumps({"detail": f"the simulator reads at most {limit_bytes} bytes"}))


def sim_error(text: str) -> Reply:
    """Ours: a wrong use of the simulator itself."""
    return nested(400, text, "SimulatorError", "sim_fault")
