"""The command line: starts a process, and owns its signals."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from gateway import __version__, process
from gateway.app import CannotStart, Gateway
from gateway.config import Config, ConfigError, ConfigFile, load_config, load_keys
from gateway.core.clock import Clock
from gateway.core.globs import overlaps
from gateway.demo import Demo, DemoFailed
from gateway.keys_file import add_key, disable_key
from gateway.limits.keys import MAX_KEY_BYTES, KeyEntry, Verdict, digest, judge, new_key, well_formed

app = typer.Typer(
    name="poolgate",
    help="An OpenAI-compatible gateway in front of pools of vLLM pods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys in a keys file.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

ANNOUNCE_SECONDS = 2.0
REFRESH_SECONDS = 1.0

OPS_URL = "http://127.0.0.1:9090"
UrlOption = Annotated[str, typer.Option(help="The gateway's ops port.")]
TokenOption = Annotated[str | None, typer.Option(envvar="POOLGATE_OPS_TOKEN", help="The ops port's token.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file (YAML).")]
KeysFileOption = Annotated[Path, typer.Option(help="The keys file.")]

VERDICTS: dict[Verdict, str] = {
    "good": "it opens",
    "disabled": "its entry is disabled",
    "expired": "its entry has expired",
    "unknown": "it has the form of a key and its checksum is right, but no entry is for it",
    "mistyped": "its checksum is wrong: a letter of it was mistyped",
    "malformed": "it has not the form of a key, sk-pg_ and 47 more characters: is it whole, and is it one of ours?",
}
"""What `keys verify` says of a key."""
MAX_EXPIRY_DAYS = 36_500


class Refused(Exception):
    """A command that cannot go on; its text is for the operator. Exit code 2."""


def main() -> None:
    """Run the command line: faults we can name are told in words, without a traceback (unless --debug)."""
    arguments, debug = sys.argv[1:], False
    # Of `keys create` it is an option: what the new key may do.
    if arguments[:2] != ["keys", "create"]:
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # What is wrong with a form is told to its sender.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    try:
        app(args=arguments, prog_name="poolgate")
    except (CannotStart, ConfigError, DemoFailed, Refused) as error:
        if debug:
            raise
        typer.echo(f"poolgate: {error}", err=True)
        raise SystemExit(2) from None


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address of the public port.")] = None,
    port: Annotated[int | None, typer.Option(help="The public port.")] = None,
    ops_port: Annotated[int | None, typer.Option(help="The port of probes and metrics.")] = None,
    insecure_no_auth: Annotated[bool, typer.Option(help="Serve everyone, without keys.")] = False,
) -> None:
    """Run the gateway."""
    flags = {"server.host": host, "server.port": port, "server.ops_port": ops_port}
    file = None if config is None else ConfigFile(config, dict(os.environ), flags)
    settings = load_config(None, os.environ, flags) if file is None else file.load()
    entries = _entries(settings, insecure_no_auth)
    public, ops = (
        _listen(settings.server.host, settings.server.port),
        _listen(settings.server.ops_host, settings.server.ops_port),
    )

    def started() -> None:
        typer.echo(f"poolgate {__version__} serves on {_url(public)}, operations on {_url(ops)}", err=True)

    run_gateway(settings, entries, public, ops, started, file, settings.auth.keys_file)


def run_gateway(
    settings: Config,
    entries: tuple[KeyEntry, ...] | None,
    public: socket.socket,
    ops: socket.socket,
    started: Callable[[], None],
    file: ConfigFile | None = None,
    keys_file: Path | None = None,
) -> None:
    """Run one gateway on uvloop until a signal begins the drain; the second signal ends it at once. It follows its
    files, if it has any.
    """

    async def announce(gateway: Gateway) -> None:
        # Whoever reads this may send a request at once: better when the pods have told their models.
        with suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                while not gateway.fleet.value.asked:
                    await gateway.fleet.wait_changed()
        started()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = process.Stop()
        # A terminal's signals come from a person, who waits; SIGTERM from what runs us, and has us in rotation still.
        for number, linger_seconds in (
            (signal.SIGTERM, process.LINGER_SECONDS),
            (signal.SIGINT, 0.0),
            (signal.SIGHUP, 0.0),
        ):
            loop.add_signal_handler(number, stop.ask, linger_seconds)
        gateway = Gateway(settings, entries, file=file, keys_file=keys_file, access_out=sys.stdout.buffer)
        tasks: list[asyncio.Task[None]] = []

        def up() -> None:
            tasks.append(loop.create_task(announce(gateway)))

        await process.run(gateway, public, ops, stop, up)

    uvloop.run(run())


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The configuration file (YAML).")]) -> None:
    """Validate a configuration and the keys file it names. Exit 0 or 2."""
    settings = load_config(file, os.environ)
    keys = load_keys(settings.auth.keys_file) if settings.auth.mode == "keys" else ()
    for both in overlaps(settings.explicit_globs()):
        typer.echo(
            f"{file}: warning: pools {both.pool!r} and {both.other_pool!r} may both serve models such as {both.name!r} "
            f"(globs {both.glob!r} and {both.other_glob!r}): such a name goes to the pool with the oldest ready pod "
            "that lists it, in static mode to the one whose pod stands first",
            err=True,
        )
    for doubt in settings.doubtful_targets():
        typer.echo(f"{file}: warning: {doubt}", err=True)
    discovery = settings.discovery
    found = (
        f"{len(discovery.pods)} pods" if discovery.mode == "static" else f"pods in {', '.join(discovery.namespaces)}"
    )
    now = Clock().wall()
    idle = sum(key.state(now) != "active" for key in keys)
    typer.echo(f"{file}: valid; {found}, {len(keys)} keys{f' ({idle} disabled or expired)' if idle else ''}")


@app.command()
def pods(
    url: UrlOption = OPS_URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """The pods of a running gateway, renewed until Ctrl-C; once where stdout is no terminal."""
    # Here, as in `explain`: only these commands need their libraries, and the others start without them.
    from gateway import ops_client, pods_table, terminal

    async def run() -> None:
        async with ops_client.connect(url, token) as client:
            status, fault = await ops_client.read_status(client), ""
            if as_json:
                typer.echo(json.dumps(status, indent=2))
                return
            if once or not sys.stdout.isatty():
                terminal.show(pods_table.page(status))
                return
            with pods_table.live() as renew:
                while True:
                    renew(status, fault)
                    await asyncio.sleep(REFRESH_SECONDS)
                    # A gateway that is being replaced comes back: the table waits for it.
                    try:
                        status, fault = await ops_client.read_status(client), ""
                    except ops_client.NoStatus as error:
                        fault = str(error)

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="The request's id: x-request-id of its answer.")],
    url: UrlOption = OPS_URL,
    token: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway says, as JSON.")] = False,
) -> None:
    """Why a request went where it went. Only the last ones are remembered."""
    from gateway import explain_text, ops_client, terminal

    async def ask() -> dict[str, Any]:
        async with ops_client.connect(url, token) as client:
            return await ops_client.read_request(client, request_id)

    try:
        told = asyncio.run(ask())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        terminal.show(explain_text.page(told))


@app.command("usage")
def tell_usage(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Files of access lines, gzipped or not; - or none: stdin."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """Tokens per day, tenant and model, from access lines."""
    from gateway import log_lines, terminal, usage, usage_table

    if as_csv and as_json:
        raise Refused("--csv or --json: choose one")
    if not files and os.isatty(0):
        raise Refused("give files of access lines, or send lines to stdin")
    ledger = usage.Ledger()
    try:
        for name in files or [log_lines.STDIN]:
            ledger.add(log_lines.lines_of(name))
    except (log_lines.Unreadable, usage.TooManyRows) as error:
        raise Refused(str(error)) from None
    rows = ledger.rows()
    for note in usage_table.notes(ledger.strange, ledger.without_tokens):
        typer.echo(f"poolgate: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows], indent=2))
    elif as_csv:
        # As bytes: whatever the terminal's encoding, a file has one.
        typer.echo(usage_table.csv_of(rows).encode(), nl=False)
    else:
        terminal.show(usage_table.page(rows))


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="The public port; 0: any free one.")] = 8000,
    ops_port: Annotated[int, typer.Option(help="The port of probes and metrics; 0: any free one.")] = 9090,
) -> None:
    """Simulated vLLM pods and a gateway before them, on loopback, until Ctrl-C."""
    public, ops = _listen("127.0.0.1", port), _listen("127.0.0.1", ops_port)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Until the gateway has the signals, they must still not leave the simulated pods behind.
        signal.signal(number, lambda *_: sys.exit(143))
    with Demo() as running:
        settings = load_config(None, {}, {"discovery.pods": running.pods, "server.drain_seconds": 2.0})
        run_gateway(settings, (running.key_entry,), public, ops, lambda: running.tell(_url(public), _url(ops)))


@keys_app.command("create")
def create_key(
    team: Annotated[str, typer.Option(help="Who owns the key.")],
    file: Annotated[Path, typer.Option(help="The keys file; made if it does not exist.")],
    models: Annotated[list[str] | None, typer.Option(help="A glob of model names; repeatable.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute, in place of limits.default.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute, in place of limits.default.")] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Requests running at once, in place of limits.default.")
    ] = None,
    priority: Annotated[int, typer.Option(help="Where requests have to wait: lower numbers first.")] = 0,
    expires: Annotated[str | None, typer.Option(help="Days from now, such as 90d.")] = None,
    note: Annotated[str, typer.Option(help="For people.")] = "",
    tell_pod: Annotated[bool, typer.Option("--debug", help="Answers say which pod gave them.")] = False,
    forwards_user: Annotated[bool, typer.Option("--forwards-user", help="It says for which user it asks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {id, key} as JSON.")] = False,
) -> None:
    """Make a key, add its entry to the file, and print it once."""
    key_id, key = new_key()
    more = {
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrent": concurrent,
        "priority": priority or None,
        "expires": None if expires is None else _expiry(expires),
        "debug": tell_pod or None,
        "forwards_user": forwards_user or None,
        "note": note or None,
    }
    entry = {"id": key_id, "sha256": digest(key.encode("ascii")), "team": team, "models": models or ["*"]}
    add_key(file, entry | {name: value for name, value in more.items() if value is not None})
    typer.echo(json.dumps({"id": key_id, "key": key}) if as_json else key)


@keys_app.command("list")
def list_keys(
    file: KeysFileOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print {keys: [...]} as JSON.")] = False,
) -> None:
    """The entries of a keys file, without their digests."""
    from gateway import keys_table, terminal

    rows = keys_table.rows(load_keys(file), Clock().wall())
    if as_json:
        typer.echo(json.dumps({"keys": rows}, indent=2))
    else:
        terminal.show(keys_table.page(rows))


@keys_app.command("verify")
def verify_key(
    file: KeysFileOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print {verdict, id, team} as JSON.")] = False,
) -> None:
    """What a key is worth. It comes by stdin, or is asked for. Exit 0 if it opens, 1 if not, 2 if nobody can tell."""
    entries = load_keys(file)
    verdict, entry = judge(_read_key(), entries, Clock().wall())
    key_id, team = (None, None) if entry is None else (entry.tenant.key_id, entry.tenant.team)
    if as_json:
        typer.echo(json.dumps({"verdict": verdict, "id": key_id, "team": team}))
    else:
        whose = "" if entry is None else f" (id {key_id}, team {team})"
        typer.echo(f"{verdict}: {VERDICTS[verdict]}{whose}")
    if verdict != "good":
        raise typer.Exit(1)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as 'keys list' shows it.")],
    file: KeysFileOption,
) -> None:
    """Set `disabled: true` in a key's entry. It stays in the file, so that its id goes on telling whose it was."""
    if well_formed(key_id.encode()):
        raise Refused("that is a key: give its id, the 8 characters after sk-pg_")
    entry = disable_key(file, key_id)
    done = (
        "was disabled before" if entry.disabled else "is disabled: gateways that follow the file refuse it in seconds"
    )
    typer.echo(f"the key {key_id} of {entry.tenant.team} {done}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _entries(settings: Config, no_auth: bool) -> tuple[KeyEntry, ...] | None:
    if no_auth:
        return None
    if settings.auth.mode == "none":
        raise Refused("auth.mode is none: add --insecure-no-auth if everyone may really use the pods")
    entries = load_keys(settings.auth.keys_file)
    if not entries and settings.auth.jwt is None:
        raise Refused(f"{settings.auth.keys_file} holds no key: make one with 'poolgate keys create'")
    return entries


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Now, and not when the loop runs: until somebody listens, the same port can be bound twice.
        listener.listen(process.BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
        raise Refused(f"cannot listen on {host}:{port}: {reason}; choose another port") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _expiry(days: str) -> str:
    count = days.removesuffix("d")
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= MAX_EXPIRY_DAYS):
        raise Refused(f"--expires {days}: give days from now, such as 90d; at most {MAX_EXPIRY_DAYS}d")
    return (datetime.now(UTC) + timedelta(days=int(count))).isoformat(timespec="seconds")


def _read_key() -> bytes:
    """A key, from stdin: arguments can be read by others, and stay in the shell's history."""
    if sys.stdin.isatty():
        return str(typer.prompt("key", hide_input=True, err=True)).strip().encode()
    key = sys.stdin.buffer.read(MAX_KEY_BYTES + 1).strip()
    if not key:
        raise Refused("no key came on stdin")
    return key
