"""The page where no script runs: a terminal's browser, a strict proxy, a reader who has turned it off."""

from tests.browser.driver import IN_CHROMIUM, Browser
from tests.browser.scene import Gateway

pytestmark = IN_CHROMIUM


async def test_without_javascript_all_rows_are_there_and_are_renewed(browser: Browser, calm: Gateway) -> None:
    status = await calm.status()
    async with browser.page(calm.url, javaScriptEnabled=False) as page:
        rows = "[...document.querySelectorAll('tr[data-pod]')].map(row => row.dataset.pod + ' ' + row.dataset.state)"
        assert sorted(await page.evaluate(rows)) == sorted(f"{pod['name']} {pod['state']}" for pod in status["pods"])
        words = await page.text("main")
        for request in status["requests"][:10]:
            assert request["tenant"] in words
        for tenant in status["tenants"]:
            assert tenant["tenant"] in words
        assert "is ejected" in words
        ages = await page.evaluate("[...document.querySelectorAll('time[data-age]')].map(age => age.innerText)")
        assert ages
        assert all(ages)

        answer = await calm.ask()
        await page.until(f"document.body.textContent.includes('{answer.headers['x-request-id']}')")
        noted = await page.noted()
        assert noted.loads > 1
        assert (noted.errors, noted.console) == ([], [])
