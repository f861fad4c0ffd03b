"""Every captured request that can be asked again, and what makes two answers to it comparable.

A capture is one exchange with a real vLLM. Its request is sent once to a pod directly, edited as the gateway edits it,
and once through the gateway; the two answers must be equal, but for ids and times.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.pipeline.checks import GUARDED_FIELDS
from gateway.pipeline.operations import OPERATIONS, Body
from tests.running import CAPTURES

MODEL = "smollm2"
"""What all captures ask for."""
_PATHS = {operation.path.decode(): operation for operation in OPERATIONS if operation.body is Body.JSON}
_REQUEST = re.compile(rb"(?:### REQUEST\n)?POST (\S+) HTTP/1\.1\r?\n(.*?)\r?\n\r?\n(.*?)\n### RESPONSE", re.DOTALL)
_UNLIKE = (
    (re.compile(rb'"(id|item_id|call_id|request_id)":\s?"[^"]*"'), rb'"\1":"ID"'),
    (re.compile(rb'"(created|created_at|completed_at)":\s?\d+'), rb'"\1":0'),
)

TASKS = {"p0": "embed", "p1": "embed", "p2": "embed", "p3": "embed", "p4": "embed", "p5": "embed", "p6": "score"}
"""What the pods of some captures served, by the beginnings of their names; all others generate."""


@dataclass(frozen=True)
class Replay:
    """One captured request."""

    name: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def task(self) -> str:
        """What a pod must serve to answer it."""
        return TASKS.get(self.name[:2], "generate")

    @property
    def fields(self) -> dict[str, Any] | None:
        """The body, if it is a JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    @property
    def answered_by(self) -> int | None:
        """The status with which the gateway answers it itself; None: a pod answers."""
        if "json" not in self.headers.get("Content-Type", "json"):
            return 415
        fields = self.fields
        if fields is None or "model" not in fields or fields.get("background") or fields.get("previous_response_id"):
            return 400
        if fields["model"] != MODEL:
            return 404
        return 400 if self._asks_too_much else None

    @property
    def _asks_too_much(self) -> bool:
        """Whether it is beyond the caps of `requests`, as they are without a word."""
        asked = [(self.fields or {}).get(name) for name in ("logprobs", "top_logprobs", "prompt_logprobs")]
        return b'"url":"http' in self.body.replace(b" ", b"") or any(
            isinstance(each, int) and each > 20 for each in asked
        )

    def steadied(self, most_tokens: int) -> "Replay":
        """The same, so that a real model says the same twice, and soon: without chance, and not much."""
        fields = self.fields
        if fields is None or not _PATHS[self.path].streams:
            return self
        steady = {"temperature": 0, "seed": 7} | fields
        if self.path == "/v1/responses":
            steady.setdefault("max_output_tokens", most_tokens)
        for limit in ("max_tokens", "max_output_tokens"):
            # What is refused for its limit stays as it is.
            if limit in steady and most_tokens < steady[limit] <= 1000:
                steady[limit] = most_tokens
        return Replay(self.name, self.path, self.headers, json.dumps(steady).encode())

    @property
    def is_guarded(self) -> bool:
        """Whether it has a field that an ordinary key may not send."""
        return not set(GUARDED_FIELDS).isdisjoint(self.fields or ())

    @property
    def as_the_gateway_asks(self) -> bytes:
        """A stream that tells its usage only when asked is asked; nothing else is edited."""
        return self.body if self.shows_usage else json.dumps({**(self.fields or {}), **_USAGE}).encode()

    @property
    def shows_usage(self) -> bool:
        """Whether the caller gets all events there are."""
        fields = self.fields or {}
        if not (_PATHS[self.path].asks_usage and fields.get("stream")):
            return True
        return bool((fields.get("stream_options") or {}).get("include_usage"))


_USAGE = {"stream_options": {"include_usage": True}}


def replays() -> Iterator[Replay]:
    """All of them, each request once, in the order of their names."""
    seen = set()
    for file in sorted(CAPTURES.glob("*.http")):
        found = _REQUEST.match(file.read_bytes())
        if found is None or (path := found[1].decode()) not in _PATHS:
            continue
        lines = [line.partition(":") for line in found[2].decode("latin-1").splitlines()]
        headers = {name.strip().lower(): value.strip() for name, _, value in lines}
        body = found[3]
        kept = {name.title(): value for name, value in headers.items() if name in ("content-type", "x-request-id")}
        replay = Replay(file.stem, path, kept, body)
        if headers.get("content-length") == str(len(body)) and (key := (replay.task, path, body)) not in seen:
            seen.add(key)
            yield replay


def comparable(answer: bytes, shows_usage: bool = True) -> list[bytes]:
    """An answer in parts that can be compared: a stream's events, or the whole of it."""
    for pattern, replacement in _UNLIKE:
        answer = pattern.sub(replacement, answer)
    if not answer.startswith((b"data:", b"event:", b":")):
        return [answer]
    events = [event for event in answer.split(b"\n\n") if event.strip()]
    return [event for event in events if shows_usage or b'"choices":[],"usage"' not in event]
