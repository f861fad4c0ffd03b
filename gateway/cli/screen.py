"""A screen that follows a running gateway until `q` or Ctrl-C.

A gateway that is being replaced comes back: what is shown meanwhile is the last that it said, and that it is old. The
terminal is left as it was found, whichever way the command ends.
"""

import asyncio
import signal
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from os import read
from typing import Any

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live

from gateway.cli.ops_client import NoStatus
from gateway.core.clock import Clock
from gateway.core.words import how_long

REFRESH_SECONDS = 1.0
QUIT_KEYS = b"qQ"

Draw = Callable[[dict[str, Any], str, ConsoleDimensions], RenderableType]
"""From a status, why it is old (empty: it is not), and the size of the terminal."""


async def follow(ask: Callable[[], Awaitable[dict[str, Any]]], draw: Draw, *, whole: bool) -> None:
    """Show what `ask` brings, renewed each second. `whole`: the screen is taken for it, and given back at the end.

    Raises `NoStatus` when the first question is not answered.
    """
    monotonic = Clock().monotonic
    status, fault, renewed_at = await ask(), "", monotonic()
    changed, left = asyncio.Event(), asyncio.Event()

    async def renew() -> None:
        nonlocal status, fault, renewed_at
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                status, fault, renewed_at = await ask(), "", monotonic()
            except NoStatus as error:
                fault = f"not renewed for {how_long(monotonic() - renewed_at)}: {error}"
            changed.set()

    def leave() -> None:
        left.set()
        changed.set()

    console = Console()
    with _signals(changed.set, leave), _keys(leave), Live(console=console, screen=whole, auto_refresh=False) as live:
        renewing = asyncio.create_task(renew())
        try:
            while not left.is_set():
                live.update(draw(status, fault, console.size), refresh=True)
                waiting = asyncio.create_task(changed.wait())
                await asyncio.wait((waiting, renewing), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                changed.clear()
                if renewing.done():
                    renewing.result()
        finally:
            renewing.cancel()


@contextmanager
def _signals(resized: Callable[[], None], leave: Callable[[], None]) -> Iterator[None]:
    """Another size of the terminal is drawn at once; who ends us gets the terminal back as it was."""
    loop = asyncio.get_running_loop()
    told = {signal.SIGWINCH: resized, signal.SIGTERM: leave, signal.SIGHUP: leave}
    for number, call in told.items():
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in told:
            loop.remove_signal_handler(number)


@contextmanager
def _keys(leave: Callable[[], None]) -> Iterator[None]:
    """`q` leaves. Keys are read as they are struck, and not shown."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(keyboard)

    def struck() -> None:
        with suppress(OSError):
            keys = read(keyboard, 64)
            if not keys:
                loop.remove_reader(keyboard)
            if any(key in QUIT_KEYS for key in keys):
                leave()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, struck)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        with suppress(termios.error):
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
