"""Status pages that are open are kept true by server-sent events: one task looks once a second, for all of them.

It runs while anyone looks on and not else. What it sees is taken on the loop and made HTML in a thread, and every
viewer is sent what differs from what it was sent before. Viewers are mostly in step, so that is worked out once for
all. One whose connection is slow is not sent the seconds it missed but the latest one: for nobody is anything queued.

A stream begins with an event `hello` that names the page's version; then comes one unnamed event each second, `now` and
`parts` (see `parts`), even if nothing has changed: so the page knows that it is true.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from fastapi.responses import PlainTextResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError

from gateway.api.page.document import PAGE_VERSION, page_parts
from gateway.api.page.parts import Part, changes
from gateway.core.cell import Cell

SECONDS = 1.0
MAX_VIEWERS = 16
RETRY_MS = 1000
"""How soon a browser comes again after its stream has ended."""
SEND_SECONDS = 10.0
"""After so long a viewer that takes nothing has to come again."""

Message = MutableMapping[str, Any]

log = logging.getLogger("poolgate.status")


class Frame:
    """The page at one moment. Of frames that follow each other each has a higher number."""

    def __init__(self, status: Mapping[str, Any], number: int = 1) -> None:
        self.number = number
        self._now: str = status["ts"]
        self._parts: dict[str, Part] = {part.id: part for part in page_parts(status)}
        self._told: dict[int, bytes] = {}

    def since(self, older: "Frame | None") -> bytes:
        """The event that makes the older page this one; of None, any page at all."""
        number = 0 if older is None else older.number
        told = self._told.get(number)
        if told is None:
            before: Mapping[str, Part] = {} if older is None else older._parts
            parts = {
                part_id: change
                for part in self._parts.values()
                for part_id, change in changes(before.get(part.id), part)
            }
            told = self._told[number] = _event({"now": self._now, "parts": parts})
        return told


class LivePage:
    """The viewers of one gateway's status page. `look` says what there is to see, as `/status.json` does."""

    def __init__(self, look: Callable[[], Mapping[str, Any]]) -> None:
        self._look = look
        self._frame: Cell[Frame | None] = Cell(None)
        self._viewers = 0
        self._era = 0
        """Streams of an earlier one have ended."""
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many look on."""
        return self._viewers

    def close(self) -> None:
        """End all streams, and begin none: the gateway ends."""
        self._closed = True
        self.end_streams()

    def end_streams(self) -> None:
        """End those there are: whoever may look on comes again."""
        self._era += 1
        self._frame.set(None)

    def answer(self) -> Response:
        """A stream for one viewer, or a 503 in words."""
        return _Stream(self)

    @contextmanager
    def seat(self) -> Iterator[bool]:
        """A viewer's place, if there is one left."""
        if self._closed or self._viewers >= MAX_VIEWERS:
            yield False
            return
        self._viewers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking())
        try:
            yield True
        finally:
            self._viewers -= 1
            if not self._viewers and self._looking is not None:
                self._looking.cancel()
                self._looking = None
                self._frame.set(None)

    async def events(self) -> AsyncIterator[bytes]:
        """What one viewer is sent."""
        era, sent = self._era, None
        yield _event({"page": PAGE_VERSION}, event="hello", retry=RETRY_MS)
        while (frame := await self._after(sent)) is not None and era == self._era:
            yield frame.since(sent)
            sent = frame

    async def _after(self, sent: Frame | None) -> Frame | None:
        """The latest frame, once it is another than this one; None when there comes no other."""
        if self._frame.value is sent:
            if self._closed or self._looking is None:
                return None
            await self._frame.wait_changed()
        return self._frame.value

    async def _keep_looking(self) -> None:
        try:
            while True:
                status, older = self._look(), self._frame.value
                frame = await asyncio.to_thread(_framed, status, older)
                if self._closed:
                    return
                self._frame.set(frame)
                await asyncio.sleep(SECONDS)
        except Exception:
            # The gateway serves on without its page. Browsers come again, and it is tried again.
            log.exception("the status page could not be made")
            self._looking = None
            self.end_streams()


def _framed(status: Mapping[str, Any], older: Frame | None) -> Frame:
    """A frame, ready for those who have the older one."""
    frame = Frame(status, 1 if older is None else older.number + 1)
    frame.since(older)
    return frame


def _event(content: object, event: str | None = None, retry: int | None = None) -> bytes:
    data = json.dumps(content, separators=(",", ":"))
    return ServerSentEvent(data, event=event, retry=retry, sep="\n").encode()


class _Stream(Response):
    """Takes its place only when it is served: one that was never served has none to give back."""

    def __init__(self, page: LivePage) -> None:
        super().__init__()
        self._page = page

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        with self._page.seat() as seated:
            if not seated:
                words = (
                    f"{MAX_VIEWERS} status pages are open already, or this gateway ends; load the page itself again\n"
                )
                await PlainTextResponse(words, 503)(scope, receive, send)
                return
            # An event each second is ping enough.
            stream = EventSourceResponse(self._page.events(), ping=0, sep="\n", send_timeout=SEND_SECONDS)
            with suppress(SendTimeoutError):
                await stream(scope, receive, send)
