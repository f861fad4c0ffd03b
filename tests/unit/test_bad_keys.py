"""Whoever guesses keys leaves lines and one count behind: no memory, no series, nothing to look up."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

from gateway.app import Gateway
from gateway.config.reading import load_config
from gateway.core.call import Outcome
from gateway.core.caller import Tenant
from gateway.core.errors import InvalidApiKey
from gateway.limits.keys import KeyEntry, checksum, digest
from gateway.pipeline.exchange import Head

BAD_KEYS = 200_000
FLAT_BLOCKS = 1000
"""Whatever were kept of a key would be an object at least."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with open(os.devnull, "wb") as nowhere:
        config = load_config(None, {}, {"discovery.pods": [{"url": "http://127.0.0.1:1", "pool": "chat"}]})
        made = Gateway(config, [KeyEntry(digest(b"good"), Tenant("a", "acme"))], access_out=nowhere)
        yield made
        made.close()


def bad_key(number: int) -> bytes:
    """A key that nobody has; its checksum is right in one of two."""
    stem = b"sk-pg_%08d_%032d" % (number % 100_000_000, number)
    return stem + (checksum(stem).encode() if number % 2 else b"000000")


def guess(gateway: Gateway, numbers: range) -> None:
    for number in numbers:
        key = bad_key(number)
        fields = {b"x-api-key": key} if number % 3 else {b"authorization": b"Bearer " + key}
        fields[b"x-request-id"] = b"guess-%d" % number
        visit = gateway.reception.receive(Head(b"POST", b"/v1/chat/completions", fields, frozenset(), 0.0))
        assert isinstance(visit.error, InvalidApiKey)
        visit.trail.code, visit.trail.status, visit.trail.outcome = visit.error.code, 401, Outcome.REFUSED
        gateway.journal.add(visit.trail)
        if number % 5000 == 0:
            gateway.access_log.sync()
    gateway.journal.flush()
    gateway.access_log.sync()


def test_bad_keys_leave_neither_memory_nor_series(gateway: Gateway) -> None:
    guess(gateway, range(10_000))
    series = gateway.metrics.exposition().count(b"\n")
    gc.collect()
    blocks = sys.getallocatedblocks()
    guess(gateway, range(10_000, BAD_KEYS))
    gc.collect()
    assert sys.getallocatedblocks() - blocks < FLAT_BLOCKS
    assert gateway.metrics.exposition().count(b"\n") == series
    refused = {"model": "other", "operation": "chat", "status": "401", "outcome": "refused"}
    assert gateway.metrics.registry.get_sample_value("poolgate_requests_total", refused) == BAD_KEYS
    good = Head(b"GET", b"/v1/models", {b"x-api-key": b"good"}, frozenset(), 0.0)
    assert gateway.reception.receive(good).error is None
