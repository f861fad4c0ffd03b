"""The few services that one domain needs of another, as protocols; `app.py` hands over who implements them."""

from typing import Protocol

from gateway.core.fleet import Pod


class Fetch(Protocol):
    """`GET` on a pod over the same cheap connections as the requests."""

    async def __call__(self, pod: Pod, path: bytes, timeout_seconds: float) -> bytes:
        """The body of a 200 answer, at most 1 MiB.

        Raises `FetchFailed` for any other answer, a broken connection or the timeout.
        """
        ...


class FetchFailed(Exception):
    """A pod did not answer a `Fetch` as it should. The text names no address."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """Of its answer; 0: there was none."""
