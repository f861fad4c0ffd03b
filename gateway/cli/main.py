"""The `poolgate` command: its commands, and how it tells what went wrong."""

import logging
import sys

import typer

from gateway import __version__
from gateway.app import CannotStart
from gateway.cli import check, explain, keys, pods, serve, usage
from gateway.cli.demo import DemoFailed
from gateway.cli.refused import Refused
from gateway.config import ConfigError

app = typer.Typer(
    name="poolgate",
    help="An OpenAI-compatible gateway in front of pools of vLLM pods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (serve.serve, serve.demo, check.check, pods.pods, explain.explain, usage.usage):
    app.command()(command)
app.add_typer(keys.app, name="keys")


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
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
