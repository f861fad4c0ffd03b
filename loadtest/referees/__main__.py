"""`python -m loadtest.referees`: do other generators find what ours finds?

Exit codes: 0 if all agree; 1 if not, or if somebody did not come to an end; 2 if it cannot be run like this; 130 after
Ctrl-C.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final

import uvloop

from loadtest.bench.processes import BenchError, alone
from loadtest.load.drawing import draw
from loadtest.load.reading import read
from loadtest.referees import install
from loadtest.referees.aiperf import AIPerf
from loadtest.referees.figures import Figures, NotFound
from loadtest.referees.guidellm import GuideLLM
from loadtest.referees.page import Played, agreed, answer, figures_table, page
from loadtest.referees.player import Load, Ours, Player, Program, Referee
from loadtest.report.where import commit, host, load_now
from loadtest.stand.cores import Cores
from loadtest.stand.run import versions
from loadtest.stand.stand import simulated

LOADS: Final = ("constant", "closed")
REFEREES: Final[Mapping[str, Referee]] = {"aiperf": AIPerf(), "guidellm": GuideLLM()}
STOPPED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.referees", description="Does our generator find what others find?"
    )
    parser.add_argument("referee", nargs="*", help=f"default: those of {', '.join(REFEREES)} that can be installed")
    parser.add_argument("--load", action="append", choices=LOADS, help="default: all; repeatable")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="(default 2)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write referees.md there")
    parser.add_argument("--no-wait", action="store_true", help="go on though a bench or another run has the cores")
    asked = parser.parse_args(arguments)
    if unknown := sorted({*asked.referee} - {*REFEREES}):
        parser.error(f"no such referee: {', '.join(unknown)}; there are {', '.join(REFEREES)}")
    if asked.rounds < 1:
        parser.error("--rounds is at least 1")
    try:
        names, notes = installed(asked.referee)
    except BenchError as error:
        print(f"referees: {error}", file=sys.stderr)
        return 2
    begun, load_before = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"), load_now()
    try:
        played = [play(load_named(name), names, asked.rounds, wait=not asked.no_wait) for name in asked.load or LOADS]
    except (BenchError, NotFound) as error:
        print(f"referees: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return STOPPED
    print(answer(played))
    print(figures_table(played))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        file = asked.out / "referees.md"
        told = page(
            played,
            commit=commit(),
            host=host(load_before),
            begun=begun,
            versions={**{REFEREES[name].name: install.version_of(name) for name in names}, **versions()},
            command=command(asked.referee, asked.load, asked.rounds),
            notes=notes,
        )
        file.write_text(told, "utf-8")
        print(f"written: {file}", file=sys.stderr)
    return 0 if agreed(played) else 1


def installed(asked: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The referees there are, and what is to be said of others. Who is asked for by name must be there."""
    names, notes = [], ["Nobody was bound to a core: a referee is a dozen processes, and two cores would not hold it."]
    for name in asked or REFEREES:
        try:
            install.install(name)
        except install.NoTorch as error:
            if asked:
                raise
            notes.append(f"{REFEREES[name].name} was left out: {error}.")
        else:
            names.append(name)
    return names, notes


def command(referees: Sequence[str], loads: Sequence[str] | None, rounds: int) -> str:
    words = ["python -m loadtest.referees", *referees, *(f"--load {name}" for name in loads or ())]
    return " ".join([*words, f"--rounds {rounds}"])


def load_named(name: str) -> Load:
    scenario = read(resources.files("loadtest.referees") / f"{name}.yaml")
    return Load(scenario, draw(scenario))


def play(load: Load, names: Sequence[str], rounds: int, *, wait: bool = True) -> Played:
    """All players in each round; every other round the other way round."""
    players: list[Player] = [Ours(), *(Program(REFEREES[name]) for name in names)]
    found: Mapping[str, list[Figures]] = {player.name: [] for player in players}
    for number in range(rounds):
        for player in players if number % 2 == 0 else players[::-1]:
            with alone() if wait else nullcontext():
                print(f"{load.scenario.name}, round {number + 1}: {player.name} ...", file=sys.stderr, flush=True)
                found[player.name].append(uvloop.run(_until_signalled(load, player)))
    return Played(load.scenario.name, in_words(load), found)


def in_words(load: Load) -> str:
    requests = load.schedule.requests
    pace = f"{load.schedule.workers} callers at once" if load.rate is None else f"{load.rate:g} requests per second"
    mean = sum(planned.prompt_tokens for planned in requests) / len(requests)
    answers = sum(planned.max_tokens for planned in requests) / len(requests)
    return f"{len(requests)} requests, {pace}; prompts of {mean:.0f} tokens in the mean, answers of {answers:.0f}"


async def _until_signalled(load: Load, player: Player) -> Figures:
    """A signal is a cancellation: every process is ended on the way out."""
    task = asyncio.current_task()
    assert task is not None  # this is a coroutine
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await turn(load, player)


async def turn(load: Load, player: Player) -> Figures:
    """One player before a stand of its own: pods know no prompt yet, and the gateway is as fresh for each."""
    cores = Cores.of_this_host(pinned=False)
    with tempfile.TemporaryDirectory(prefix="poolgate-referees-") as folder:
        places = [Path(folder) / name for name in ("stand", "player")]
        for place in places:
            place.mkdir()
        async with simulated(load.scenario, cores, places[0]) as stand:
            return await player.play(load, stand, cores, places[1])


if __name__ == "__main__":
    sys.exit(main())
