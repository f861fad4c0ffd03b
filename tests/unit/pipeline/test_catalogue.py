"""`/v1/models` lists what a caller may ask for now, aliases among it, each under the name to ask by."""

import json
from typing import Any

import pytest

from gateway.core.caller import ANONYMOUS, Tenant
from gateway.core.errors import ModelNotFound
from gateway.core.fleet import Fleet, Pool, Route
from gateway.core.naming import Alias, Target
from gateway.pipeline.catalogue import listing, one

CARD = {"id": "a", "object": "model", "created": 7, "owned_by": "vllm", "root": "/models/a", "max_model_len": 4096}
FLEET = Fleet(
    routes={"a": Route("a", Pool("chat"), ()), "gone": Route("gone", Pool("chat"), ())},
    cards={"a": CARD, "b": {"id": "b", "max_model_len": 8}},
)
ALIASES = {
    alias.name: alias
    for alias in (
        Alias("gpt", (Target("gone"), Target("b"), Target("a"))),
        Alias("only-fallback", (Target("gone"),), ("x", "a")),
        Alias("nowhere", (Target("gone"),), ("x",)),
        Alias("a", (Target("a"),), ("b",)),
        Alias("b", (Target("gone"),)),
    )
}


def listed(tenant: Tenant = ANONYMOUS, aliases: dict[str, Alias] = ALIASES) -> dict[str, dict[str, Any]]:
    told = json.loads(listing(FLEET, aliases, tenant))
    assert told["object"] == "list"
    return {card["id"]: card for card in told["data"]}


def test_without_aliases_the_served_models_are_listed_less_what_is_private() -> None:
    found = listed(aliases={})
    assert list(found) == ["a", "b"]
    assert found["a"] == {"id": "a", "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 4096}


def test_an_alias_is_listed_with_the_card_of_its_first_model_that_is_served() -> None:
    found = listed()
    assert list(found) == ["a", "gpt", "only-fallback"]
    assert found["gpt"]["max_model_len"] == 8
    assert found["only-fallback"]["max_model_len"] == 4096


def test_an_alias_that_leads_nowhere_is_not_listed_though_a_model_bears_its_name() -> None:
    assert "nowhere" not in listed()
    assert "b" not in listed()
    with pytest.raises(ModelNotFound):
        one(FLEET, ALIASES, ANONYMOUS, "b")


def test_an_alias_of_a_model_s_own_name_is_listed_once() -> None:
    told = json.loads(listing(FLEET, ALIASES, ANONYMOUS))
    assert [card["id"] for card in told["data"]].count("a") == 1
    assert listed()["a"]["max_model_len"] == 4096


def test_a_key_s_globs_apply_to_the_alias_and_not_to_what_it_leads_to() -> None:
    tenant = Tenant("k", "acme", models=("g*",))
    assert list(listed(tenant)) == ["gpt"]
    assert json.loads(one(FLEET, ALIASES, tenant, "gpt"))["id"] == "gpt"
    for name in ("a", "only-fallback", "unknown"):
        with pytest.raises(ModelNotFound):
            one(FLEET, ALIASES, tenant, name)
