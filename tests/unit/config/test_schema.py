"""The schema is one that editors understand, with variables in the place of any value."""

from typing import Any

from gateway.config.schema import config_schema


def schema_types(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(schema_types(each) for name, each in node.items() if name != "default"))
    if isinstance(node, list):
        return set().union(*map(schema_types, node))
    return set()


def test_the_schema_is_one_for_editors() -> None:
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    pool = schema["$defs"]["PoolSection"]["properties"]
    assert pool["policy"]["description"].startswith("How the pod for a request is chosen.")
    assert pool["policy"]["anyOf"][0]["enum"][0] == "auto"
    assert {"integer", "number", "array", "object", "string"} <= schema_types(schema)


def test_the_schema_lets_a_variable_stand_for_any_value() -> None:
    port = config_schema()["$defs"]["ServerSection"]["properties"]["port"]
    number, variable = port["anyOf"]
    assert (number["maximum"], variable["type"]) == (65_535, "string")
    keys = config_schema(keys=True)
    assert keys["$defs"]["_KeySection"]["properties"]["disabled"]["type"] == "boolean"
