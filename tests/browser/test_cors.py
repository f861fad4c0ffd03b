"""A page of another origin, in a real browser, that talks to the gateway directly: as Open WebUI's direct connections
do, and the SDKs where they are told that they run in a browser."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.browser.driver import IN_CHROMIUM, Browser, Page
from tests.browser.scene import MODEL, Settings, gateway, pods

pytestmark = IN_CHROMIUM

HTML = b"<!doctype html><title>another origin</title><link rel=icon href=data:,>"


@asynccontextmanager
async def origin() -> AsyncIterator[str]:
    """A page of its own origin."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (len(HTML), HTML)
        )
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def fetch(url: str, key: str, **body: object) -> str:
    """In JavaScript: what a client in a browser does, with headers that need a preflight, and what it could read."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **body}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-stainless-lang": "js"}
    given = {"method": "POST", "headers": headers, "body": json.dumps(asked)}
    return f"""(async () => {{
      try {{
        const answer = await fetch({json.dumps(url)}, {json.dumps(given)});
        const reader = answer.body.getReader(), decoder = new TextDecoder();
        let text = '', pieces = 0;
        for (;;) {{
          const {{done, value}} = await reader.read();
          if (done) break;
          text += decoder.decode(value, {{stream: true}});
          pieces += 1;
        }}
        return {{
          status: answer.status, text, pieces, id: answer.headers.get('x-request-id'),
          limit: answer.headers.get('x-ratelimit-limit-requests'), date: answer.headers.get('date'),
        }};
      }} catch (error) {{
        return {{refused: String(error)}};
      }}
    }})()"""


async def refused(page: Page, url: str, key: str) -> bool:
    told: dict[str, object] = await page.evaluate(fetch(url, key, stream=True))
    return told == {"refused": "TypeError: Failed to fetch"}


async def test_a_listed_page_reads_a_stream_and_its_headers_and_another_one_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    async with pods(("chat-0", "chat", MODEL)) as there, origin() as listed, origin() as foreign:
        settings = Settings.written(tmp_path, there, server={"cors_origins": [listed]})
        async with gateway(settings) as running:
            url, key = f"http://127.0.0.1:{running.served.port}/v1/chat/completions", settings.keys["acme"]
            await running.ask()
            async with browser.page(listed) as page:
                told = await page.evaluate(fetch(url, key, stream=True))
                assert told["status"] == 200, told
                assert told["text"].endswith("data: [DONE]\n\n")
                assert told["id"]
                assert told["limit"] == "600"
                assert told["date"] is None
                # An error is read as well: else a page could not tell a wrong key from a broken network.
                told = await page.evaluate(fetch(url, "sk-wrong"))
                assert told["status"] == 401
                assert json.loads(told["text"])["error"]["code"] == "invalid_api_key"
            async with browser.page(foreign) as page:
                assert await refused(page, url, key)


async def test_off_no_page_reads_anything(browser: Browser, tmp_path: Path) -> None:
    async with pods(("chat-0", "chat", MODEL)) as there, origin() as foreign:
        settings = Settings.written(tmp_path, there)
        async with gateway(settings) as running, browser.page(foreign) as page:
            url = f"http://127.0.0.1:{running.served.port}/v1/chat/completions"
            assert await refused(page, url, settings.keys["acme"])
