"""One Chromium for all tests here, and one gateway for those that only look."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.browser import driver
from tests.browser.driver import Browser
from tests.browser.scene import MODEL, OTHER_MODEL, Gateway, Settings, gateway, pods

PODS = (
    ("chat-0", "chat", MODEL),
    ("chat-1", "chat", MODEL),
    ("chat-2", "chat", MODEL),
    ("small-0", "small", OTHER_MODEL),
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with driver.browser() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Two pools, `chat-1` killed, the team `search` at its limit, a model without pods: some of all there is to show.

    Nothing happens there any more.
    """
    async with pods(*PODS) as there:
        settings = Settings.written(
            tmp_path_factory.mktemp("calm"),
            there,
            teams={"acme": {}, "search": {"requests_per_minute": 2}},
            more={"pools": {"chat": {"models": [MODEL, "qwen3-32b"]}, "small": {"models": [OTHER_MODEL]}}},
        )
        async with gateway(settings) as running:
            there[1].kill()
            while "chat-1" not in await running.pods_that_are("ejected"):
                await running.ask()
            for _ in range(3):
                await running.ask("search", model=OTHER_MODEL)
            yield running
