"""A request's coroutine without a task, for as long as it waits for nothing but its pod.

A task costs: itself, a turn of the loop before its first step, a future for each thing it waits for, and one more turn
when that has come. Nearly every request waits for its pod and for nothing else. So an `Errand` takes the first step at
once, waits for a `Moment`, and goes on in the very call that brings a whole answer. A coroutine that waits for anything
else (room at a pod, another thread) becomes a task there, and stays one.

Code on such a way may be on either: what needs a task (`asyncio.timeout` looks for it) awaits `in_a_task` first, or
runs `apart`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from inspect import CORO_CLOSED, getcoroutinestate
from types import coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_CANCELLED = object()


class Moment(Generic[T]):
    """Comes once, with a value, for one who waits for it. To a task it is as good as a future."""

    __slots__ = ("_asyncio_future_blocking", "_here", "_loop", "_value", "_waits")
    _value: Any

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._here = False
        self._waits: Errand | tuple[Callable[[Moment[T]], object], Context] | None = None
        """Who waits for it: an errand, or a task, by what it wants to be called and in which context."""

    def done(self) -> bool:
        """Whether it has come, or who waited for it was cancelled."""
        return self._here

    def result(self) -> T:
        """What it brought.

        Raises `CancelledError` if who waited for it was cancelled.
        """
        if self._value is _CANCELLED:
            raise asyncio.CancelledError
        value: T = self._value
        return value

    def set_result(self, value: T) -> None:
        """It has come. Who waits goes on in the next turn of the loop."""
        self._come(value)

    def bring(self, value: T) -> None:
        """It has come. An errand goes on before this returns: call it last."""
        errand = self._waits
        if type(errand) is Errand:
            self._value = value
            self._here = True
            self._waits = None
            errand.go_on()
        else:
            self._come(value)

    def _come(self, value: object) -> None:
        self._value = value
        self._here = True
        self._wake()

    def _wake(self) -> None:
        waits, self._waits = self._waits, None
        if isinstance(waits, Errand):
            self._loop.call_soon(waits.go_on)
        elif waits is not None:
            told, context = waits
            self._loop.call_soon(told, self, context=context)

    def __await__(self) -> Generator[Any, None, T]:
        if not self._here:
            self._asyncio_future_blocking = True
            yield self
        value: T = self._value
        if value is _CANCELLED:
            raise asyncio.CancelledError
        return value

    # What a task asks of a future.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Where it is waited for."""
        return self._loop

    def add_done_callback(self, told: "Callable[[Moment[T]], object]", *, context: Context) -> None:
        """Call this in a turn of the loop after it has come."""
        self._waits = (told, context)
        if self._here:
            self._wake()

    def cancel(self, msg: object = None) -> bool:
        """Who waits for it is cancelled. False: it has come."""
        if self._here:
            return False
        self._come(_CANCELLED)
        return True


class Errand:
    """Carries one coroutine to its end. It sees to its own errors: what it raises is a defect, and logged."""

    __slots__ = ("_cancelled", "_coroutine", "_loop", "_task")

    def __init__(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def go_on(self) -> None:
        """Take the first step, or the next one when its moment has come."""
        if self._cancelled:
            # It was ended meanwhile, or is about to be: what comes is for nobody, and where it waits it is told so.
            return
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._failed(error)
            return
        if type(waits_for) is Moment:
            waits_for._waits = self
        else:
            self._become_a_task(waits_for)

    def cancel(self) -> None:
        """End it in the next turn of the loop, wherever it waits: there a `CancelledError` is raised.

        Not called while it runs.
        """
        self._cancelled = True
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        if self._task is not None:
            # It became one before it was cancelled, so the first step is done: without that it would never go on.
            self._task.cancel()
        elif getcoroutinestate(self._coroutine) != CORO_CLOSED:
            try:
                waits_for = self._coroutine.throw(asyncio.CancelledError())
            except (StopIteration, asyncio.CancelledError):
                return
            except Exception as error:
                self._failed(error)
                return
            self._become_a_task(waits_for)

    def _become_a_task(self, waits_for: object) -> None:
        self._task = self._loop.create_task(_rest_of(self._coroutine, waits_for))

    def _failed(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a request's errand failed", "exception": error})


@coroutine
def in_a_task() -> Generator[None, None, None]:
    """Returns in a task."""
    yield


async def apart(begun: Coroutine[Any, Any, T], unwanted: Callable[[T], None]) -> T:
    """What this coroutine comes to, in a task of its own: who waits for it here needs none, and a stream that began so
    holds none for as long as it lasts.

    Cancelled, it cancels that task; what comes of it all the same is `unwanted`.
    """
    loop = asyncio.get_running_loop()
    over: Moment[None] = Moment(loop)

    def tell(_: object) -> None:
        if not over.done():
            over.bring(None)

    def put_away(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            unwanted(task.result())

    task = loop.create_task(begun)
    task.add_done_callback(tell)
    try:
        await over
    except BaseException:
        task.cancel()
        task.add_done_callback(put_away)
        raise
    return task.result()


async def _rest_of(begun: Coroutine[Any, Any, None], waits_for: object) -> None:
    """A coroutine that was begun without a task, and that waits for this."""
    await _going_on(begun, waits_for)


@coroutine
def _going_on(begun: Coroutine[Any, Any, None], waits_for: object) -> Generator[Any, None, None]:
    while True:
        try:
            yield waits_for
        except BaseException as error:  # whatever it is, it is raised where the coroutine waits
            raised: BaseException | None = error
        else:
            raised = None
        try:
            waits_for = begun.send(None) if raised is None else begun.throw(raised)
        except StopIteration:
            return
        finally:
            # It holds this frame.
            raised = None
