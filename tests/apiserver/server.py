"""A stand-in for kube-apiserver 1.36 on a real socket: what a reflector on pods asks it, and all its ways to die; and
Secrets, to be read and created.

It is held to recordings of the real server by `tests/unit/apiserver/test_conformance.py`. A test changes the cluster
through `server.cluster`, moves time with `server.clock.advance(60)`, and reads what was asked in `server.requests`.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from tests.apiserver import access, asked, http, listing, statuses
from tests.apiserver.access import Account, Target, target_of
from tests.apiserver.clock import Clock
from tests.apiserver.cluster import Cluster
from tests.apiserver.http import Answer, ChunkedBody, Delivery, Request, Wire
from tests.apiserver.log import Log
from tests.apiserver.secrets import Secrets
from tests.apiserver.statuses import Refused, WatchLines
from tests.apiserver.watching import Pace, Watch
from tests.turns import within

ADMIN_TOKEN = "admin-token"
_TURNS_TO_SERVE = 4
"""Turns of the loop, after which each connection that was accepted is known to us."""
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2",
    "gitTreeState": "clean",
    "platform": "linux/amd64",
}


@dataclass(frozen=True)
class Hang:
    """The request is read and never answered."""


@dataclass(frozen=True)
class CutBody:
    """The true answer, whose connection is closed after so many bytes of the body."""

    after_bytes: int = 0


Misbehaviour = Answer | WatchLines | Hang | CutBody


@dataclass
class Fault:
    """Instead of the true answer. `times` None: until `heal`. Empty `verb` or `namespace`: any."""

    instead: Misbehaviour
    verb: str = ""
    namespace: str = ""
    times: int | None = 1

    def meets(self, target: Target) -> bool:
        return (
            self.times != 0
            and self.verb in ("", target.verb)
            and self.namespace in ("", target.namespace)
            and bool(target.resource)
        )


@dataclass(frozen=True)
class Asking:
    """A request that came, in the words of RBAC."""

    verb: str
    resource: str
    namespace: str
    path: str
    query: Mapping[str, str]
    user_agent: str
    token: str
    headers: Mapping[str, str]


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: "asyncio.Task[None]"
    watch: Watch | None = None
    busy: bool = False
    last: bool = False
    """Its process is on the way out: no request after this one."""


class ApiServer:
    """One API server, and its cluster. Its port stays the same through all restarts."""

    def __init__(
        self,
        cluster: Cluster | None = None,
        *,
        clock: Clock | None = None,
        pace: Pace | None = None,
        tls: ssl.SSLContext | None = None,
        accounts: Mapping[str, Account] | None = None,
    ) -> None:
        self.cluster = cluster or Cluster()
        self.secrets = Secrets()
        self.clock = clock or Clock()
        self.pace = pace or Pace()
        self.accounts = {ADMIN_TOKEN: Account("admin")} if accounts is None else dict(accounts)
        """By token. Exchange one to rotate it; an open watch outlives its token and its rights."""
        self.delivery = Delivery()
        self.requests: list[Asking] = []
        self.port = 0
        self._tls = tls
        self._faults: list[Fault] = []
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._happened = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    # --- What a test looks at.

    @property
    def log(self) -> Log:
        return self.cluster.log

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def watches(self) -> list[Watch]:
        """Those open now."""
        return [connection.watch for connection in self._connections if connection.watch is not None]

    @property
    def connections(self) -> int:
        return len(self._connections)

    def verbs(self) -> set[tuple[str, str, str]]:
        """(verb, resource, namespace) of all that was asked for: the rights that a client needs."""
        return {(asking.verb, asking.resource, asking.namespace) for asking in self.requests}

    async def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait until requests or connections have made this true."""
        async with within(seconds):
            while not holds():
                self._happened.clear()
                await self._happened.wait()

    def kubeconfig(self, token: str = ADMIN_TOKEN, ca: Path | None = None, namespace: str = "default") -> str:
        """The text of a kubeconfig for this server; JSON is YAML."""
        cluster = {"server": self.url} | ({"certificate-authority": str(ca)} if ca else {})
        context = {"cluster": "stand-in", "user": "tester", "namespace": namespace}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "stand-in", "cluster": cluster}],
                "users": [{"name": "tester", "user": {"token": token}}],
                "contexts": [{"name": "stand-in", "context": context}],
                "current-context": "stand-in",
            }
        )

    # --- Its lives and deaths.

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=self._listener, ssl=self._tls)

    def terminate(self) -> None:
        """SIGTERM, as in a rolling upgrade of the control plane.

        The listener closes at once and idle connections with it; open watches of HTTP/1.1 stay open and mute for 60 s,
        then end cleanly.
        """
        self._stop_listening()
        for connection in self._connections:
            connection.last = True
            if connection.watch is not None:
                connection.watch.silence(self.pace.mute_seconds)
            elif not connection.busy:
                connection.writer.close()

    async def kill(self) -> None:
        """SIGKILL: all connections end, watches without their final chunk."""
        self._stop_listening()
        tasks: set[asyncio.Task[None]] = set()
        for _ in range(_TURNS_TO_SERVE):
            for connection in [held for held in self._connections if held.task not in tasks]:
                connection.writer.transport.abort()
                connection.task.cancel()
                tasks.add(connection.task)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def restart(self) -> None:
        """SIGKILL and a new start, which loses the watch cache: 410 for watches older than the newest pod event."""
        await self.kill()
        self.log.forget_watch_cache()
        await self.start()

    async def restore(self, backup: Log) -> None:
        """etcd comes back from an older `log.backup()`: versions go backwards, and what came after never was."""
        await self.kill()
        self.cluster.log = backup
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP, or a half-open network: connections are accepted, nothing is answered, watches say nothing."""
        self._thawed.clear()

    def thaw(self) -> None:
        """What was pending is delivered at once."""
        self._thawed.set()

    # --- Its faults.

    def answer_with(self, instead: Misbehaviour, verb: str = "", namespace: str = "", times: int | None = 1) -> None:
        """`answer_with(failed_watch(), "watch", times=None)`: 410 on every watch. Earlier faults go first."""
        self._faults.append(Fault(instead, verb, namespace, times))

    def heal(self) -> None:
        self._faults.clear()

    def say(self, data: bytes) -> None:
        """Put bytes into every open watch: garbage, half a line, an event of an unknown type."""
        for watch in self.watches:
            watch.say(data)

    def say_error(self, code: int, reason: str, message: str) -> None:
        """An ERROR event into every open watch, which then ends."""
        for watch in self.watches:
            watch.say(statuses.error_event(code, reason, message))
            watch.end()

    def end_watches(self) -> None:
        """Cleanly, as at timeoutSeconds."""
        for watch in self.watches:
            watch.end()

    # --- Its work.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(reader, writer, task)
        self._connections.add(connection)
        self._tell()
        try:
            while not connection.last:
                await self._next(connection)
        except (asyncio.IncompleteReadError, ConnectionError, http.Cut):
            return
        except asyncio.CancelledError:
            # The server goes; asyncio.streams would log the cancellation of its own task as an error.
            return
        finally:
            self._connections.discard(connection)
            self._tell()
            writer.close()

    async def _next(self, connection: _Connection) -> None:
        request = await http.read_request(connection.reader)
        await self._thawed.wait()
        connection.busy = True
        target = target_of(request)
        self._record(request, target)
        wire = Wire(connection.writer, self._thawed)
        wire.delivery = self.delivery
        try:
            await self._handle(connection, wire, request, target)
        except Refused as refused:
            await wire.send_answer(refused.answer)
        connection.busy = False

    async def _handle(self, connection: _Connection, wire: Wire, request: Request, target: Target) -> None:
        fault = next((fault for fault in self._faults if fault.meets(target)), None)
        if fault is not None:
            if fault.times is not None:
                fault.times -= 1
            if isinstance(fault.instead, Hang):
                await connection.reader.read()
                raise ConnectionResetError
            if isinstance(fault.instead, Answer):
                raise Refused(fault.instead)
            if isinstance(fault.instead, CutBody):
                wire.left_bytes = fault.instead.after_bytes
        self._admit(request, target)
        if target.resource != "pods" or target.name:
            raise Refused(await self._other(request, target))
        wanted = asked.read_asked(request, target.namespace)
        if fault is not None and isinstance(fault.instead, WatchLines):
            await self._say_and_end(wire, fault.instead)
        elif wanted.watch:
            await self._watch(connection, wire, wanted)
        else:
            await self._list(wire, wanted, request.headers.get("accept-encoding", ""))

    def _admit(self, request: Request, target: Target) -> None:
        account = self.accounts.get(request.token) if request.token else access.ANONYMOUS
        if account is None:
            raise Refused(statuses.unauthorized())
        if account.may(target):
            return
        if not target.resource:
            raise Refused(statuses.forbidden_path(account.user, target.verb, target.path))
        answer = statuses.forbidden(
            account.user, target.verb, target.resource, target.namespace, target.group, target.name
        )
        raise Refused(answer)

    async def _other(self, request: Request, target: Target) -> Answer:
        """What is neither a list nor a watch of pods."""
        if target.resource == "secrets":
            return await self.secrets.answer(request, target)
        if target.path == "/version":
            return Answer(200, json.dumps(VERSION, indent=2).encode())
        if target.resource != "pods":
            return statuses.not_found(target.path)
        if target.verb != "get":
            return statuses.method_not_allowed()
        held = self.log.pods.get((target.namespace, target.name))
        if held is None:
            return statuses.no_such("pods", target.name)
        return Answer(200, statuses.encode({"kind": "Pod", "apiVersion": "v1", **held}) + b"\n")

    async def _list(self, wire: Wire, wanted: asked.Asked, accepted: str) -> None:
        if wanted.version and wanted.match != "Exact":
            await self._wait_for_version(wanted.version)
        pieces, headers = listing.compressed(listing.pieces_of(listing.page_of(self.log, wanted)), accepted)
        await http.send_pieces(wire, pieces, headers)

    async def _wait_for_version(self, version: int) -> None:
        """A list from a future version waits about 3 s for it, then says 504."""
        until = self.clock.now() + self.pace.future_list_seconds
        written = asyncio.Event()
        self.log.listeners.add(written.set)
        try:
            while self.log.version < version:
                if self.clock.now() >= until:
                    raise Refused(statuses.too_large_version(version, self.log.version))
                written.clear()
                await self.clock.wait(written, until)
        finally:
            self.log.listeners.discard(written.set)

    async def _say_and_end(self, wire: Wire, told: WatchLines) -> None:
        await wire.send_head(200, {"Transfer-Encoding": "chunked"})
        body = ChunkedBody(wire)
        for line in told.lines:
            await body.write(line)
        await body.end()

    async def _watch(self, connection: _Connection, wire: Wire, wanted: asked.Asked) -> None:
        """Status and headers go out at once, before any event; a watch is never compressed."""
        watch = Watch(self.log, wanted, self.clock, self.pace)
        await wire.send_head(200, {"Transfer-Encoding": "chunked"})
        body = ChunkedBody(wire)
        serving = asyncio.ensure_future(watch.serve(body))
        leaving = asyncio.ensure_future(connection.reader.read(1))
        connection.watch = watch
        self._tell()
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                raise ConnectionResetError
            serving.result()
            await body.end()
        finally:
            connection.watch = None
            for task in (serving, leaving):
                task.cancel()
            await asyncio.gather(serving, leaving, return_exceptions=True)
            self._tell()

    def _record(self, request: Request, target: Target) -> None:
        self.requests.append(
            Asking(
                target.verb,
                target.resource,
                target.namespace,
                request.path,
                request.query,
                request.headers.get("user-agent", ""),
                request.token,
                request.headers,
            )
        )
        self._tell()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        server, self._server = self._server, None
        if listener is None or server is None:
            return
        loop = asyncio.get_running_loop()
        if isinstance(loop, uvloop.Loop):
            # It owns the socket, and would listen on if we closed that.
            server.close()
            return
        # Not by asyncio's Server.close(): what was accepted in this turn of the loop would then never be closed (3.11).
        loop.remove_reader(listener.fileno())
        listener.close()

    def _tell(self) -> None:
        self._happened.set()
