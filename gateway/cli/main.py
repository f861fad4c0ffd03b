"""The `poolgate` command: its commands, and how it tells what went wrong.

A command's module imports what it needs when it is called: asking for the version, or for the words that a shell
completes, takes a tenth of the time that serving needs to start.
"""

import logging
import sys
from pathlib import Path
from traceback import extract_tb
from typing import Annotated

import typer

from gateway import __version__
from gateway.cli import chat, check, config, explain, keys, pods, secrets, serve, top, usage
from gateway.cli.refused import Refused

app = typer.Typer(name="poolgate", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    serve.serve,
    serve.demo,
    check.check,
    secrets.secrets,
    pods.pods,
    top.top,
    chat.chat,
    explain.explain,
    usage.usage,
):
    app.command()(command)
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def poolgate(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; with any command.")] = False,
) -> None:
    """An OpenAI-compatible gateway in front of pools of vLLM pods."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line: what goes wrong is told in words, without a traceback (unless --debug).

    Exit codes: 0, 1 (the gateway or the model said no, or something unexpected), 2 (the command cannot be run like
    this), 130 (Ctrl-C).
    """
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
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter shows another one.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text files
    try:
        # Ends in silence, by itself, where who reads has enough: `poolgate usage | head`.
        app(args=arguments, prog_name="poolgate")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        text, code = _told(error)
        for line in text.splitlines():
            typer.echo(f"poolgate: {line}", err=True)
        raise SystemExit(code) from None


def _told(error: Exception) -> tuple[str, int]:
    """(What to say of it, the exit code)."""
    if isinstance(error, Refused):
        return str(error), 2
    from gateway.config.faults import ConfigError
    from gateway.parts import CannotStart

    if isinstance(error, CannotStart | ConfigError):
        return str(error), 2
    if isinstance(error, OSError):
        named = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or type(error).__name__}{named}", 1
    trace = error.__traceback__
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
        trace = error.__traceback__ or trace
    # Its text may quote anything, a key too.
    last = extract_tb(trace)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"unexpected {type(error).__name__} at {where}: run it again with --debug to see more, and report it", 1
