"""Names come from outside: pods, pools, models, tenants, what stands in a file. None of them is ever markup."""

from pathlib import Path

from tests.browser.driver import IN_CHROMIUM, Browser, Page
from tests.browser.scene import LIVE, Settings, gateway, pods

pytestmark = IN_CHROMIUM

POD, OTHER_POD = "<img src=x onerror=alert(1)>", "\"'><img src=x onerror=alert(2)>"
POOL = "<svg onload=alert(3)>"
MODEL = "<b onclick=alert(4)>model</b>&amp;"
TEAM = "</td><script>alert(5)</script>"
KEY = "<iframe src=javascript:alert(6)>"
MADE = "img, iframe, b, script + script, [onload], [onerror], [onclick]"
"""What would come of them."""


async def test_names_like_html_stay_text(browser: Browser, tmp_path: Path) -> None:
    async with pods((POD, POOL, MODEL), (OTHER_POD, POOL, MODEL)) as there:
        settings = Settings.written(tmp_path, there, teams={TEAM: {}})
        async with gateway(settings) as running:
            await running.ask(TEAM, model=MODEL)
            async with browser.page(running.url) as page:
                # In the page as it is first written,
                await page.until(LIVE)
                names = await page.evaluate(
                    "[...document.querySelectorAll('tr[data-pod]')].map(row => row.dataset.pod)"
                )
                assert sorted(names) == sorted([POD, OTHER_POD])
                await all_are_text(page, POD, OTHER_POD, POOL, MODEL, TEAM)

                # and in what is sent to it later.
                there[1].kill()
                settings.write(settings.read() | {KEY: 1})
                async with running.asked(TEAM, callers=2, model=MODEL):
                    await page.until("eye.innerText.includes('is ejected') && eye.innerText.includes('not in force')")
                answer = await running.ask(TEAM, model=KEY)
                assert answer.status == 404
                await page.until(f"requests.textContent.includes('{answer.headers['x-request-id']}')")
                await all_are_text(page, POD, OTHER_POD, POOL, MODEL, TEAM, KEY)
                noted = await page.noted()
                assert (noted.errors, noted.forbidden, noted.dialogs) == ([], [], [])


async def all_are_text(page: Page, *names: str) -> None:
    """The names are read as they are, and nothing has come of them."""
    words = await page.evaluate("document.body.textContent")
    for name in names:
        assert name in words
    assert await page.evaluate(f"document.querySelectorAll('{MADE}').length") == 0
