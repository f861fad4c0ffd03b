#!/usr/bin/env python3
"""Takes the pictures of the status page that the docs show: docs/images/status-{light,dark,phone}.png.

As an operator would see it some night: two pools of simulated pods, four teams that ask, one of them at its limit; a
pod has died a moment ago, one does not come up, and a model has no pods. It takes a bit more than a minute, for that is
what the page looks back on. It wants what the tests in tests/browser want, and drives Chromium as they do.
"""

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from random import Random  # noqa: TID251  # outside of the gateway, nobody hands it in
from typing import Any, NamedTuple

from tests.browser import driver
from tests.browser.scene import LIVE, MODEL, OTHER_MODEL, Gateway, Settings, gateway, pods

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
PICTURES: dict[str, dict[str, Any]] = {
    "status-light": {"colorScheme": "light", "viewport": {"width": 1280, "height": 1212}},
    "status-dark": {"colorScheme": "dark", "viewport": {"width": 1280, "height": 1212}},
    "status-phone": {"colorScheme": "light", "viewport": {"width": 400, "height": 860}},
}
"""Of each, Playwright's options of a context."""
REPLICA = "poolgate-7c9f6d5b8-x2m4q"
"""Shown in place of this machine's name."""
BEFORE_SECONDS, AFTER_SECONDS = 58.0, 5.0
"""Of traffic, before a pod dies and after that."""

PODS = (
    ("chat-0", "chat", MODEL),
    ("chat-1", "chat", MODEL),
    ("chat-2", "chat", MODEL),
    ("chat-3", "chat", MODEL),
    ("small-0", "small", OTHER_MODEL),
    ("small-1", "small", OTHER_MODEL),
)
DIES, NEVER_STARTS = 1, 3
ENGINE = ("--step-ms=25", "--kv-blocks=400", "--max-model-len=4096")
POOLS = {"chat": {"models": [MODEL, "qwen3-32b"]}, "small": {"models": [OTHER_MODEL]}}
NO_LIMITS = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}
TEAMS: dict[str, dict[str, Any]] = {
    "acme": {"tokens_per_minute": 150_000, "concurrent": 32},
    "search": {"requests_per_minute": 60},
    "batch": {"concurrent": 8},
    "lab": {"requests_per_minute": 30},
}


class Callers(NamedTuple):
    """Some callers of a team who ask alike."""

    team: str
    count: int
    model: str
    prompt_tokens: int
    answer_tokens: tuple[int, int]
    pause_seconds: float
    """Between two requests, on average."""


CALLERS = (
    Callers("acme", 12, MODEL, 900, (60, 240), 1.0),
    Callers("search", 3, OTHER_MODEL, 120, (8, 24), 0.9),
    Callers("batch", 7, MODEL, 1500, (100, 300), 0.2),
    Callers("lab", 2, OTHER_MODEL, 300, (20, 120), 3.0),
)


async def main() -> None:
    """Everything that is started ends here."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        browser = await stack.enter_async_context(driver.browser())
        there = await stack.enter_async_context(pods(*PODS, flags=ENGINE))
        settings = Settings.written(folder, there, teams=TEAMS, more={"pools": POOLS, "limits": {"default": NO_LIMITS}})
        there[NEVER_STARTS].kill()
        running = await stack.enter_async_context(gateway(settings))
        chance, numbers = Random(7), count()  # noqa: S311  # the same traffic each time
        async with asyncio.TaskGroup() as asking:
            tasks = [
                asking.create_task(_ask(running, callers, chance, numbers))
                for callers in CALLERS
                for _ in range(callers.count)
            ]
            await asyncio.sleep(BEFORE_SECONDS)
            there[DIES].kill()
            await running.pod_is(there[DIES].name, "ejected")
            await asyncio.sleep(AFTER_SECONDS)
            for name, options in PICTURES.items():
                await _take(browser, running, IMAGES / f"{name}.png", options)
            for task in tasks:
                task.cancel()


async def _ask(running: Gateway, callers: Callers, chance: Random, numbers: "count[int]") -> None:
    """One caller, for ever: prompts begin alike within a team, and differ then."""
    while True:
        await asyncio.sleep(chance.expovariate(1 / callers.pause_seconds))
        words = f"You answer for {callers.team}. " * (callers.prompt_tokens * 4 // 32) + str(next(numbers))
        await running.ask(
            callers.team,
            model=callers.model,
            stream=True,
            max_tokens=chance.randint(*callers.answer_tokens),
            messages=[{"role": "user", "content": words}],
        )


async def _take(browser: driver.Browser, running: Gateway, file: Path, options: dict[str, Any]) -> None:
    async with browser.page(running.url, **options) as page:
        await page.until(LIVE)
        await page.evaluate(f"document.querySelector('#self span:nth-child(2)').textContent = '{REPLICA}'")
        await page.screenshot(file)
    sys.stderr.write(f"{file.relative_to(IMAGES.parents[1])}\n")


if __name__ == "__main__":
    asyncio.run(main())
