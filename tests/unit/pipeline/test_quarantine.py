"""Which requests are not sent any more, and for how long."""

import subprocess
import sys

import pytest

from gateway.core.caller import Tenant
from gateway.pipeline.intake import call_of, look
from gateway.pipeline.operations import CHAT
from gateway.pipeline.quarantine import Quarantine, mark_of

PILL = mark_of("key", [b"pill"])
T = 1000.0


def held(quarantine: Quarantine, mark: int = PILL, now: float = T) -> bool:
    return quarantine.holds(mark, now)


class TestDeaths:
    def test_a_request_in_flight_at_two_pods_deaths_is_held(self) -> None:
        quarantine = Quarantine()
        assert not held(quarantine)
        quarantine.died(PILL, "a", T)
        assert not held(quarantine)
        quarantine.died(PILL, "b", T)
        assert held(quarantine)

    def test_one_death_that_is_told_often_is_one_death(self) -> None:
        """The same body was sent many times, and each of them was there."""
        quarantine = Quarantine()
        for number in range(20):
            quarantine.died(PILL, "a", T + number * 0.25)
        assert not held(quarantine, now=T + 5.0)

    def test_a_pod_that_came_back_and_died_of_it_again_is_a_second_death(self) -> None:
        """A container restarts in its pod, which keeps its uid."""
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        quarantine.died(PILL, "a", T + 4.9)
        assert not held(quarantine, now=T + 5.0)
        quarantine.died(PILL, "a", T + 5.0)
        assert held(quarantine, now=T + 5.0)

    def test_each_request_has_deaths_of_its_own(self) -> None:
        quarantine = Quarantine()
        other = mark_of("key", [b"other"])
        quarantine.died(PILL, "a", T)
        quarantine.died(other, "b", T)
        assert not held(quarantine)
        assert not held(quarantine, other)

    def test_who_was_answered_in_between_was_there_by_chance(self) -> None:
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        quarantine.answered(PILL)
        quarantine.answered(PILL)
        quarantine.died(PILL, "b", T)
        assert not held(quarantine)
        quarantine.died(PILL, "c", T)
        assert held(quarantine)


class TestBounds:
    def test_a_request_is_held_for_ten_minutes_after_its_last_death(self) -> None:
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        quarantine.died(PILL, "b", T + 100.0)
        assert held(quarantine, now=T + 100.0 + 600.0 - 0.1)
        assert not held(quarantine, now=T + 100.0 + 600.0)
        assert not quarantine

    def test_a_death_long_ago_is_forgotten(self) -> None:
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        quarantine.died(PILL, "b", T + 600.0)
        assert not held(quarantine, now=T + 600.0)
        quarantine.died(PILL, "c", T + 1200.0 - 0.1)
        assert held(quarantine, now=T + 1200.0 - 0.1)

    def test_what_is_old_goes_whoever_is_asked_about(self) -> None:
        quarantine = Quarantine()
        for number in range(3):
            quarantine.died(number, "a", T + number)
        assert not held(quarantine, 99, now=T + 600.0 + 1)
        assert [*quarantine.deaths] == [2]

    def test_a_second_death_makes_a_request_the_youngest(self) -> None:
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        quarantine.died(1, "a", T + 1.0)
        quarantine.died(PILL, "b", T + 2.0)
        assert held(quarantine, now=T + 600.0 + 1.5)
        assert [*quarantine.deaths] == [PILL]

    def test_no_more_than_so_many_are_kept_and_the_oldest_goes_first(self) -> None:
        quarantine = Quarantine()
        quarantine.died(PILL, "a", T)
        for number in range(9_999):
            quarantine.died(number, "a", T)
        assert len(quarantine.deaths) == 10_000
        assert PILL in quarantine.deaths
        quarantine.died(-5, "a", T)
        assert len(quarantine.deaths) == 10_000
        assert PILL not in quarantine.deaths
        assert 0 in quarantine.deaths

    def test_it_costs_nothing_while_it_knows_of_no_death(self) -> None:
        quarantine = Quarantine()
        assert not quarantine
        quarantine.died(PILL, "a", T)
        assert quarantine
        quarantine.answered(PILL)
        assert not quarantine


class TestMarks:
    def test_the_same_body_of_the_same_caller_has_the_same_mark(self) -> None:
        tenant = Tenant("key", "team")
        for body in (b'{"model":"m","messages":[]}', b'{"model":"m","messages":[],"stream":true}'):
            one, other = (call_of(look(bytes(bytearray(body)), CHAT), CHAT, tenant) for _ in range(2))
            assert one.body is not other.body
            assert mark_of("key", one.body) == mark_of("key", other.body)

    @pytest.mark.parametrize("whole", [b'{"model":"m"}', memoryview(b'{"model":"m"}')])
    def test_a_body_is_told_by_its_bytes(self, whole: bytes | memoryview) -> None:
        assert mark_of("key", [whole]) == mark_of("key", [b'{"model":"m"}'])
        assert mark_of("key", [whole]) != mark_of("key", [b'{"model":"n"}'])

    def test_another_caller_has_another_mark(self) -> None:
        assert mark_of("key", [b"pill"]) != mark_of("other", [b"pill"])

    def test_no_caller_can_know_what_its_body_makes(self) -> None:
        """A mark is made with a secret of the process: bodies cannot be found that share one."""
        code = "from gateway.pipeline.quarantine import mark_of; print(mark_of('key', [b'pill']))"
        seen = {subprocess.check_output([sys.executable, "-c", code], env={}) for _ in range(2)}
        assert len(seen) == 2
