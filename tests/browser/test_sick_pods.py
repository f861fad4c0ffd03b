"""A pod is killed: at three in the morning an operator sees it, and why."""

import asyncio
import json
from pathlib import Path

from tests.browser.driver import IN_CHROMIUM, Browser
from tests.browser.scene import LIVE, MODEL, Settings, gateway, pods
from tests.turns import Turns

pytestmark = IN_CHROMIUM

SHOWN_WITHIN_SECONDS = 3.0


def row(pod: str) -> str:
    """A pod's row, in JavaScript."""
    return f"document.querySelector({json.dumps(f'tr[data-pod={json.dumps(pod)}]')})"


def colour(element: str) -> str:
    """[red, green, blue] of the dot beside a state, in JavaScript."""
    return f"getComputedStyle({element}.querySelector('.dot'), '::before').backgroundColor.match(/\\d+/g).map(Number)"


async def test_a_killed_pods_row_turns_red_with_its_reason(browser: Browser, tmp_path: Path) -> None:
    wanted = [(f"chat-{number}", "chat", MODEL) for number in range(3)]
    async with (
        pods(*wanted) as there,
        gateway(Settings.written(tmp_path, there)) as running,
        browser.page(running.url) as page,
        running.asked(callers=4),
    ):
        await page.until(LIVE)
        await page.until(f"{row('chat-1')}.dataset.state === 'ready'")
        red, green, blue = await page.evaluate(colour(row("chat-1")))
        assert green > red, "a ready pod's dot is green"

        with Turns() as since_it_was_killed:
            there[1].kill()
            seeing = asyncio.create_task(page.until(f"{row('chat-1')}.dataset.state !== 'ready'"))
            told = await running.pod_is("chat-1", "ejected", "starting")
            told_after = since_it_was_killed.seconds
            await seeing
            seen_after = since_it_was_killed.seconds
        print(f"killed, told after {told_after:.2f} s, seen after {seen_after:.2f} s")
        # Of time in which this process had its turns: on a busy machine the browser has to wait as well.
        assert seen_after - told_after < SHOWN_WITHIN_SECONDS

        # Requests found it dead first, or discovery did: the row says which.
        assert await page.evaluate(f"{row('chat-1')}.dataset.state") == told["state"] == "ejected"
        red, green, blue = await page.evaluate(colour(row("chat-1")))
        assert red > green + 80
        assert red > blue + 80
        words = await page.evaluate(f"{row('chat-1')}.innerText")
        assert "ejected" in words
        assert told["reason"].partition(";")[0] in words
        assert "Pod chat-1 of pool chat is ejected" in await page.text("#eye")
        assert [f"{name}-ready" for name in ("chat-0", "chat-2")] == [
            f"{name}-{await page.evaluate(f'{row(name)}.dataset.state')}" for name in ("chat-0", "chat-2")
        ]
        assert (await page.noted()).errors == []
