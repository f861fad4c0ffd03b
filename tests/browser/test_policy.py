"""The page's own policy: its one script and its one style, and no other host. And that the tests would see more."""

from urllib.parse import urlsplit

from tests.browser.driver import IN_CHROMIUM, Browser
from tests.browser.scene import LIVE, Gateway

pytestmark = IN_CHROMIUM


async def test_the_page_keeps_to_its_policy_and_asks_no_other_host(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url) as page:
        await page.until(LIVE)
        answer = await calm.ask()
        await page.until(f"requests.textContent.includes('{answer.headers['x-request-id']}')")
        noted = await page.noted()
    assert (noted.console, noted.forbidden, noted.errors) == ([], [], [])
    assert "default-src 'none'" in page.headers["content-security-policy"]
    asked = [urlsplit(url) for url in noted.requests if not url.startswith("data:")]
    assert {url.netloc for url in asked} == {f"127.0.0.1:{calm.served.ops_port}"}
    assert {url.path for url in asked} == {"/status", "/status/events"}


async def test_what_the_policy_forbids_is_held_up_and_seen(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url) as page:
        await page.evaluate(
            """(() => {
              const script = document.createElement('script');
              script.textContent = 'document.title = "taken"';
              const image = document.createElement('img');
              image.src = 'http://127.0.0.2:9/';
              const words = document.createElement('p');
              words.setAttribute('style', 'color: red');
              document.body.append(script, image, words);
            })()"""
        )
        await page.until("new Promise(done => setTimeout(() => done(true)))")
        noted = await page.noted()
        directives = [found.partition(" ")[0] for found in noted.forbidden]
        assert sorted(directives) == ["img-src", "script-src-elem", "style-src-attr"]
        assert len(noted.console) == 3
        assert "Poolgate" in await page.evaluate("document.title")


async def test_the_ports_other_pages_keep_to_theirs(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url.removesuffix("status") + "docs") as page:
        assert page.status == 200
        assert "/status.json" in await page.text()
        assert await page.violations() == []
        noted = await page.noted()
        assert (noted.console, noted.forbidden, noted.errors) == ([], [], [])
