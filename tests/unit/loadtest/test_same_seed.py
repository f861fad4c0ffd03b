"""The same seed gives the same bytes, whatever is asked."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.simulator import PodSettings, SimulatedPod
from tests.unit.loadtest.talking import ask, post

_bodies = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=100)}),
            min_size=1,
            max_size=3,
        ),
        "stream": st.booleans(),
    },
    optional={
        "max_tokens": st.integers(1, 30),
        "n": st.integers(1, 3),
        "stop": st.sampled_from([",", [" the", "a"]]),
    },
)


async def _answers(seed: int, bodies: list[dict[str, object]]) -> list[bytes]:
    async with SimulatedPod(PodSettings(model="m", seed=seed), wall_clock=lambda: 1795458853.0) as pod:
        return [(await ask(pod, post(body))).raw for body in bodies]


@settings(max_examples=25)
@given(st.integers(0, 5), st.lists(_bodies, min_size=1, max_size=3))
def test_the_same_seed_and_clock_give_the_same_bytes(seed: int, bodies: list[dict[str, object]]) -> None:
    first = asyncio.run(_answers(seed, bodies))

    assert asyncio.run(_answers(seed, bodies)) == first
    assert all(b" 200 OK\r\n" in answer for answer in first)
    assert asyncio.run(_answers(seed + 1, bodies)) != first
