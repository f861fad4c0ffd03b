"""What a pod's `/v1/models` says, LoRA adapters included. A pod is not trusted further than it must be."""

import json
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from gateway.core.fleet import Model
from gateway.core.ports import FetchFailed

MAX_CARDS = 256
MAX_NAME_CHARACTERS = 256
LARGE_BYTES = 65_536
"""Of a longer answer only what is short is kept of each card: `/v1/models` is answered from memory."""


class Listing(NamedTuple):
    """The models listed; `odd` counts entries whose name is none: empty, over-long, not printable."""

    models: tuple[Model, ...]
    odd: int


def models_of(body: bytes) -> Listing:
    """The models of a `/v1/models` answer, in its order.

    Raises `FetchFailed` when the body is no such answer.
    """
    try:
        listing = json.loads(body)
    except (ValueError, RecursionError):
        listing = None
    cards = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(cards, list):
        raise FetchFailed("/v1/models: not a model list")
    found: dict[str, Model] = {}
    odd = 0
    for card in cards[:MAX_CARDS]:
        if is_name(name := card.get("id") if isinstance(card, dict) else None):
            kept = card if len(body) <= LARGE_BYTES else {key: card[key] for key in card if _is_short(key, card[key])}
            found[name] = Model(name, MappingProxyType(kept))
        else:
            odd += 1
    return Listing(tuple(found.values()), odd + max(0, len(cards) - MAX_CARDS))


def is_name(name: Any) -> TypeGuard[str]:
    """Whether this can be a model's name."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def _is_short(key: str, value: Any) -> bool:
    return len(key) <= 64 and (
        value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 256)
    )
