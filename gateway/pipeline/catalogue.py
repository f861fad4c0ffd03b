"""`GET /v1/models` and `/v1/models/{id}`, from memory: Open WebUI asks about once a second for each of its users.

A card is what vLLM lists, its own keys included, less its path on the pod's disk. `/v1/models/{id}` does not exist in
vLLM; the SDKs have a call for it.
"""

import json
from typing import Any

from gateway.core.caller import Tenant
from gateway.core.errors import ModelNotFound
from gateway.core.fleet import Fleet

_PRIVATE = frozenset(("root", "permission"))


def listing(fleet: Fleet, tenant: Tenant) -> bytes:
    """The models that are served now and that the key may use."""
    cards = [_card(name, card) for name, card in fleet.cards.items() if tenant.may_use(name)]
    return _json({"object": "list", "data": cards})


def one(fleet: Fleet, tenant: Tenant, name: str) -> bytes:
    """One model's card.

    Raises `ModelNotFound`, for a model that the key may not use as well.
    """
    card = fleet.cards.get(name)
    if card is None or not tenant.may_use(name):
        raise ModelNotFound(f"the model {name[:256]!r} is not served here: see /v1/models", param="model")
    return _json(_card(name, card))


def _card(name: str, card: Any) -> dict[str, Any]:
    shown = {key: value for key, value in card.items() if key not in _PRIVATE}
    return {"object": "model", "created": 0, "owned_by": "vllm"} | shown | {"id": name}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
