"""`python -m loadtest run SCENARIO...`, `list`, `compare A B`: what each scenario asks is in docs/load-tests.md.

Exit codes: 0; 1, if a verdict did not hold, or a comparison found something worse; 2, if it cannot be run like this;
130 after Ctrl-C.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.bench.processes import BenchError, alone
from loadtest.load.client import BadUrl
from loadtest.load.plan import Scenario
from loadtest.load.progress import progress_to
from loadtest.load.reading import load, names
from loadtest.load.section import BadScenario
from loadtest.report.compare import NotComparable, compared
from loadtest.report.document import NotAReport, Run, Verdict, read
from loadtest.report.files import write_report
from loadtest.stand.run import Asked
from loadtest.stand.run import run as run_scenario

ALL: Final = "all"
STOPPED: Final = 130

app = typer.Typer(name="python -m loadtest", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def loadtest() -> None:
    """Load tests of the gateway: scenarios that can end with no."""


@app.command()
def run(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Names, FILE.yaml, or all.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pages, plots and JSON.", file_okay=False)] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Over after so long, instead of the file's.")] = None,
    scale: Annotated[float | None, typer.Option(min=0.001, help="So many times as many requests.")] = None,
    url: Annotated[str | None, typer.Option(help="A gateway that runs already, instead of one of our own.")] = None,
    key: Annotated[str, typer.Option(envvar="POOLGATE_KEY", help="The API key for it.", show_envvar=True)] = "",
    pin: Annotated[bool, typer.Option(help="Gateways on one core, pods and generator on the others.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait while a bench or another run has the cores.")] = True,
) -> None:
    """Play scenarios, one after the other, and say what held."""
    chosen = [_changed(load(name), seconds, scale) for name in _named(scenarios)]
    if out is not None:
        _make(out)
    failed = []
    for scenario in chosen:
        asked = Asked(_command(scenario, seconds, scale, url, pin), url, key, pin, _notes(seconds, scale))
        try:
            with alone() if wait else nullcontext():
                told = _run(scenario, asked)
        except BenchError as error:
            typer.echo(f"{scenario.name} could not be played: {error}", err=True)
            failed.append(scenario.name)
            continue
        _tell(told)
        if out is not None:
            typer.echo(f"written: {write_report(told, out)}", err=True)
        if not told.held:
            failed.append(scenario.name)
    if failed:
        typer.echo(f"not all held: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command(name="list")
def list_() -> None:
    """What there is to play, and what each asks."""
    table = Table("scenario", "seconds", "asks", box=None, pad_edge=False)
    for name in names():
        scenario = load(name)
        table.add_row(name, f"{scenario.seconds:g}", scenario.question)
    Console().print(table)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="JSON that `run --out` wrote.", dir_okay=False)],
    after: Annotated[Path, typer.Argument(help="JSON of a later run of the same scenario.", dir_okay=False)],
    slack: Annotated[
        float, typer.Option(min=1, help="All may move by so many times as much: for a host that others use.")
    ] = 1.0,
) -> None:
    """Say what is worse in the second run than in the first; exit code 1 if anything is."""
    found = compared(read(before), read(after), slack=slack)
    typer.echo(found.table())
    if found.worse:
        raise typer.Exit(1)


def _make(out: Path) -> None:
    """Before anything is played: it would be lost."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{out}: {error.strerror}", param_hint="--out") from None


def _named(scenarios: Sequence[str]) -> Sequence[str]:
    return names() if list(scenarios) == [ALL] else scenarios


def _changed(scenario: Scenario, seconds: float | None, scale: float | None) -> Scenario:
    if seconds is not None:
        scenario = scenario.lasting(seconds)
    return scenario if scale is None else scenario.scaled(scale)


def _command(scenario: Scenario, seconds: float | None, scale: float | None, url: str | None, pin: bool) -> str:
    """What repeats it; an address is nobody's business."""
    words = ["python -m loadtest run", scenario.name]
    words += [] if seconds is None else [f"--seconds {seconds:g}"]
    words += [] if scale is None else [f"--scale {scale:g}"]
    words += [] if url is None else ["--url URL"]
    words += [] if pin else ["--no-pin"]
    return " ".join(words)


def _notes(seconds: float | None, scale: float | None) -> Sequence[str]:
    changes = [] if seconds is None else [f"over after {seconds:g} s"]
    changes += [] if scale is None else [f"{scale:g} times as many requests"]
    return (f"Not as the file has it: {', '.join(changes)}.",) if changes else ()


def _run(scenario: Scenario, asked: Asked) -> Run:
    Console(stderr=True).print(f"[bold]{scenario.name}[/bold]: {scenario.question}", highlight=False)
    affinity = os.sched_getaffinity(0)
    try:
        with progress_to(sys.stderr) as progress:
            return uvloop.run(_until_signalled(run_scenario(scenario, asked, progress)))
    except asyncio.CancelledError:
        raise typer.Exit(STOPPED) from None
    finally:
        os.sched_setaffinity(0, affinity)


async def _until_signalled(running: Coroutine[None, None, Run]) -> Run:
    """A signal is a cancellation: every process of the stand is ended on the way out."""
    task = asyncio.current_task()
    assert task is not None  # this is a coroutine
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await running


def _tell(told: Run) -> None:
    table = Table("", "expected", "found", title=told.scenario, title_justify="left", show_lines=True)
    for verdict in told.verdicts:
        table.add_row(_word(verdict), verdict.expected, verdict.found)
    console = Console()
    console.print(table)
    for note in told.notes:
        console.print(f"- {note}", highlight=False)


def _word(verdict: Verdict) -> str:
    if verdict.held is None:
        return "not judged"
    return "[green]held[/green]" if verdict.held else "[bold red]FAILED[/bold red]"


def main() -> int:
    try:
        app(prog_name="python -m loadtest")
    except (BadScenario, BadUrl, NotAReport, NotComparable) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
