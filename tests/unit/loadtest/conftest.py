"""What holds for every test here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

# The command line runs on uvloop, tests elsewhere on asyncio's own loop: what touches sockets is tried on both.
ON_BOTH_LOOPS = {"test_client.py", "test_connection.py", "test_player.py", "test_pod.py", "test_sabotage.py"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ON_BOTH_LOOPS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def no_callback_raised(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio only logs what a callback or protocol raises; here that is a failure."""
    yield
    raised = [record for record in caplog.get_records("call") if record.name == "asyncio"]
    assert not [record.getMessage() for record in raised if record.levelno >= logging.ERROR]
