"""The load and the faults side by side."""

import asyncio

import pytest

from loadtest.load.record import Record
from loadtest.stand.run import side_by_side


class Played:
    """Faults and two loads, which end when a test says so."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()
        self.loaded: list[asyncio.Future[list[Record]]] = [loop.create_future() for _ in range(2)]
        self.faults = asyncio.create_task(self._faults())
        self.loads = [asyncio.create_task(self._load(each)) for each in self.loaded]
        self.came = asyncio.create_task(side_by_side(self.faults, self.loads))

    async def _faults(self) -> None:
        await self.over

    async def _load(self, loaded: asyncio.Future[list[Record]]) -> list[Record]:
        return await loaded

    def end_loads(self) -> None:
        for each in self.loaded:
            each.set_result([])

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_faults_that_are_over_first_were_in_time() -> None:
    at = Played()
    at.over.set_result(None)
    await at.turn()
    at.end_loads()
    assert await at.came == (True, [[], []])


async def test_faults_that_outlast_the_load_were_not_and_come_to_their_end_all_the_same() -> None:
    at = Played()
    at.end_loads()
    await at.turn()
    assert not at.came.done()
    at.over.set_result(None)
    assert await at.came == (False, [[], []])


@pytest.mark.parametrize("which", ["faults", "load"])
async def test_what_fails_of_one_ends_the_other(which: str) -> None:
    at = Played()
    failing = at.over if which == "faults" else at.loaded[1]
    failing.set_exception(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        await at.came
    assert at.loads[0].cancelled()
    assert at.faults.done()
