"""A name leads to the models that its alias says, in order, and in the proportions of their weights."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.naming import Alias, Target, targets

SPLIT = Alias("split", (Target("a", 90), Target("b", 10)), ("c", "a"))
ALIASES = {
    "plain": Alias("plain", (Target("a"),)),
    "split": SPLIT,
    "a": Alias("a", (Target("a"),), ("b", "split")),
}


def test_a_name_that_is_no_alias_is_a_model_s() -> None:
    assert targets(ALIASES, "b", 0.5) == ("b",)
    assert targets({}, "", 0.0) == ("",)


def test_an_alias_is_followed_once() -> None:
    """`plain` leads to the model `a`, though there is an alias of that name; `a` falls back on a model `split`."""
    assert targets(ALIASES, "plain", 0.5) == ("a",)
    assert targets(ALIASES, "a", 0.5) == ("a", "b", "split")


@pytest.mark.parametrize(("draw", "models"), [(0.0, ("a", "c")), (0.8999, ("a", "c")), (0.9, ("b", "c", "a"))])
def test_the_draw_chooses_the_first_and_the_fallbacks_follow_without_repeating_it(
    draw: float, models: tuple[str, ...]
) -> None:
    assert targets(ALIASES, "split", draw) == models


def test_an_alias_knows_every_model_it_may_lead_to() -> None:
    assert SPLIT.models == ("a", "b", "c")


weights = st.floats(1e-6, 1e6)


@given(st.lists(weights, min_size=1, max_size=16), st.floats(0, 1, exclude_max=True))
def test_whatever_the_weights_and_the_draw_one_of_the_models_is_chosen(shares: list[float], draw: float) -> None:
    alias = Alias("x", tuple(Target(str(n), share) for n, share in enumerate(shares)), ("f",))
    first, *rest = targets({"x": alias}, "x", draw)
    assert first in {target.model for target in alias.to}
    assert rest == ["f"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_each_model_gets_its_share_of_evenly_spread_draws(shares: list[int]) -> None:
    alias = Alias("x", tuple(Target(str(n), share) for n, share in enumerate(shares)))
    total = sum(shares)
    # From the middle of each step: an exact edge is one model's or the other's, by how its fraction is rounded.
    found = Counter(targets({"x": alias}, "x", (step + 0.5) / total)[0] for step in range(total))
    assert found == {str(n): share for n, share in enumerate(shares)}
