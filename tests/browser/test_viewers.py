"""Who may look, and how many at once."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.browser.driver import IN_CHROMIUM, Browser, BrowserFailed
from tests.browser.scene import LIVE, Settings, gateway
from tests.raw import RawClient

pytestmark = IN_CHROMIUM

TOKEN = "s3cret-ünïque"
VIEWERS = 16


async def test_a_browser_gives_the_token_as_a_password(browser: Browser, tmp_path: Path) -> None:
    async with gateway(Settings.written(tmp_path, server={"ops_token": TOKEN})) as running:
        refused = await running.served.ops("/status")
        assert refused.status == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        # Where nobody gives it a password, Chromium shows nothing.
        with pytest.raises(BrowserFailed, match="ERR_INVALID_AUTH_CREDENTIALS"):
            async with browser.page(running.url):
                pass
        async with browser.page(running.url, httpCredentials={"username": "me", "password": "wrong"}) as page:
            assert page.status == 401
            assert "Pools and pods" not in await page.text()
        async with browser.page(running.url, httpCredentials={"username": "me", "password": TOKEN}) as page:
            assert page.status == 200
            await page.until(LIVE)
            assert "Pools and pods" in await page.text()


async def test_one_viewer_too_many_is_told_so_and_looks_again_by_itself(browser: Browser, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(gateway(Settings.written(tmp_path)))
        others = [await RawClient.connect(running.served.ops_port) for _ in range(VIEWERS)]
        for other in others:
            stack.callback(other.leave)
            other.send(b"GET /status/events HTTP/1.1\r\nHost: ops\r\n\r\n")
            assert (await other.reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
        page = await stack.enter_async_context(browser.page(running.url))
        await page.until("link.innerText.startsWith('not live')")
        answer = await running.ask()
        await page.until(f"requests.textContent.includes('{answer.headers['x-request-id']}')")
        assert (await page.noted()).loads > 1

        others[0].leave()
        await page.until(LIVE)
