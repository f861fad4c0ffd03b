"""How a run stands, told while it lasts: one live line on a terminal, a plain line now and then elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.load.record import Ending

PLAIN_EVERY_SECONDS: Final = 10.0
_GOOD: Final = (Ending.WHOLE, Ending.LEFT)


@dataclass(frozen=True)
class Standing:
    """Of a run, at one moment."""

    at: float  # seconds from its start
    seconds: float  # when the schedule is over; answers may still run
    sent: int
    open: int
    endings: Mapping[Ending, int]
    tokens: int
    late: float  # seconds: the most since the last look that the generator itself was late

    def __str__(self) -> str:
        """One line, such as "12 of 60 s  sent 480  open 31  whole 440  error 9  tokens 52,113  late 0.4 ms"."""
        ended = "".join(f"  {ending} {count:,}" for ending, count in sorted(self.endings.items()) if count)
        return (
            f"{self.at:.0f} of {self.seconds:.0f} s  sent {self.sent:,}  open {self.open:,}{ended}"
            f"  tokens {self.tokens:,}  late {self.late * 1e3:.1f} ms"
        )


class Progress(Protocol):
    def show(self, standing: Standing) -> None:
        """Called a few times a second, and once at the end."""


class Silent:
    def show(self, standing: Standing) -> None:
        pass


class Plain:
    """A line each ten seconds, and the last; for logs."""

    def __init__(self, out: TextIO, every_seconds: float = PLAIN_EVERY_SECONDS) -> None:
        self._out = out
        self._every_seconds = every_seconds
        self._next_at = 0.0
        self._last: Standing | None = None
        self._shown: Standing | None = None

    def show(self, standing: Standing) -> None:
        self._last = standing
        if standing.at >= self._next_at:
            self._next_at = (standing.at // self._every_seconds + 1) * self._every_seconds
            self._print(standing)

    def close(self) -> None:
        if self._last is not None and self._last is not self._shown:
            self._print(self._last)

    def _print(self, standing: Standing) -> None:
        self._shown = standing
        print(standing, file=self._out, flush=True)


class OneLine:
    """On a terminal: a bar and what `Standing` says, drawn over itself by the caller's own looks, without a thread."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, standing: Standing) -> None:
        line = Table.grid(padding=(0, 2))
        bad = any(count for ending, count in standing.endings.items() if ending not in _GOOD)
        bar = ProgressBar(total=standing.seconds, completed=min(standing.at, standing.seconds), width=20)
        line.add_row(bar, Text(str(standing), style="yellow" if bad else "", no_wrap=True, overflow="ellipsis"))
        self._live.update(line, refresh=True)


@contextmanager
def progress_to(out: TextIO) -> Iterator[Progress]:
    """What fits where `out` leads."""
    console = Console(file=out)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield OneLine(live)
        return
    plain = Plain(out)
    try:
        yield plain
    finally:
        plain.close()
