"""`poolgate serve` and `poolgate demo`: start a process, and own its signals."""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EADDRNOTAVAIL
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import __version__
from gateway.cli.refused import Refused

if TYPE_CHECKING:
    from gateway.config.reading import ConfigFile
    from gateway.config.whole import Config
    from gateway.limits.keys import KeyEntry

ANNOUNCE_SECONDS = 2.0
BACKLOG = 2048
SEND_BYTES = 128 << 10
"""What the kernel keeps for a client that does not read: it makes twice as much of the number, headers of packets
included, and every connection inherits it from the listening socket. Left to itself it grows to 4 MiB for each that
is near, and counts against the container's memory. It bounds the pace of one answer to some 170 KiB for each round
trip: at 100 ms to the client 1.7 MB a second, and a model writes some tens of KB."""

HostOption = Annotated[str | None, typer.Option(help="Address of the public port.")]
PortOption = Annotated[int | None, typer.Option(help="The public port.")]
OpsPortOption = Annotated[int | None, typer.Option(help="The port of probes, metrics and status.")]


def serve(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file (YAML).")] = None,
    host: HostOption = None,
    port: PortOption = None,
    ops_port: OpsPortOption = None,
    insecure_no_auth: Annotated[bool, typer.Option(help="Serve everyone, without keys.")] = False,
) -> None:
    """Run the gateway."""
    from gateway.config.reading import ConfigFile, load_config

    flags = {"server.host": host, "server.port": port, "server.ops_port": ops_port}
    file = None if config is None else ConfigFile(config, dict(os.environ), flags)
    settings = load_config(None, os.environ, flags) if file is None else file.load()
    entries = _entries(settings, insecure_no_auth)
    public, ops = (
        listen(settings.server.host, settings.server.port, "--port"),
        listen(settings.server.ops_host, settings.server.ops_port, "--ops-port"),
    )

    def started(say: Callable[[str], None]) -> None:
        scheme = "http" if settings.server.tls.cert is None else "https"
        say(f"poolgate {__version__} serves on {_url(public, scheme)}, operations on {_url(ops)}")

    run_gateway(settings, entries, public, ops, started, file, settings.auth.keys_file)


def demo(
    port: Annotated[int, typer.Option(help="The public port; 0: any free one.")] = 8000,
    ops_port: Annotated[int, typer.Option(help="The port of probes, metrics and status; 0: any free one.")] = 9090,
) -> None:
    """Simulated vLLM pods and a gateway before them, on loopback, until Ctrl-C."""
    from gateway.cli.demo import Demo, DemoFailed
    from gateway.config.reading import load_config

    public, ops = listen("127.0.0.1", port, "--port"), listen("127.0.0.1", ops_port, "--ops-port")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Until the gateway has the signals, they must still not leave the simulated pods behind.
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        with Demo() as running:
            settings = load_config(None, {}, {"discovery.pods": running.pods, "server.drain_seconds": 2.0})
            run_gateway(settings, (running.key_entry,), public, ops, lambda _: running.tell(_url(public), _url(ops)))
    except DemoFailed as error:
        raise Refused(str(error)) from None


def run_gateway(
    settings: "Config",
    entries: "tuple[KeyEntry, ...] | None",
    public: socket.socket,
    ops: socket.socket,
    started: Callable[[Callable[[str], None]], None],
    file: "ConfigFile | None" = None,
    keys_file: Path | None = None,
) -> None:
    """Run one gateway on uvloop until a signal begins the drain; the second signal ends it at once. It follows its
    files, if it has any. `started` is given what writes a line on stderr without waiting for who reads it.
    """
    import asyncio

    import uvloop

    from gateway.app import Gateway
    from gateway.cli import process
    from gateway.telemetry.log import logging_to, raw, uncaught
    from gateway.telemetry.memory import keep_less_memory

    async def announce(gateway: Gateway) -> None:
        # Whoever reads this may send a request at once: better when the pods have told their models.
        with suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                while not gateway.fleet.value.asked:
                    await gateway.fleet.wait_changed()
        started(log.say)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(uncaught)
        stop = process.Stop()
        # A terminal's signals come from a person, who waits; SIGTERM from what runs us, and has us in rotation still.
        for number, linger_seconds in (
            (signal.SIGTERM, process.LINGER_SECONDS),
            (signal.SIGINT, 0.0),
            (signal.SIGHUP, 0.0),
        ):
            loop.add_signal_handler(number, stop.ask, linger_seconds)
        gateway = Gateway(settings, entries, file=file, keys_file=keys_file, access_out=raw(sys.stdout), log=log)
        tasks: list[asyncio.Task[None]] = []

        def up() -> None:
            tasks.append(loop.create_task(announce(gateway)))

        await process.run(gateway, public, ops, stop, up)

    keep_less_memory()
    _open_what_is_allowed()
    with logging_to(raw(sys.stderr)) as log:
        uvloop.run(run())


def _open_what_is_allowed() -> None:
    """As many descriptors as the hard limit lets us have: shells and services hand down a soft one of 1,024, for the
    sake of programs that use `select`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _entries(settings: "Config", no_auth: bool) -> "tuple[KeyEntry, ...] | None":
    from gateway.cli import first_key
    from gateway.config.keys import load_keys

    if no_auth:
        return None
    if settings.auth.mode == "none":
        raise Refused("auth.mode is none: add --insecure-no-auth if everyone may really use the pods")
    file = settings.auth.keys_file
    if missing := first_key.no_file(file):
        raise Refused(f"auth.keys_file: {missing}")
    entries = load_keys(file)
    if settings.auth.jwt is None and (empty := first_key.no_key(file, entries)):
        raise Refused(f"auth.keys_file: {empty}")
    return entries


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A socket that listens. `flag`: what chooses its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    try:
        listener.bind((host, port))
        # Now, and not when the loop runs: until somebody listens, the same port can be bound twice.
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
        mend = f"choose another port by {flag}"
        if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno == EADDRNOTAVAIL):
            mend = "give an address of this machine, or 0.0.0.0 for all of them"
        raise Refused(f"cannot listen on {host}:{port}: {reason}; {mend}") from None
    return listener


def _url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
