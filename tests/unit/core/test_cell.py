"""A value with one writer and many readers: replaced whole, and whoever waits learns of it."""

import asyncio

from gateway.core.cell import Cell


async def waiting(cell: Cell[int], count: int) -> list[asyncio.Task[int]]:
    """Tasks that wait for the next change, all begun."""
    tasks = [asyncio.create_task(cell.wait_changed()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_a_reader_sees_the_last_value_set_without_waiting() -> None:
    cell = Cell(1)
    assert cell.value == 1
    cell.set(2)
    assert cell.value == 2


async def test_everyone_who_waits_wakes_with_the_new_value() -> None:
    cell = Cell(1)
    tasks = await waiting(cell, 3)
    assert not any(task.done() for task in tasks)
    cell.set(2)
    assert await asyncio.wait_for(asyncio.gather(*tasks), 20) == [2, 2, 2]


async def test_a_change_to_an_equal_value_wakes_as_well() -> None:
    cell = Cell(1)
    tasks = await waiting(cell, 1)
    cell.set(1)
    assert await asyncio.wait_for(tasks[0], 20) == 1


async def test_a_change_before_the_wait_does_not_end_it() -> None:
    cell = Cell(1)
    cell.set(2)
    (task,) = await waiting(cell, 1)
    assert not task.done()
    cell.set(3)
    assert await asyncio.wait_for(task, 20) == 3


async def test_a_waiter_gets_the_value_in_force_when_it_wakes() -> None:
    cell = Cell(1)
    (task,) = await waiting(cell, 1)
    cell.set(2)
    cell.set(3)
    assert await asyncio.wait_for(task, 20) == 3


async def test_each_wait_is_for_one_change() -> None:
    cell = Cell(1)
    for number in range(2, 5):
        (task,) = await waiting(cell, 1)
        cell.set(number)
        assert await asyncio.wait_for(task, 20) == number


async def test_a_waiter_that_gives_up_takes_nobody_with_it() -> None:
    cell = Cell(1)
    first, second = await waiting(cell, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not second.done()
    cell.set(2)
    assert await asyncio.wait_for(second, 20) == 2
