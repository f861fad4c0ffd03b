"""`poolgate keys`: what it writes, what it shows, and that no key or digest is ever shown where it should not be."""

import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from select import select
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.cli.refused import Refused
from gateway.config.faults import ConfigError
from gateway.config.keys import load_keys
from gateway.limits.keys import new_key, well_formed
from tests.docs.pages import scripts
from tests.integration.test_process import ROOT, SECONDS, environment, run
from tests.unit.test_docs import blocks

PAGE = ROOT / "docs" / "keys.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def keys(*arguments: str, stdin: str = "", code: int = 0) -> str:
    """What a command prints on stdout."""
    ended = CliRunner().invoke(app, ["keys", *arguments], input=stdin)
    assert ended.exit_code == code, ended.output
    return ended.stdout


def refused(*arguments: str, stdin: str = "") -> str:
    """Why a command does not go on; `main` ends with 2 then."""
    ended = CliRunner().invoke(app, ["keys", *arguments], input=stdin)
    assert isinstance(ended.exception, Refused | ConfigError), ended.output
    assert ended.stdout == ""
    return str(ended.exception)


def made(file: Path, *more: str) -> tuple[str, str]:
    """(id, key) of a new key."""
    told = json.loads(keys("create", "--team", "acme", "--file", str(file), "--json", *more))
    return told["id"], told["key"]


def listed(file: Path) -> list[dict[str, Any]]:
    rows = json.loads(keys("list", "--file", str(file), "--json"))["keys"]
    assert isinstance(rows, list)
    return rows


def verdict(file: Path, key: str, code: int) -> dict[str, Any]:
    told = json.loads(keys("verify", "--file", str(file), "--json", stdin=f"{key}\n", code=code))
    assert isinstance(told, dict)
    return told


def test_a_key_is_printed_once_and_its_text_stands_nowhere(file: Path) -> None:
    key = keys("create", "--team", "acme", "--file", str(file)).strip()
    assert well_formed(key.encode())
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_is_not_said_is_not_written(file: Path) -> None:
    made(file)
    assert set(re.findall(r"^[- ] (\w+):", file.read_text(), re.MULTILINE)) == {"id", "sha256", "team", "models"}


def test_everything_that_is_said_about_a_key_is_in_its_entry(file: Path) -> None:
    flags = "--models qwen* --models m --rpm 5 --tpm 6 --concurrent 7 --priority -8 --debug --forwards-user"
    key_id, _ = made(file, *flags.split(), "--note", "née: # [x]\n", "--expires", "90d")
    (row,) = listed(file)
    (entry,) = load_keys(file)
    expires = row.pop("expires")
    assert expires.endswith("Z")
    assert abs((datetime.fromisoformat(expires) - datetime.now(UTC)).total_seconds() - 90 * 86_400) < 60
    assert row == {
        "id": key_id,
        "team": "acme",
        "state": "active",
        "models": ["qwen*", "m"],
        "requests_per_minute": 5,
        "tokens_per_minute": 6,
        "concurrent": 7,
        "priority": -8,
        "debug": True,
        "allow_fields": [],
        "forwards_user": True,
        "note": "née: # [x]\n",
    }
    tenant = entry.tenant
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent) == (5, 6, 7)
    assert (tenant.priority, tenant.debug, tenant.forwards_user) == (-8, True, True)


@pytest.mark.parametrize("days", ["0", "0d", "-1d", "x", "90h", "²d", "1.5d", "36501d", "9" * 30, ""])
def test_an_expiry_that_is_no_count_of_days_is_refused(file: Path, days: str) -> None:
    assert "give days from now, such as 90d" in refused(
        "create", "--team", "acme", "--file", str(file), "--expires", days
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--rpm", "0", "requests_per_minute"),
        ("--tpm", "-1", "tokens_per_minute"),
        ("--concurrent", "1000001", "concurrent"),
        ("--priority", "101", "priority"),
        ("--team", "", "team"),
    ],
)
def test_what_an_entry_may_not_say_is_refused_before_anything_is_written(
    file: Path, flag: str, value: str, told: str
) -> None:
    assert told in refused("create", "--team", "acme", "--file", str(file), flag, value)
    assert not file.exists()


def test_the_list_tells_all_but_the_digests(file: Path) -> None:
    made(file, "--rpm", "5", "--tpm", "6", "--note", "[red]x[/red] \x1b[2J")
    key_id, _ = made(file, "--priority", "-1", "--models", "a*", "--models", "b", "--expires", "1d")
    keys("revoke", key_id, "--file", str(file))
    file.write_text(file.read_text() + f"- id: old\n  sha256: {'f' * 64}\n  team: acme\n  expires: 2020-01-01\n")
    shown = keys("list", "--file", str(file))
    told = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines() if line.strip()]
    assert told[0] == ["id", "team", "models", "limits", "priority", "expires", "state", "note"]
    first, second, third = told[2:]
    assert first[1:] == ["acme", "*", "5 rpm, 6 tpm", "0", "-", "active", "[red]x[/red] \N{REPLACEMENT CHARACTER}[2J"]
    assert second[:5] == [key_id, "acme", "a*, b", "-", "-1"]
    assert second[6:] == ["disabled"]
    assert third == ["old", "acme", "*", "-", "0", "2020-01-01T00:00:00Z", "expired"]
    for text in (shown, json.dumps(listed(file))):
        assert not re.search("[0-9a-f]{64}", text)
    assert [row["state"] for row in listed(file)] == ["active", "disabled", "expired"]


def test_an_empty_list_is_shown_as_one(file: Path) -> None:
    file.write_text("keys: []\n")
    assert "id" in keys("list", "--file", str(file))
    assert listed(file) == []


def test_a_key_is_verified_and_the_exit_code_says_whether_it_opens(file: Path) -> None:
    key_id, key = made(file)
    whose = {"id": key_id, "team": "acme"}
    nobody = {"id": None, "team": None}
    typo = key[:-1] + ("a" if key[-1] != "a" else "b")
    assert verdict(file, key, 0) == {"verdict": "good", **whose}
    assert verdict(file, new_key()[1], 1) == {"verdict": "unknown", **nobody}
    assert verdict(file, typo, 1) == {"verdict": "mistyped", **nobody}
    assert verdict(file, "sk-other", 1) == {"verdict": "malformed", **nobody}
    assert verdict(file, "x" * 10_000, 1) == {"verdict": "malformed", **nobody}
    file.write_text(file.read_text() + "  expires: 2020-01-01T00:00:00Z\n")
    assert verdict(file, key, 1) == {"verdict": "expired", **whose}
    keys("revoke", key_id, "--file", str(file))
    assert verdict(file, key, 1) == {"verdict": "disabled", **whose}


def test_a_verdict_is_told_in_words_without_the_key(file: Path) -> None:
    key_id, key = made(file)
    assert keys("verify", "--file", str(file), stdin=key) == f"good: it opens (id {key_id}, team acme)\n"
    told = keys("verify", "--file", str(file), stdin=key[:-1] + "!", code=1)
    assert told.startswith("malformed: ")
    assert key[:-1] not in told


def test_a_key_that_cannot_be_judged_is_no_verdict(file: Path) -> None:
    assert "cannot be read" in refused("verify", "--file", str(file), stdin="x\n")
    file.write_text("keys: []\n")
    assert refused("verify", "--file", str(file), stdin=" \n") == "no key came on stdin"


def test_a_revoked_key_stays_in_the_file_and_is_told_of(file: Path) -> None:
    key_id, _ = made(file)
    made(file)
    told = keys("revoke", key_id, "--file", str(file))
    assert told.startswith(f"the key {key_id} of acme is disabled")
    assert [row["state"] for row in listed(file)] == ["disabled", "active"]
    assert keys("revoke", key_id, "--file", str(file)) == f"the key {key_id} of acme was disabled before\n"


def test_a_key_in_place_of_its_id_is_not_repeated(file: Path) -> None:
    key_id, key = made(file)
    told = refused("revoke", key, "--file", str(file))
    assert "give its id, the 8 characters after sk-pg_" in told
    assert key_id not in told
    assert [row["state"] for row in listed(file)] == ["active"]


# In processes of their own.


def test_a_command_that_is_refused_ends_with_2_and_one_line(file: Path) -> None:
    made(file)
    ended = run("keys", "revoke", "nobody", "--file", str(file))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"poolgate: {file}: no key here has the id 'nobody'")
    assert ended.stderr.count("\n") == 1


def test_debug_is_an_option_of_create_and_of_nothing_else(file: Path) -> None:
    """Elsewhere it asks for a traceback, wherever it stands."""
    assert run("keys", "create", "--debug", "--team", "acme", "--file", str(file)).returncode == 0
    assert [row["debug"] for row in listed(file)] == [True]
    assert "Traceback" in run("keys", "list", "--debug", "--file", str(file.parent / "none")).stderr


def test_on_a_terminal_the_key_is_asked_for_and_not_shown(file: Path) -> None:
    _, key = made(file)
    near, far = pty.openpty()
    with (
        os.fdopen(near, "rb", buffering=0) as screen,
        os.fdopen(far, "wb", buffering=0) as line,
        subprocess.Popen(
            [sys.executable, "-m", "gateway", "keys", "verify", "--file", str(file)],
            stdin=line,
            stdout=subprocess.PIPE,
            stderr=line,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        ) as process,
    ):
        shown = b""
        while b"key: " not in shown:
            assert select([screen], [], [], SECONDS)[0]
            shown += screen.read(100)
        os.write(near, key.encode() + b"\n")
        out, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, out.decode().split(":")[0]) == (0, "good")
        os.set_blocking(near, False)
        assert key.encode() not in (screen.read(1000) or b"")


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    """All of them, one after the other, beside the keys file that the page shows."""
    for name, block in zip(("keys.yaml", "poolgate.yaml"), blocks(PAGE, "yaml"), strict=True):
        (tmp_path / name).write_text(block)
    lines = [line for block in scripts("docs/keys.md") for line in block.script.splitlines()]
    assert {"create", "list", "verify", "revoke"} <= {line.split()[2] for line in lines}
    key = ""
    for line in lines:
        command = line.partition("#")[0]
        ended = subprocess.run(
            ["sh", "-c", command],
            input=key,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            timeout=SECONDS,
        )
        # The pods of the page are not there.
        told = [words for words in ended.stderr.splitlines() if ": warning: discovery.pods." not in words]
        assert (ended.returncode, told) == (0, []), line
        if " keys create " in command and "--json" not in command:
            key = ended.stdout
    assert load_keys(tmp_path / "keys.yaml")[0].disabled
