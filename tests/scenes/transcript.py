"""What was said on both sides of the gateway, for who has to find out why a scene failed. Bounded."""

import time
from collections import deque

MOST_ENTRIES = 60
MOST_BYTES = 240


class Transcript:
    """The last entries, in the order in which they happened."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._entries: deque[str] = deque(maxlen=MOST_ENTRIES)

    def step(self, told: str) -> None:
        """The scene goes on to this."""
        self._note(f"-- {told}")

    def sent(self, who: str, data: bytes) -> None:
        self._note(f"{who} > {_shown(data)}")

    def heard(self, who: str, data: bytes) -> None:
        self._note(f"{who} < {_shown(data) if data else 'end of file'}")

    def did(self, who: str, what: str) -> None:
        self._note(f"{who} : {what}")

    def _note(self, told: str) -> None:
        self._entries.append(f"{time.monotonic() - self._began:7.3f} {told}")

    def text(self) -> str:
        return "\n".join(self._entries)


def _shown(data: bytes) -> str:
    more = f" … {len(data)} bytes" if len(data) > MOST_BYTES else ""
    return repr(data[:MOST_BYTES])[1:] + more
