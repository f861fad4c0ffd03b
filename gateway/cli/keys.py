"""`poolgate keys`: the keys of a keys file."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.refused import Refused
from gateway.core.clock import Clock
from gateway.limits.keys import MAX_KEY_BYTES, Verdict, digest, judge, new_key, well_formed

app = typer.Typer(help="API keys in a keys file.", no_args_is_help=True)

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


@app.command("create")
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
    from gateway.cli.keys_file import add_key

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


@app.command("list")
def list_keys(
    file: KeysFileOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print {keys: [...]} as JSON.")] = False,
) -> None:
    """The entries of a keys file, without their digests."""
    from gateway.cli import keys_table, terminal
    from gateway.config.keys import load_keys

    rows = keys_table.rows(load_keys(file), Clock().wall())
    if as_json:
        typer.echo(json.dumps({"keys": rows}, indent=2))
    else:
        terminal.show(keys_table.page(rows))


@app.command("verify")
def verify_key(
    file: KeysFileOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print {verdict, id, team} as JSON.")] = False,
) -> None:
    """What a key is worth. It comes by stdin, or is asked for. Exit 0 if it opens, 1 if not, 2 if nobody can tell."""
    from gateway.config.keys import load_keys

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


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as 'keys list' shows it.")],
    file: KeysFileOption,
) -> None:
    """Set `disabled: true` in a key's entry. It stays in the file, so that its id goes on telling whose it was."""
    from gateway.cli.keys_file import disable_key

    if well_formed(key_id.encode()):
        raise Refused("that is a key: give its id, the 8 characters after sk-pg_")
    entry = disable_key(file, key_id)
    done = (
        "was disabled before" if entry.disabled else "is disabled: gateways that follow the file refuse it in seconds"
    )
    typer.echo(f"the key {key_id} of {entry.tenant.team} {done}")


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
