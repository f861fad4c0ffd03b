"""One Chromium for all tests here, and one gateway for those that only look."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.browser import driver
from tests.browser.driver import Browser
from tests.browser.scene import MODEL, Gateway, Settings, gateway, pods

LONG_MODEL = "neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w4a16"
LONG_TEAM = "customer-support-and-search-quality-evaluation"
PODS = (
    ("chat-0", "chat", MODEL),
    ("chat-1", "chat", MODEL),
    ("chat-2", "chat", MODEL),
    ("vllm-llama-3-1-70b-instruct-w4a16-predictor-7c9f6d5b8-x2m4q", "large-and-rarely-asked", LONG_MODEL),
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with driver.browser() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Two pools, one with names as long as they come; `chat-1` killed, a team at its limit, a model without pods.

    Nothing happens there any more.
    """
    async with pods(*PODS) as there:
        settings = Settings.written(
            tmp_path_factory.mktemp("calm"),
            there,
            teams={"acme": {}, LONG_TEAM: {"requests_per_minute": 2}},
            more={"pools": {"chat": {"models": [MODEL, "qwen3-32b"]}}},
        )
        async with gateway(settings) as running:
            there[1].kill()
            while "chat-1" not in await running.pods_that_are("ejected"):
                await running.ask()
            for _ in range(3):
                await running.ask(LONG_TEAM, model=LONG_MODEL)
            yield running
