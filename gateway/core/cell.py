"""A current value with one writer and many readers, replaced whole.

Readers take `cell.value` and keep what they took: a request that started with one fleet ends with it.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Cell(Generic[T]):
    """Holds one frozen value; `set` replaces it and wakes whoever waits for a change."""

    __slots__ = ("_changed", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self._changed: asyncio.Event | None = None

    def set(self, value: T) -> None:
        """Replace the value. Waiters wake even when the new value equals the old."""
        self.value = value
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_changed(self) -> T:
        """Wait for the next `set` and return the value then in force."""
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()
        return self.value
