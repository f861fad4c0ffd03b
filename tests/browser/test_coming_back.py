"""A page that stays open while its gateway is replaced, as in a rollout."""

import signal
from pathlib import Path

from tests.browser.driver import IN_CHROMIUM, Browser
from tests.browser.scene import LIVE, MODEL, Settings, gateway, pods

pytestmark = IN_CHROMIUM


async def test_the_page_says_that_its_gateway_is_gone_and_comes_back_by_itself(
    browser: Browser, tmp_path: Path
) -> None:
    async with pods(("chat-0", "chat", MODEL)) as there:
        settings = Settings.written(tmp_path, there)
        async with gateway(settings) as before:
            await before.ask()
            settings.keep_ports(before.served)
            async with browser.page(before.url) as page:
                await page.until(LIVE)
                started = await page.evaluate("document.querySelector('#self time').dateTime")

                # A page that is open holds up neither the end of the gateway nor its next start.
                before.served.signal(signal.SIGTERM)
                await before.served.ended_well()
                words = await page.until("document.documentElement.matches('.away') && link.innerText")
                assert "reconnecting" in words
                assert await page.evaluate("document.querySelectorAll('tr[data-pod]').length") == 1

                async with gateway(settings) as after:
                    assert after.url == before.url
                    await page.until(LIVE)
                    assert await page.evaluate("!document.documentElement.matches('.away')")
                    # What it shows is of the new one, and goes on.
                    await page.until(f"document.querySelector('#self time').dateTime > '{started}'")
                    answer = await after.ask()
                    await page.until(f"requests.textContent.includes('{answer.headers['x-request-id']}')")
                assert (await page.noted()).loads == 1


async def test_a_page_of_another_version_loads_itself_anew(browser: Browser, tmp_path: Path) -> None:
    settings = Settings.written(tmp_path)
    async with gateway(settings) as before, browser.page(before.url) as page:
        await page.until(LIVE)
        settings.keep_ports(before.served)
        await page.evaluate("document.documentElement.dataset.page = 'of an older gateway'")
        before.served.signal(signal.SIGTERM)
        await before.served.ended_well()
        async with gateway(settings):
            await page.until(f"document.documentElement.dataset.page !== 'of an older gateway' && {LIVE}")
            assert (await page.noted()).loads == 2
