"""The server's time: it runs by itself, and a test may push it ahead."""

import asyncio
from contextlib import suppress


class Clock:
    """Seconds of the API server. `second` is how long one of them really lasts."""

    def __init__(self, second: float = 1.0) -> None:
        self.second = second
        self._ahead = 0.0
        self._sleepers: set[asyncio.Event] = set()

    def now(self) -> float:
        return asyncio.get_running_loop().time() / self.second + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once: what was due by then happens now."""
        self._ahead += seconds
        for sleeper in self._sleepers:
            sleeper.set()

    async def wait(self, event: asyncio.Event, until: float) -> None:
        """Until the event is set, or the time has come."""
        self._sleepers.add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - self.now()) * self.second):
                    await event.wait()
        finally:
            self._sleepers.discard(event)

    async def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        while self.now() < until:
            await self.wait(asyncio.Event(), until)
