"""What all commands have in common: completion, the version, exit codes, and no traceback unless it is asked for."""

import asyncio
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gateway import __version__
from tests.integration.test_pods_command import ops_port
from tests.integration.test_process import ROOT, SECONDS, environment, run

COMMANDS = {"serve", "demo", "check", "pods", "top", "chat", "explain", "usage", "keys", "config", "secrets", "version"}


def completed(line: str, shell: str = "bash") -> set[str]:
    """What a shell is offered at the end of a line."""
    words = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    ended = run(more={"_POOLGATE_COMPLETE": f"complete_{shell}", **words[shell]})
    assert ended.stderr == ""
    return {part.strip('"') for each in ended.stdout.split("\n") for part in each.split() if part}


def test_bash_is_offered_the_commands_and_their_options() -> None:
    assert completed("poolgate ") == COMMANDS
    assert completed("poolgate keys ") == {"create", "list", "verify", "revoke"}
    assert completed("poolgate c") == {"check", "chat", "config"}
    assert {"--offline", "--json"} <= completed("poolgate check --")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_them_too(shell: str) -> None:
    assert any("chat" in word for word in completed("poolgate ch", shell))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_can_be_shown_to_be_installed(shell: str) -> None:
    ended = run("--show-completion", shell, more={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "_POOLGATE_COMPLETE" in ended.stdout


def test_the_version_is_told_by_a_flag_too() -> None:
    told = run("--version")
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{__version__}\n", "")


def test_a_command_that_does_not_exist_is_a_usage_error() -> None:
    ended = run("serv")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "serve" in ended.stderr


LIGHT = ("fastapi", "uvicorn", "uvloop", "httpx2", "yaml", "gateway.app", "gateway.config", "prometheus_client")


def test_no_command_waits_for_the_libraries_of_another() -> None:
    code = f"import sys, gateway.cli.main; print([name for name in {LIGHT!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_serving_does_not_wait_for_the_libraries_of_other_commands() -> None:
    code = (
        "import sys; import gateway.cli.main, gateway.cli.process, gateway.app, gateway.config.keys, uvloop;"
        "print([name for name in ('rich', 'httpx2', 'termios') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


# What goes wrong.


def lines_of_access(count: int) -> bytes:
    line = (
        b'{"ts":"2026-01-01T00:00:00.000Z","tenant":"t%d","model":"m","usage_source":"reported","prompt_tokens":1,'
        b'"completion_tokens":1,"cached_tokens":0}\n'
    )
    return b"".join(line % at for at in range(count))


@pytest.mark.parametrize("flags", ["", "--csv", "--json"])
@pytest.mark.parametrize("count", [1, 5000], ids=["a-little", "much"])
def test_a_reader_that_has_enough_is_no_fault(tmp_path: Path, flags: str, count: int) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(lines_of_access(count))
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "usage", str(log), *flags.split()],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process, process.stderr:
        assert process.stderr.read() == b""
        assert process.wait(SECONDS) in (0, 1)


async def test_ctrl_c_ends_a_command_in_silence() -> None:
    asked, leave = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            asked.set()
            await leave.wait()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(SECONDS):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "explain", "x"),
            *("--url", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await asked.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        leave.set()
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_file_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    ended = run("keys", "create", "--team", "a", "--file", str(tmp_path / "no" / "keys.yaml"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("poolgate: ")
    assert "Traceback" not in ended.stderr


BROKEN = """\
import sys
from gateway.cli import main, usage
main.app.registered_commands[:] = [each for each in main.app.registered_commands if each.name != "boom"]
@main.app.command()
def boom() -> None:
    raise {raised}
sys.argv = ["poolgate", *sys.argv[1:]]
main.main()
"""


def broken(raised: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with a bug."""
    code = BROKEN.format(raised=raised)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


SECRET = "sk-pg_hunter2"


@pytest.mark.parametrize("raised", [f"ValueError('{SECRET}')", f"ExceptionGroup('x', [ValueError('{SECRET}')])"])
def test_what_nobody_expected_is_told_without_a_traceback_and_without_its_text(raised: str) -> None:
    ended = broken(raised, "boom")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("poolgate: unexpected ValueError at ")
    assert "run it again with --debug" in ended.stderr
    assert SECRET not in ended.stderr


def test_debug_shows_where_it_comes_from() -> None:
    for arguments in (["--debug", "boom"], ["boom", "--debug"]):
        ended = broken("ValueError('why')", *arguments)
        assert ended.returncode == 1
        assert "Traceback" in ended.stderr
        assert "ValueError: why" in ended.stderr


def test_trouble_of_the_system_is_told_in_its_words() -> None:
    ended = broken("OSError(28, 'No space left on device', '/var/x')", "boom")
    assert (ended.returncode, ended.stderr) == (1, "poolgate: No space left on device: /var/x\n")


async def test_a_terminal_that_knows_few_letters_gets_others() -> None:
    async with ops_port() as port:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "top", "--url", port.url),
            cwd=ROOT,
            env=environment() | {"PYTHONIOENCODING": "ascii"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"req/s" in out
