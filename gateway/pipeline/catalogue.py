"""`GET /v1/models` and `/v1/models/{id}`, from memory: Open WebUI asks about once a second for each of its users.

A card is what vLLM lists, its own keys included, less its path on the pod's disk. An alias has the card of the first of
its models that is served, under its own name. `/v1/models/{id}` does not exist in vLLM; the SDKs have a call for it.
"""

import json
from collections.abc import Mapping
from typing import Any

from gateway.core.caller import Tenant
from gateway.core.errors import ModelNotFound
from gateway.core.fleet import Fleet
from gateway.core.naming import Aliases

_PRIVATE = frozenset(("root", "permission"))


def listing(fleet: Fleet, aliases: Aliases, tenant: Tenant) -> bytes:
    """The names that are served now and that the key may use: first the models, then what is but an alias."""
    cards = []
    for name in dict.fromkeys((*fleet.cards, *aliases)):
        card = _card_of(fleet, aliases, name)
        if card is not None and tenant.may_use(name):
            cards.append(_shown(name, card))
    return _json({"object": "list", "data": cards})


def one(fleet: Fleet, aliases: Aliases, tenant: Tenant, name: str) -> bytes:
    """One model's card.

    Raises `ModelNotFound`, for a model that the key may not use as well.
    """
    card = _card_of(fleet, aliases, name)
    if card is None or not tenant.may_use(name):
        raise ModelNotFound(f"the model {name[:256]!r} is not served here: see /v1/models", param="model")
    return _json(_shown(name, card))


def _card_of(fleet: Fleet, aliases: Aliases, name: str) -> Mapping[str, Any] | None:
    """The card behind a name; None when nothing is served under it."""
    alias = aliases.get(name)
    models = (name,) if alias is None else alias.models
    return next((fleet.cards[model] for model in models if model in fleet.cards), None)


def _shown(name: str, card: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in card.items() if key not in _PRIVATE}
    return {"object": "model", "created": 0, "owned_by": "vllm"} | shown | {"id": name}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
