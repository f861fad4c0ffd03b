"""Connections to pods, one pool per pod uid.

An idle connection is dropped after `idle_seconds`, before vLLM's own 5 s: a request that meets the pod's close
half-way would cost a retry. The most recently used is taken first, so that a pool shrinks when its load does.
A pool lives as long as its pod is known, or its last exchange runs.
"""

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

from gateway.core.fleet import Pod
from gateway.core.patience import Patience
from gateway.core.ports import FetchFailed
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.headers import fetch_head

RELEASED_SECONDS = 2.0
"""How long a released connection may take to bring the end of its answer."""


class ConnectFailed(Exception):
    """The pod refused the connection, was unreachable, or did not answer in time."""


class PodPool:
    """The connections of one pod."""

    receive_bytes: ClassVar[int] = 48 << 10
    """What the kernel takes of an answer that is not read. It makes twice as much of the number, headers of packets
    included; so a read brings 96 KiB at most, which comes on top of what a slow client has left unread
    (`Bounds.write_buffer_bytes`). Left to itself it grows to megabytes for each connection, which count against the
    container's memory. It bounds the pace of one answer to some 64 KiB for each round trip: at 1 ms 64 MB a second."""

    __slots__ = ("_clock", "_connection", "_idle", "_open", "_released", "connect_seconds", "host", "pod")

    def __init__(
        self,
        pod: Pod,
        connect_seconds: float,
        clock: Callable[[], float],
        connection: type[PodConnection] = PodConnection,
    ) -> None:
        self.pod = pod
        """As it was last asked for: what of it may change (its name in a file) is not part of its uid."""
        self.host = f"{f'[{pod.host}]' if ':' in pod.host else pod.host}:{pod.port}".encode("ascii")
        self.connect_seconds = connect_seconds
        self._clock = clock
        self._connection = connection
        self._idle: list[PodConnection] = []
        self._released: dict[PodConnection, float] = {}
        self._open: set[PodConnection] = set()

    @property
    def live(self) -> int:
        """Connections open now, idle or not."""
        return len(self._open)

    def take(self) -> PodConnection | None:
        """An idle connection to use again, or None. Never waits."""
        while self._idle:
            connection = self._idle.pop()
            # Nobody uses it, or it would not be here.
            if not connection.is_closing():
                return connection
        return None

    async def connect(self) -> PodConnection:
        """A fresh connection.

        Raises `ConnectFailed` after `connect_seconds`, our own delays left out: a loop that was held up says nothing of
        the pod.
        """
        loop = asyncio.get_running_loop()
        try:
            async with Patience(self.connect_seconds):
                transport, connection = await loop.create_connection(
                    lambda: self._connection(self._on_idle, self._on_closed), self.pod.host, self.pod.port
                )
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(type(error).__name__) from None
        if not connection.usable:
            raise ConnectFailed("closed at once")
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        self._open.add(connection)
        return connection

    def release(self, connection: PodConnection, receiver: Receiver) -> None:
        """Give back a connection whose answer is as good as over: its framing's end may still be on the way."""
        if connection.release(receiver):
            self._released[connection] = self._clock()

    def sweep(self, now: float, idle_seconds: float) -> None:
        """Close what was idle, or released without an end, for too long."""
        while self._idle and now - self._idle[0].idle_since >= idle_seconds:
            self._idle.pop(0).abort()
        for connection, since in list(self._released.items()):
            if now - since >= RELEASED_SECONDS:
                del self._released[connection]
                connection.abort()

    def close_idle(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().abort()

    def _on_idle(self, connection: PodConnection) -> None:
        if self._released:
            self._released.pop(connection, None)
        connection.idle_since = self._clock()
        self._idle.append(connection)

    def _on_closed(self, connection: PodConnection) -> None:
        self._open.discard(connection)
        self._released.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)


class Pools:
    """All pools, by pod uid, and `Fetch` on top of them."""

    pool: ClassVar[type[PodPool]] = PodPool
    connection: ClassVar[type[PodConnection]] = PodConnection
    max_fetch_bytes: ClassVar[int] = 1 << 20
    """Of an answer to a `Fetch`."""

    def __init__(
        self,
        *,
        connect_seconds: float,
        idle_seconds: float,
        clock: Callable[[], float],
        api_key: str | None = None,
    ) -> None:
        self._clock = clock
        self._pools: dict[str, PodPool] = {}
        self.known: Mapping[str, PodPool] = self._pools
        """Those made so far, by uid; what of a pod may change they know as of the last `of`."""
        self._known: Collection[str] = ()
        self.use(connect_seconds=connect_seconds, idle_seconds=idle_seconds, api_key=api_key)

    def use(self, *, connect_seconds: float, idle_seconds: float, api_key: str | None) -> None:
        """Take these settings from now on. Connections that are open stay so."""
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self.authorization = b"" if api_key is None else b"authorization: Bearer %b\r\n" % api_key.encode("ascii")
        """The pods' own key as a header line; empty without one."""
        for pool in self._pools.values():
            pool.connect_seconds = connect_seconds

    def of(self, pod: Pod) -> PodPool:
        """The pool of a pod, made when first asked for."""
        pool = self._pools.get(pod.uid)
        if pool is None:
            pool = self._pools[pod.uid] = self.pool(pod, self._connect_seconds, self._clock, self.connection)
        elif pool.pod is not pod:
            pool.pod = pod
        return pool

    def keep_only(self, uids: Collection[str]) -> None:
        """The pods known now. A pool of another one goes when its last connection has closed."""
        self._known = uids
        for uid, pool in self._pools.items():
            if uid not in uids:
                pool.close_idle()

    def sweep(self, now: float) -> None:
        """Once in a while: drop idle connections and pools that nobody needs."""
        for uid, pool in list(self._pools.items()):
            gone = uid not in self._known
            pool.sweep(now, 0.0 if gone else self._idle_seconds)
            if gone and pool.live == 0:
                del self._pools[uid]

    def close(self) -> None:
        """Close every idle connection; those in use end with their exchanges."""
        for pool in self._pools.values():
            pool.close_idle()

    async def fetch(self, pod: Pod, path: bytes, timeout_seconds: float) -> bytes:
        """See `core.ports.Fetch`."""
        pool = self.of(pod)
        head = fetch_head(path, pool.host, self.authorization)
        try:
            async with Patience(timeout_seconds):
                connection = pool.take()
                if connection is not None:
                    try:
                        return await self._collect(connection, head)
                    except _Stale:
                        pass
                return await self._collect(await pool.connect(), head)
        except ConnectFailed:
            raise FetchFailed(f"{path.decode()}: the pod takes no connection") from None
        except TimeoutError:
            raise FetchFailed(f"{path.decode()}: no answer in {timeout_seconds:g} s") from None
        except _Stale:
            raise FetchFailed(f"{path.decode()}: the connection broke") from None
        except FetchFailed as failed:
            raise FetchFailed(f"{path.decode()}: {failed}", failed.status) from None

    async def _collect(self, connection: PodConnection, head: bytes) -> bytes:
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        collector = _Collector(done, connection, self.max_fetch_bytes)
        connection.send(head, (), collector)
        try:
            return await done
        except BaseException:
            # Not `abort`: if the answer is here, whatever it was, the connection may serve a request already.
            connection.drop(collector)
            raise
        finally:
            # An error's traceback holds this frame, which would hold the future, which holds the error.
            del done, collector


class _Stale(Exception):
    """A reused connection died before the first byte."""


class _Collector(Receiver):
    """Takes a whole answer of bounded size. What is not even to be looked at ends the exchange with its head."""

    def __init__(self, done: "asyncio.Future[bytes]", connection: PodConnection, max_bytes: int) -> None:
        self._done = done
        self._connection = connection
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._status = 0

    def head_received(self, head: AnswerHead) -> None:
        self._status = head.status
        if 300 <= head.status < 400:
            self._refuse(FetchFailed(f"status {head.status}, which is never followed", head.status))
        elif head.is_encoded:
            self._refuse(FetchFailed("a compressed answer, which was not asked for"))

    def body_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > self._max_bytes:
            self._pieces.clear()
            self._refuse(FetchFailed("answer too large"))

    def answer_ended(self, by_close: bool) -> None:
        if self._status != 200:
            self._fail(FetchFailed(f"status {self._status}", self._status))
        elif not self._done.done():
            self._done.set_result(b"".join(self._pieces))

    def answer_lost(self, loss: Loss) -> None:
        self._fail(_Stale() if loss is Loss.STALE else FetchFailed(f"connection {loss}"))

    def _refuse(self, error: FetchFailed) -> None:
        self._connection.drop(self)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
