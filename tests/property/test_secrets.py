"""Runs that die anywhere, and runs at the same time in any order, all end with one set of secrets that fit together."""

import asyncio
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.secrets_making import State, make
from gateway.cli.secrets_plan import Content, NotMade, Place, Plan, plan_of, troubles_in
from gateway.config.secrets import load_secrets
from tests.unit.config.test_secrets import SHIPPED

PLAN = plan_of(load_secrets(SHIPPED), namespaced=True)


class Died(Exception):
    """The process is gone."""


class Shelf:
    """Secrets in memory. Before and after each step others may come first, and one caller may die."""

    def __init__(self, held: dict[Place, Content], rng: Random, steps: int) -> None:
        self.held = held
        self._rng = rng
        self._steps = steps

    async def read(self, place: Place) -> Content | None:
        await self._step()
        found = self.held.get(place)
        await self._step()
        return found

    async def create(self, place: Place, content: Content) -> bool:
        await self._step()
        made = place not in self.held
        if made:
            self.held[place] = content
        await self._step()
        return made

    async def _step(self) -> None:
        self._steps -= 1
        if not self._steps:
            raise Died
        for _ in range(self._rng.randrange(6)):
            await asyncio.sleep(0)


async def run(plan: Plan, shelf: Shelf) -> Mapping[Place, State]:
    told: dict[Place, State] = {}
    await make(plan, shelf, told.__setitem__)
    return told


@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 40), max_size=4), st.integers(1, 4))
def test_whoever_comes_when_and_dies_where_all_end_alike(rng: Random, deaths: list[int], whole: int) -> None:
    held: dict[Place, Content] = {}

    async def all_of_them() -> list[object]:
        shelves = [*(Shelf(held, rng, steps) for steps in deaths), *(Shelf(held, rng, 0) for _ in range(whole))]
        return await asyncio.gather(*(run(PLAN, shelf) for shelf in shelves), return_exceptions=True)

    ended = asyncio.run(all_of_them())
    assert all(isinstance(each, dict | Died) for each in ended), ended
    assert set(held) == set(PLAN.places)
    assert list(troubles_in(PLAN, held)) == []
    before = dict(held)
    told = asyncio.run(run(PLAN, Shelf(held, rng, 0)))
    assert held == before
    assert set(told.values()) == {"was there"}


class Overtaken(Shelf):
    """After so many reads somebody else does all of it."""

    def __init__(self, held: dict[Place, Content], reads: int) -> None:
        super().__init__(held, Random(1), 0)
        self._reads = reads

    async def read(self, place: Place) -> Content | None:
        if not self._reads:
            await run(PLAN, Shelf(self.held, Random(2), 0))
        self._reads -= 1
        return await super().read(place)


@pytest.mark.parametrize("reads", range(len(PLAN.places)))
async def test_who_is_overtaken_while_it_reads_does_not_take_the_keys_for_lost(reads: int) -> None:
    held: dict[Place, Content] = {}
    assert set(await run(PLAN, Overtaken(held, reads))) == set(PLAN.places)
    assert list(troubles_in(PLAN, held)) == []


@given(st.randoms(use_true_random=False), st.sets(st.sampled_from(list(PLAN.places))))
def test_what_is_there_stays_and_either_the_rest_is_made_or_nothing_is(rng: Random, there: set[Place]) -> None:
    whole: dict[Place, Content] = {}
    asyncio.run(run(PLAN, Shelf(whole, rng, 0)))
    held = {place: whole[place] for place in there}
    try:
        asyncio.run(run(PLAN, Shelf(held, rng, 0)))
    except NotMade:
        # The keys file is there, and a key is not.
        assert held == {place: whole[place] for place in there}
        assert Place("poolgate", "poolgate-keys") in there
    else:
        assert list(troubles_in(PLAN, held)) == []
        assert {place: held[place] for place in there} == {place: whole[place] for place in there}
