"""How a run stands is told on one live line to who sits before it, and in few plain lines to who reads a log."""

import io
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from loadtest.load.progress import OneLine, Plain, Silent, Standing, progress_to
from loadtest.load.record import Ending

STANDING = Standing(
    at=12.4,
    seconds=60.0,
    sent=480,
    open=31,
    endings={Ending.WHOLE: 1440, Ending.ERROR: 9, Ending.CUT: 0},
    tokens=52_113,
    late=0.00042,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_standing_is_one_line_that_names_only_the_endings_there_were() -> None:
    assert str(STANDING) == ("12 of 60 s  sent 480  open 31  error 9  whole 1,440  tokens 52,113  late 0.4 ms")


def test_a_log_gets_a_line_each_ten_seconds_and_the_last() -> None:
    out = io.StringIO()
    with progress_to(out) as progress:
        for quarter in range(4 * 25 + 1):
            progress.show(replace(STANDING, at=quarter / 4))
    assert [line.split(" ")[0] for line in out.getvalue().splitlines()] == ["0", "10", "20", "25"]


def test_the_last_line_of_a_log_is_not_repeated() -> None:
    out = io.StringIO()
    with progress_to(out) as progress:
        progress.show(STANDING)
    assert len(out.getvalue().splitlines()) == 1


def test_a_log_of_nothing_is_empty() -> None:
    out = io.StringIO()
    with progress_to(out):
        pass
    assert out.getvalue() == ""


def test_a_line_that_came_late_does_not_shift_the_next() -> None:
    out = io.StringIO()
    plain = Plain(out, every_seconds=10.0)
    for at in (0.0, 14.0, 19.9, 20.0):
        plain.show(replace(STANDING, at=at))
    assert len(out.getvalue().splitlines()) == 3


def test_a_terminal_gets_one_line_that_is_drawn_over_itself() -> None:
    out = Terminal()
    with progress_to(out) as progress:
        assert isinstance(progress, OneLine)
        for at in (1.0, 2.0, 3.0):
            progress.show(replace(STANDING, at=at))
    text = out.getvalue()
    assert "1 of 60 s" in text
    assert "3 of 60 s" in text
    assert "\x1b[2K" in text  # the line is cleared before it is drawn again
    assert text.count("\n") == 1


def test_what_is_not_well_is_seen_by_its_colour() -> None:
    def drawn(standing: Standing) -> str:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=200, color_system="standard")
        with Live(console=console, auto_refresh=False) as live:
            OneLine(live).show(standing)
        return out.getvalue()

    well = replace(STANDING, endings={Ending.WHOLE: 5, Ending.LEFT: 2})
    assert "\x1b[33m12 of 60 s" in drawn(STANDING)
    assert "\x1b[33m12 of 60 s" not in drawn(well)


def test_who_wants_no_progress_is_told_nothing() -> None:
    Silent().show(STANDING)
