"""A request's coroutine without a task: what waits for a moment goes on as it comes, and all else is as in a task."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.pipeline.errand import Errand, Moment, apart, in_a_task
from tests.turns import within


def moment() -> Moment[str]:
    return Moment(asyncio.get_running_loop())


def begun(coroutine: Coroutine[Any, Any, None]) -> Errand:
    errand = Errand(coroutine, asyncio.get_running_loop())
    errand.go_on()
    return errand


class Notes(list[str]):
    """What a coroutine has come to."""

    async def waiting(self, *moments: Moment[str]) -> None:
        self.append("begun")
        try:
            for each in moments:
                self.append(await each)
            self.append("over")
        except asyncio.CancelledError:
            self.append("cancelled")
            raise
        finally:
            self.append("left")


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_errand_takes_its_first_step_at_once_and_goes_on_in_the_call_that_brings_its_moment() -> None:
    notes, first, second = Notes(), moment(), moment()
    begun(notes.waiting(first, second))
    assert notes == ["begun"]
    first.bring("one")
    assert notes == ["begun", "one"]
    second.bring("two")
    assert notes == ["begun", "one", "two", "over", "left"]


async def test_a_moment_that_is_set_is_heard_of_in_the_next_turn() -> None:
    notes, when = Notes(), moment()
    begun(notes.waiting(when))
    when.set_result("one")
    assert (notes, when.done()) == (["begun"], True)
    await turns(1)
    assert notes == ["begun", "one", "over", "left"]


async def test_what_has_come_before_is_not_waited_for() -> None:
    notes, early = Notes(), moment()
    early.bring("one")
    begun(notes.waiting(early))
    assert notes == ["begun", "one", "over", "left"]


async def test_a_task_may_wait_for_a_moment_as_for_a_future() -> None:
    for say in ("bring", "set_result"):
        when = moment()
        waits = asyncio.create_task(Notes().waiting(when))
        await turns()
        getattr(when, say)("one")
        async with within(1):
            await waits
        assert when.result() == "one"


async def test_a_task_that_waits_for_a_moment_can_be_cancelled() -> None:
    notes, when = Notes(), moment()
    waits = asyncio.create_task(notes.waiting(when))
    await turns()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert notes == ["begun", "cancelled", "left"]
    assert when.done()
    with pytest.raises(asyncio.CancelledError):
        when.result()


async def test_what_waits_for_anything_else_becomes_a_task_and_waits_for_moments_there_as_well() -> None:
    notes, when, other = Notes(), moment(), asyncio.get_running_loop().create_future()

    async def coroutine() -> None:
        notes.append(str(await other))
        async with asyncio.timeout(5):
            notes.append(await when)
        await asyncio.sleep(0)
        notes.append("over")

    begun(coroutine())
    other.set_result("first")
    await turns()
    assert notes == ["first"]
    when.bring("second")
    assert notes == ["first"]
    await turns(5)
    assert notes == ["first", "second", "over"]


async def test_what_needs_a_task_asks_for_one() -> None:
    found: list[object] = []

    async def coroutine() -> None:
        await in_a_task()
        found.append(asyncio.current_task() is not None)
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        except TimeoutError:
            found.append("in time")

    begun(coroutine())
    assert not found
    async with within(5):
        while len(found) < 2:
            await asyncio.sleep(0)
    assert found == [True, "in time"]


class Errands:
    """Of one that runs something apart, and what became of that."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.came: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.unwanted: list[str] = []

    async def run(self) -> None:
        try:
            self.notes.append(await apart(self._what_needs_a_task(), self.unwanted.append))
            await self.notes.waiting()
        except (ValueError, asyncio.CancelledError) as error:
            self.notes.append(type(error).__name__)

    async def _what_needs_a_task(self) -> str:
        async with asyncio.timeout(60):
            return await self.came


async def test_what_runs_apart_needs_a_task_and_who_waits_for_it_none() -> None:
    at = Errands()
    errand = begun(at.run())
    await turns()
    at.came.set_result("came")
    await turns()
    assert at.notes == ["came", "begun", "over", "left"]
    assert errand._task is None
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not at.unwanted


async def test_what_fails_apart_fails_who_waits_for_it() -> None:
    at = Errands()
    begun(at.run())
    await turns()
    at.came.set_exception(ValueError())
    await turns()
    assert at.notes == ["ValueError"]


@pytest.mark.parametrize("in_task", [False, True], ids=["errand", "task"])
@pytest.mark.parametrize("ready", [False, True], ids=["still-runs", "has-come"])
async def test_who_is_cancelled_cancels_what_runs_apart_for_him_and_what_came_is_unwanted(
    ready: bool, in_task: bool
) -> None:
    at = Errands()
    waits = asyncio.create_task(at.run()) if in_task else begun(at.run())
    await turns()
    if ready:
        at.came.set_result("came")
        # The task apart has taken it; who waits has not heard of it yet.
        await turns(1)
    waits.cancel()
    await turns(6)
    assert at.notes == ["CancelledError"]
    assert at.unwanted == (["came"] if ready else [])
    assert at.came.cancelled() is not ready
    assert asyncio.all_tasks() == {asyncio.current_task()}


@asynccontextmanager
async def ended(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[Errand]:
    errand = begun(coroutine)
    yield errand
    errand.cancel()
    await turns()


async def test_an_errand_that_is_cancelled_ends_where_it_waits_in_the_next_turn() -> None:
    notes = Notes()
    errand = begun(notes.waiting(moment()))
    errand.cancel()
    assert notes == ["begun"]
    await turns(1)
    assert notes == ["begun", "cancelled", "left"]


async def test_so_does_one_that_has_become_a_task() -> None:
    notes = Notes()

    async def coroutine() -> None:
        await in_a_task()
        await notes.waiting(moment())

    async with ended(coroutine()):
        await turns()
    assert notes == ["begun", "cancelled", "left"]


async def test_so_does_one_that_becomes_a_task_in_the_very_turn_in_which_it_is_cancelled() -> None:
    notes = Notes()

    async def coroutine() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise
        finally:
            notes.append("left")

    async with ended(coroutine()):
        pass
    assert notes == ["cancelled", "left"]


@pytest.mark.parametrize("said", [("cancel", "bring"), ("cancel", "set_result"), ("set_result", "cancel")])
async def test_what_comes_in_the_turn_in_which_an_errand_is_cancelled_is_for_nobody(said: tuple[str, str]) -> None:
    notes, when = Notes(), moment()
    errand = begun(notes.waiting(when))
    for each in said:
        errand.cancel() if each == "cancel" else getattr(when, each)("one")
    await turns()
    assert notes == ["begun", "cancelled", "left"]


async def test_nor_is_what_a_task_waits_for() -> None:
    notes, other = Notes(), asyncio.get_running_loop().create_future()

    async def coroutine() -> None:
        try:
            notes.append(await other)
        finally:
            notes.append("left")

    errand = begun(coroutine())
    await turns()
    errand.cancel()
    other.set_result("one")
    await turns()
    assert notes == ["left"]


async def test_to_cancel_what_is_over_is_nothing() -> None:
    notes = Notes()
    async with ended(notes.waiting()):
        assert notes == ["begun", "over", "left"]
    assert notes == ["begun", "over", "left"]


async def test_one_that_takes_its_cancellation_for_an_order_to_clear_up_may_still_wait() -> None:
    notes = Notes()

    async def coroutine() -> None:
        try:
            await moment()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            notes.append("cleared up")

    async with ended(coroutine()):
        pass
    await turns()
    assert notes == ["cleared up"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_defect_is_reported_and_stays_with_its_errand(late: bool) -> None:
    loop, told, when = asyncio.get_running_loop(), [], moment()
    loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))

    async def coroutine() -> None:
        if late:
            await when
        raise ZeroDivisionError("a defect")

    begun(coroutine())
    when.bring("now")
    assert told == ["ZeroDivisionError('a defect')"]


async def test_an_errand_leaves_nothing_to_the_collector() -> None:
    def carry_one(way: str) -> None:
        when = moment()
        errand = begun(Notes().waiting(when))
        if way == "cancelled":
            errand._end()
        else:
            when.bring("one")

    for way in ("whole", "cancelled"):
        carry_one(way)
        gc.collect()
        gc.disable()
        try:
            carry_one(way)
            assert gc.collect() == 0
        finally:
            gc.enable()
