"""A page changes under its reader's eyes; what the reader has opened stays open, and the focus stays where it is."""

from tests.browser.driver import IN_CHROMIUM, Browser
from tests.browser.scene import LIVE, Gateway

pytestmark = IN_CHROMIUM


async def test_what_a_reader_has_opened_and_focused_stays(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url) as page:
        await page.until(LIVE)
        # By keyboard, as a reader without a mouse does it.
        for _ in range(100):
            await page.press("Tab")
            if await page.evaluate("document.activeElement.matches('#requests summary')"):
                break
        focused = await page.evaluate("document.activeElement.id")
        assert focused
        await page.press("Enter")
        opened = "document.activeElement.id + ' ' + document.activeElement.parentElement.open"
        assert await page.evaluate(opened) == f"{focused} true"

        answers = [await calm.ask() for _ in range(3)]
        await page.until(f"requests.textContent.includes('{answers[-1].headers['x-request-id']}')")
        assert await page.evaluate(opened) == f"{focused} true"
