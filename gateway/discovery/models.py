"""Asks pods for their models, in parallel, again and again.

A pod serves what its own `/v1/models` lists, LoRA adapters included. A pod that has answered once keeps its models
while it does not answer: whether it still takes requests is seen by the requests themselves.
"""

import asyncio
import json
from collections.abc import Mapping
from types import MappingProxyType

from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Model, Pod, Pool
from gateway.core.ports import Fetch, FetchFailed
from gateway.discovery.static import fleet_of

ASK_SECONDS = 10.0
ASK_AGAIN_SECONDS = 0.5
"""Until a pod has answered for the first time."""
TIMEOUT_SECONDS = 5.0
MAX_MODELS = 64
MAX_NAME_CHARACTERS = 256


def models_of(body: bytes) -> tuple[Model, ...]:
    """The models of a `/v1/models` answer; names that are empty, over-long or not printable are left out.

    Raises `FetchFailed` when the body is no such answer.
    """
    try:
        listing = json.loads(body)
    except (ValueError, RecursionError):
        listing = None
    cards = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(cards, list):
        raise FetchFailed("not a model list")
    found = {}
    for card in cards[:MAX_MODELS]:
        name = card.get("id") if isinstance(card, dict) else None
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable():
            found[name] = Model(name, MappingProxyType(card))
    return tuple(found.values())


class ModelAsker:
    """Writes the `Cell[Fleet]` for a fixed set of pods."""

    def __init__(self, pods: tuple[Pod, ...], pools: Mapping[str, Pool], fetch: Fetch, fleet: Cell[Fleet]) -> None:
        self._pods = pods
        self._pools = pools
        self._fetch = fetch
        self._fleet = fleet
        self._models: dict[str, tuple[Model, ...]] = {}
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Ask each pod for ever; ends by cancellation."""
        self._publish()
        async with asyncio.TaskGroup() as group:
            for pod in self._pods:
                group.create_task(self._follow(pod))

    async def _follow(self, pod: Pod) -> None:
        while True:
            answered = await self._ask(pod)
            await asyncio.sleep(ASK_SECONDS if answered else ASK_AGAIN_SECONDS)

    async def _ask(self, pod: Pod) -> bool:
        """Ask one pod once; whether it has ever answered."""
        first = pod.uid not in self._asked
        try:
            models = models_of(await self._fetch(pod, b"/v1/models", TIMEOUT_SECONDS))
        except FetchFailed:
            models = self._models.get(pod.uid, ())
            answered = pod.uid in self._models
        else:
            answered = True
        self._asked.add(pod.uid)
        # Compared by name: the rest of a card (its `created`) is new with each answer.
        if first or (answered and self._models.get(pod.uid) != models):
            if answered:
                self._models[pod.uid] = models
            self._publish()
        return answered

    def _publish(self) -> None:
        asked = len(self._asked) == len(self._pods)
        self._fleet.set(fleet_of(self._pods, self._pools, self._models, asked=asked))
