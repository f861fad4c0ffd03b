"""An issuer's keys are asked for at the right times; what is known of them holds while it cannot be asked."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.limits.issuer import Issuer, Pace, Unread
from gateway.limits.jwt import KeySet, keys_of
from tests.issuer import set_of, signer
from tests.jumping import JumpingLoop

ONE = keys_of(set_of(signer()))
TWO = keys_of(set_of(signer(), signer("RS256", "two")))
REFRESH = Pace().refresh


class Scene:
    """An issuer that says `answer` after so many seconds, and when it was asked: seconds since the beginning."""

    def __init__(self, chance: float = 0.5) -> None:
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self.answer: KeySet | Exception = ONE
        self.seconds = 0.0
        self.asked: list[float] = []
        self.issuer = Issuer(self._ask, clock=loop.time, chance=lambda: chance)
        self.task = loop.create_task(self.issuer.run())

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def _ask(self) -> KeySet:
        self.asked.append(round(self.now, 3))
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def until(self, seconds: float) -> None:
        """Let it be so late."""
        await asyncio.sleep(seconds - self.now)


def run(scene: Callable[[Scene], Coroutine[Any, Any, None]], chance: float = 0.5) -> None:
    async def main() -> None:
        played = Scene(chance)
        await scene(played)
        assert not played.task.done()
        played.task.cancel()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


def test_keys_are_asked_for_at_once_and_every_ten_minutes() -> None:
    async def plays(scene: Scene) -> None:
        assert scene.issuer.keys.value is None
        assert await scene.issuer.keys.wait_changed() is ONE
        scene.answer = TWO
        assert await scene.issuer.keys.wait_changed() is TWO
        await scene.until(4.5 * REFRESH)
        assert scene.asked == [0.0, REFRESH, 2 * REFRESH, 3 * REFRESH, 4 * REFRESH]

    run(plays)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.8), (1.0, 1.2)])
def test_replicas_do_not_ask_at_the_same_time(chance: float, share: float) -> None:
    async def plays(scene: Scene) -> None:
        await scene.until(1.5 * REFRESH)
        assert scene.asked == [0.0, share * REFRESH]

    run(plays, chance)


def test_after_a_failure_it_is_asked_again_soon_and_then_less_and_less_often() -> None:
    async def plays(scene: Scene) -> None:
        scene.answer = Unread("closed")
        await scene.until(250)
        assert scene.asked == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]
        scene.answer = ONE
        await scene.until(310)
        assert scene.asked[-1] == 303.0
        assert scene.issuer.keys.value is ONE
        scene.answer = Unread("closed again")
        await scene.until(303 + REFRESH + 2)
        assert scene.asked[-2:] == [303.0 + REFRESH, 304.0 + REFRESH]

    run(plays)


def test_what_cannot_be_read_again_holds_for_a_day_and_no_longer() -> None:
    async def plays(scene: Scene) -> None:
        await scene.until(10 * REFRESH + 1)
        scene.answer = Unread("closed")
        await scene.until(10 * REFRESH + 86_400)
        assert scene.issuer.keys.value is ONE
        await scene.until(10 * REFRESH + 86_400 + 120)
        assert scene.issuer.keys.value is None
        scene.answer = ONE
        await scene.until(10 * REFRESH + 86_400 + 240)
        assert scene.issuer.keys.value is ONE

    run(plays)


def test_an_unknown_key_is_asked_for_soon_but_not_more_than_every_ten_seconds() -> None:
    async def plays(scene: Scene) -> None:
        await scene.until(2)
        scene.issuer.ask_soon()
        await scene.until(9.9)
        assert scene.asked == [0.0]
        await scene.until(100)
        assert scene.asked == [0.0, 10.0]
        scene.issuer.ask_soon()
        await scene.until(101)
        assert scene.asked == [0.0, 10.0, 100.0]
        for _ in range(100):
            scene.issuer.ask_soon()
            await asyncio.sleep(0.5)
        assert scene.asked[3:] == [110.0, 120.0, 130.0, 140.0, 150.0]

    run(plays)


def test_who_asks_while_an_answer_is_under_way_is_heard_after_it() -> None:
    """The answer may be older than the key."""

    async def plays(scene: Scene) -> None:
        scene.seconds = 3
        await scene.until(1)
        scene.issuer.ask_soon()
        await scene.until(60)
        assert scene.asked == [0.0, 10.0]

    run(plays)


def test_a_question_that_is_due_is_not_put_off_because_somebody_wants_it_soon() -> None:
    async def plays(scene: Scene) -> None:
        scene.answer = Unread("closed")
        await scene.until(3.5)
        scene.issuer.ask_soon()
        await scene.until(4)
        assert scene.issuer.retry_after_seconds() == pytest.approx(3 + 1.5)
        await scene.until(8)
        assert scene.asked == [0.0, 1.0, 3.0, 7.0]

    run(plays)


def test_callers_are_told_to_come_again_after_the_next_question() -> None:
    async def plays(scene: Scene) -> None:
        scene.answer = Unread("closed")
        assert scene.issuer.retry_after_seconds() == 1.5
        await scene.until(32)
        # The next one is at 63; or, if somebody wants it, ten seconds after the last one.
        assert scene.issuer.retry_after_seconds() == pytest.approx(31 + 1.5)
        scene.issuer.ask_soon()
        await scene.until(33)
        assert scene.issuer.retry_after_seconds() == pytest.approx(8 + 1.5)
        await scene.until(41.5)
        assert scene.asked[-1] == 41.0

    run(plays)


def test_keys_that_are_the_same_are_not_replaced() -> None:
    """Whoever holds tokens need not look through them."""

    async def plays(scene: Scene) -> None:
        await scene.until(1)
        scene.answer = keys_of(set_of(signer()))
        await scene.until(2 * REFRESH)
        assert scene.issuer.keys.value is ONE

    run(plays)


def test_an_issuer_that_lists_no_key_is_believed() -> None:
    async def plays(scene: Scene) -> None:
        await scene.until(1)
        scene.answer = KeySet()
        await scene.until(REFRESH + 1)
        assert scene.issuer.keys.value is scene.answer

    run(plays)


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def plays(scene: Scene) -> None:
        await scene.until(REFRESH + 1)
        scene.answer = Unread("closed")
        await scene.until(3 * REFRESH)
        scene.answer = ONE
        await scene.until(4 * REFRESH)
        scene.answer = TWO
        await scene.until(6 * REFRESH)
        scene.answer = Unread("closed")
        await scene.until(6 * REFRESH + 2 * 86_400)

    caplog.set_level(logging.INFO, "poolgate.issuer")
    run(plays)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "the issuer's keys are read: 1 can be used"),
        ("WARNING", "the issuer's keys cannot be read, until then those that are known stay in force: closed"),
        ("INFO", "the issuer's keys are read: 1 can be used"),
        ("INFO", "the issuer's keys are read: 2 can be used"),
        ("WARNING", "the issuer's keys cannot be read, until then those that are known stay in force: closed"),
        ("ERROR", "the issuer's keys could not be read for too long: no token is taken until they are"),
    ]


def test_that_there_is_nothing_to_go_on_with_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def plays(scene: Scene) -> None:
        scene.answer = Unread("closed")
        await scene.until(100)

    run(plays)
    assert [record.getMessage() for record in caplog.records] == [
        "the issuer's keys cannot be read, until then no token is taken: closed"
    ]


def test_a_defect_in_asking_is_a_failure_like_others_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def plays(scene: Scene) -> None:
        scene.answer = RuntimeError("a defect")
        await scene.until(5)
        assert scene.asked == [0.0, 1.0, 3.0]
        scene.answer = ONE
        assert await scene.issuer.keys.wait_changed() is ONE

    run(plays)
    assert "RuntimeError: a defect" in caplog.text
