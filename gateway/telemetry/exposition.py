"""The text of `/metrics`: rendered off the loop, and shared by all who ask within a second.

Rendering a thousand series takes some seven milliseconds and holds the interpreter: in a thread the loop gets its turns
all the same, each of them after five milliseconds at the latest. Who asks while it is rendered waits for that same
text; so two Prometheus servers, a curious operator and a health check cost no more than one of them.

It is Prometheus' plain text whatever is asked for. Every Prometheus takes it (it names it among what it accepts); the
other form that it asks for, OpenMetrics, would say the same at the price of a second text to render and keep.
"""

import asyncio
from collections.abc import Callable

KEEP_SECONDS = 1.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """`observe` is called on the loop, and makes the series be those of this moment; `render` in a thread."""

    def __init__(self, observe: Callable[[], None], render: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._observe = observe
        self._render = render
        self._clock = clock
        self._text = b""
        self._good_until = float("-inf")
        self._rendering: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """All series, as they were a second ago at most. Raises what `render` does."""
        if self._clock() < self._good_until:
            return self._text
        rendering = self._rendering
        if rendering is None:
            rendering = self._rendering = asyncio.create_task(self._renew())
        # Whoever hangs up ends only its own waiting.
        return await asyncio.shield(rendering)

    async def _renew(self) -> bytes:
        try:
            began = self._clock()
            self._observe()
            self._text = await asyncio.to_thread(self._render)
            self._good_until = began + KEEP_SECONDS
            return self._text
        finally:
            self._rendering = None
