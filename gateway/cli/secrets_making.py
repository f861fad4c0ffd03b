"""Makes the Secrets that are missing, in the plan's order, wherever they are kept."""

from collections.abc import Callable
from typing import Literal, Protocol

from gateway.cli.secrets_plan import Content, NotMade, Place, Plan, content_for, troubles_in

State = Literal["made", "was there"]


class Store(Protocol):
    """Where Secrets are kept. What is there is never changed."""

    async def read(self, place: Place) -> Content | None:
        """A Secret's entries; None: it does not exist. Raises `NotMade`."""

    async def create(self, place: Place, content: Content) -> bool:
        """Make a Secret whole; False: it exists by now. Raises `NotMade`."""


async def make(plan: Plan, store: Store, tell: Callable[[Place, State], None]) -> None:
    """Make what is missing. `tell` hears of each Secret, in the plan's order.

    Raises `NotMade`. Where what is there does not fit nothing is made at all.
    """
    # Backwards: where the keys file is, all keys were there before it was read.
    there = {place: await store.read(place) for place in reversed(list(plan.places))}
    _check(plan, there)
    for place in plan.places:
        if there[place] is not None:
            tell(place, "was there")
            continue
        content = content_for(place, plan, there)
        if await store.create(place, content):
            there[place] = content
            tell(place, "made")
            continue
        # Somebody was faster, perhaps we: a request may be done though its answer was lost.
        there[place] = await store.read(place)
        if there[place] is None:
            raise NotMade(f"the Secret {place} was there, and is not any more: run this again")
        _check(plan, there)
        tell(place, "made" if there[place] == content else "was there")


def _check(plan: Plan, there: dict[Place, Content | None]) -> None:
    if troubles := list(troubles_in(plan, there)):
        raise NotMade("\n".join(troubles))
