"""Callers that cannot be told: each gets his 401, and costs next to nothing, however many there are."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.core.clock import Clock
from gateway.limits.keys import new_key
from gateway.limits.memory_store import MemoryStore
from gateway.limits.strangers import Strangers
from gateway.parts import THE_USUAL, Parts
from gateway.pipeline.exchange import Head
from tests.fakes import FakeExchange, Hands, Leaps, ScriptedPod, answer
from tests.issuer import AUDIENCE, IssuerServer, signer
from tests.raw import Answer, ask, chat, request
from tests.running import NO_LIMITS, Running, running
from tests.turns import within

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
BURST = 5
PROXIED, OTHER = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "203.0.113.10"}


class Bounded(Strangers):
    """Few bad signatures, and how many there were."""

    def __init__(self, clock: Any, chance: Any) -> None:
        super().__init__(clock, chance, burst=BURST)
        self.bad = 0

    def failed(self, address: str) -> None:
        self.bad += 1
        super().failed(address)


class Unbounded(Bounded):
    """Without the defence."""

    def wait_seconds(self, address: str) -> float:
        return 0.0


@dataclass
class Scene:
    running: Running
    issuer: IssuerServer
    pod: ScriptedPod
    monotonic: Leaps
    strangers: Bounded

    async def ask(self, key: str, headers: dict[str, str] | None = None) -> Answer:
        return await ask(self.running.port, request(chat(), key=key, headers=headers))

    async def forge(self, headers: dict[str, str] | None = None) -> Answer:
        """A token as it must be, but for its signature."""
        return await self.ask(self.issuer.token(signer("ES256")), headers)


@asynccontextmanager
async def scene(tmp_path: Path, kind: type[Bounded] = Bounded, **server: Any) -> AsyncIterator[Scene]:
    made: list[Bounded] = []

    def strangers(clock: Any, chance: Any) -> Strangers:
        made.append(kind(clock, chance))
        return made[0]

    parts: Parts = THE_USUAL._replace(strangers=strangers)
    async with IssuerServer() as server_, ScriptedPod([(GOOD,)]) as pod:
        file = tmp_path / "poolgate.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "server": server,
                    "discovery": {"pods": [{"url": pod.url, "pool": "chat"}]},
                    "auth": {"jwt": {"issuer": server_.url, "audience": AUDIENCE, "tenant_claim": "team"}},
                    "limits": {"default": NO_LIMITS},
                }
            )
        )
        # Time stands still but for a test's leaps: no bad signature is forgiven because the machine is busy.
        monotonic = Leaps(Hands())
        async with running((), file=file, clock=Clock(monotonic), parts=parts) as gateway:
            at = Scene(gateway, server_, pod, monotonic, made[0])
            async with within(10):
                while (await at.ask(server_.token())).status != 200:
                    await asyncio.sleep(0.01)
            yield at


async def test_beyond_a_few_no_bad_signature_is_checked_and_who_is_known_goes_on(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        known, fresh = at.issuer.token(), at.issuer.token(sub="eve")
        assert (await at.ask(known)).status == 200
        for _ in range(BURST):
            assert (await at.forge()).status == 401
        for token in (at.issuer.token(signer("ES256")), fresh):
            refused = await at.ask(token)
            assert (refused.status, refused.error["code"]) == (503, "overloaded")
            assert 1 <= int(refused.headers["retry-after"]) <= 3
        assert at.strangers.bad == BURST
        # Keys and remembered tokens are told without a signature.
        assert (await at.ask(known)).status == 200
        assert (await at.ask(at.running.key)).status == 200
        assert (await at.ask(new_key()[1])).status == 401
        at.monotonic.ahead += int(refused.headers["retry-after"])
        assert (await at.ask(fresh)).status == 200
        assert "127.0.0.1" not in at.running.out.getvalue().decode()


async def test_without_the_bound_every_one_of_them_is_checked(tmp_path: Path) -> None:
    async with scene(tmp_path, Unbounded) as at:
        for _ in range(2 * BURST):
            assert (await at.forge()).status == 401
        assert at.strangers.bad == 2 * BURST


async def test_behind_a_trusted_proxy_each_client_has_his_own_bound(tmp_path: Path) -> None:
    async with scene(tmp_path, trusted_proxies=["127.0.0.0/8"]) as at:
        for _ in range(BURST):
            assert (await at.forge(PROXIED)).status == 401
        assert (await at.forge(PROXIED)).status == 503
        assert (await at.forge({"X-Forwarded-For": "9.9.9.9, 203.0.113.9"})).status == 503
        assert (await at.ask(at.issuer.token(sub="eve"), OTHER)).status == 200
        assert (await at.forge(OTHER)).status == 401


async def test_who_is_no_trusted_proxy_cannot_say_that_he_is_another(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        for number in range(BURST):
            assert (await at.forge({"X-Forwarded-For": f"203.0.113.{number}"})).status == 401
        assert (await at.forge(OTHER)).status == 503


async def test_a_token_whose_own_words_refuse_it_costs_no_signature(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        for _ in range(2 * BURST):
            for claims in ({"exp": 1}, {"aud": "others"}, {"iss": "https://others.example"}):
                assert (await at.ask(at.issuer.token(**claims))).status == 401
        assert at.strangers.bad == 0


# Keys.


class Watched(MemoryStore):
    """What is asked of it, as of Redis."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("take", "settle")):
            type(self).asked += 1
        return super().__getattribute__(name)


async def test_tens_of_thousands_of_wrong_keys_leave_nothing() -> None:
    parts = THE_USUAL._replace(limits=lambda config, replicas, clock, chance: Watched(clock.monotonic))
    async with ScriptedPod([[GOOD]]) as pod, running([pod], parts=parts, limits={}) as gateway:
        for number in range(300):
            assert (await ask(gateway.port, request(chat(), key=f"sk-{number}"))).status == 401
        reception, pipeline = gateway.gateway.reception, gateway.gateway.pipeline

        def knock(count: int) -> None:
            for number in range(count):
                fields = {b"host": b"test", b"authorization": b"Bearer sk-pg_%032d" % number}
                head = Head(b"POST", b"/v1/chat/completions", fields, frozenset(), 1.0)
                visit = reception.receive(head)
                assert visit.error is not None
                exchange = FakeExchange()
                pipeline.refuse(visit, exchange, visit.error)
                assert exchange.status == 401
                if not number % 500:
                    gateway.gateway.journal.flush()
                    gateway.gateway.access_log.sync()
                    gateway.out.seek(0)
                    gateway.out.truncate()

        def series() -> int:
            gateway.gateway.journal.observe()
            return sum(len(family.samples) for family in gateway.gateway.metrics.registry.collect())

        knock(3000)
        before = series()
        gc.collect()
        tracemalloc.start()
        try:
            held = tracemalloc.get_traced_memory()[0]
            knock(20_000)
            gateway.gateway.journal.flush()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - held
        finally:
            tracemalloc.stop()
        # Less than a hundredth of what remembering each would take.
        assert grown < 500_000
        assert series() == before
        assert Watched.asked == 0
        assert not pod.requests
        told = {"model": "other", "operation": "chat", "status": "401", "outcome": "refused"}
        assert gateway.sample("poolgate_requests_total", **told) >= 20_000
