"""HTTP as bytes: ask, read the answer as it came, and say in which bytes two answers differ.

Nothing here decodes JSON to compare it: a gateway that parsed an event and wrote it anew would look right to
a client and still be wrong (key order, escapes, unknown keys, floats).
"""

import http.client
import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

Body = Mapping[str, Any]

END = b"data: [DONE]\n\n"
# These differ between two runs of the same request at the same server, and nothing else does.
ANSWER_ID = re.compile(rb'"id":"(chatcmpl|cmpl)-(?!tool-)[^"]*"')
TOOL_CALL_ID = re.compile(rb'"id":"chatcmpl-tool-[0-9a-f]*"')
CREATED = re.compile(rb'"created":\d+')
INDEX = re.compile(rb'"choices":\[\{"index":(\d+),')


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    seconds: float

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")


@dataclass(frozen=True)
class Server:
    """Where to ask, and the key to ask with, if one is needed."""

    url: str
    key: str | None = field(default=None, repr=False)
    ops_url: str = ""
    """A gateway's ops port."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    def headers(self) -> dict[str, str]:
        authorization = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return {"content-type": "application/json", **authorization}

    def ask(self, path: str, body: Body | bytes) -> Answer:
        """The whole answer, on a connection of its own. Raises IncompleteRead if it was cut short."""
        connection = self.connect()
        try:
            return self.ask_on(connection, path, body)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def ask_on(self, connection: http.client.HTTPConnection, path: str, body: Body | bytes) -> Answer:
        start = time.monotonic()
        connection.request("POST", path, _bytes(body), self.headers())
        answer = connection.getresponse()
        content = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, content, time.monotonic() - start)

    def send(self, path: str, body: Body) -> socket.socket:
        """Send a request and leave the answer unread: for a client that is about to leave."""
        content = _bytes(body)
        lines = [f"POST {path} HTTP/1.1", f"host: {self.host}:{self.port}", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        sock = socket.create_connection((self.host, self.port), timeout=120)
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        return sock


def _bytes(body: Body | bytes) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def events_in(body: bytes) -> list[bytes]:
    """The events of a stream, each with the empty line that ends it; joined they are the body again."""
    events = [event + b"\n\n" for event in body.split(b"\n\n")]
    assert events.pop() == b"\n\n", f"a stream ends in the middle of an event: {body[-200:]!r}"
    return events


def normalised(content: bytes) -> bytes:
    content = ANSWER_ID.sub(rb'"id":"\1-"', content)
    content = TOOL_CALL_ID.sub(b'"id":"chatcmpl-tool-"', content)
    return CREATED.sub(b'"created":0', content)


def ids_in(content: bytes) -> set[bytes]:
    """The answer's own id, once for each text it has; a tool call's is not among them."""
    return {match[0] for match in ANSWER_ID.finditer(content)}


def untangled(events: Sequence[bytes]) -> list[bytes]:
    """The events of index 0 in their order, then those of index 1, and so on; what follows them stays last.

    In an answer with several choices vLLM interleaves them anew each time.
    """
    indexes = [INDEX.search(event) for event in events]
    of_choices = indexes.index(None) if None in indexes else len(indexes)
    numbers = [int(found[1]) for found in indexes[:of_choices] if found]
    order = sorted(range(of_choices), key=numbers.__getitem__)
    return [events[position] for position in order] + list(events[of_choices:])


def is_usage_chunk(event: bytes) -> bool:
    return b'"choices":[],' in event and b'"usage":{' in event


def differences(expected: Sequence[bytes], got: Sequence[bytes]) -> str:
    """The events that differ, as bytes; an empty string when none does."""
    lines = [] if len(expected) == len(got) else [f"{len(expected)} events expected, {len(got)} came"]
    for number, (wanted, seen) in enumerate(zip_longest(expected, got)):
        if wanted != seen:
            lines += [f"event {number}:", f"  expected {wanted!r}", f"  got      {seen!r}"]
    return "\n".join(lines[:20])
