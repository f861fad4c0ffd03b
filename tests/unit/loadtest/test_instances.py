"""Values that satisfy schemas."""

from __future__ import annotations

import json
from enum import Enum
from random import Random
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from loadtest.simulator.instances import Unsatisfiable, instance, text_for

Schema = dict[str, Any]


TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "boolean": bool,
}


def is_of_type(value: object, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def fits(value: Any, schema: Schema) -> bool:
    """A validator of the keywords that the schemas below use."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if not is_of_type(value, schema["type"]):
        return False
    if schema["type"] == "object":
        properties, required = schema["properties"], set(schema["required"])
        within = required <= set(value) <= set(properties)
        return within and all(fits(value[name], properties[name]) for name in value)
    if schema["type"] == "array":
        long_enough = schema["minItems"] <= len(value) <= schema["maxItems"]
        return long_enough and all(fits(each, schema["items"]) for each in value)
    if schema["type"] == "string":
        return bool(schema["minLength"] <= len(value) <= schema["maxLength"])
    if schema["type"] == "integer":
        within = schema["minimum"] <= value < schema["exclusiveMaximum"]
        return bool(within and value % schema["multipleOf"] == 0)
    return bool(schema["type"] != "number" or schema["exclusiveMinimum"] < value <= schema["maximum"])


def sized(kind: str, least: str, most: str) -> st.SearchStrategy[Schema]:
    sizes = st.tuples(st.integers(0, 4), st.integers(0, 4))
    return sizes.map(lambda size: {"type": kind, least: size[0], most: sum(size)})


NUMBERS = st.tuples(st.floats(-50, 50), st.floats(0.01, 9)).map(
    lambda pair: {"type": "number", "exclusiveMinimum": pair[0], "maximum": pair[0] + pair[1]}
)
INTEGERS = st.tuples(st.integers(-99, 99), st.integers(1, 7)).map(
    lambda pair: {"type": "integer", "minimum": pair[0], "exclusiveMaximum": pair[0] + 20, "multipleOf": pair[1]}
)
SIMPLE = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.sampled_from(["red", 7, None]), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    sized("string", "minLength", "maxLength"),
    INTEGERS,
    NUMBERS,
)


def nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    names = st.dictionaries(st.sampled_from("abcd"), inner, max_size=4)
    objects = st.tuples(names, st.integers(0, 4)).map(
        lambda pair: {"type": "object", "properties": pair[0], "required": sorted(pair[0])[: pair[1]]}
    )
    arrays = st.tuples(sized("array", "minItems", "maxItems"), inner).map(lambda pair: {**pair[0], "items": pair[1]})
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}))


@given(st.recursive(SIMPLE, nested, max_leaves=12), st.integers())
def test_the_value_fits_its_schema(schema: Schema, seed: int) -> None:
    assert fits(instance(schema, Random(seed)), schema)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Node(BaseModel):
    """One that contains others of its kind."""

    name: Annotated[str, Field(pattern=r"^[a-z]{3}-\d{2}$")]
    children: list[Node] = Field(max_length=2)
    parent: Node | None


class Everything(BaseModel):
    colour: Colour
    kind: Literal["a", "b"] | None
    share: float = Field(gt=0.1, lt=0.2)
    sizes: list[Annotated[int, Field(ge=3, multiple_of=5)]] = Field(min_length=2)
    pair: tuple[int, str]
    tree: Node
    by_name: dict[str, int]
    either: int | list[bool]


@given(st.integers())
def test_what_pydantic_asks_for_pydantic_takes(seed: int) -> None:
    Everything.model_validate_json(text_for(Everything.model_json_schema(), Random(seed)))


def test_all_of_its_parts_hold_at_once() -> None:
    parts: list[Schema] = [
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
    ]
    value = instance({"allOf": parts, "$defs": {"b": {"const": 3}}}, Random(0))

    assert isinstance(value, dict)
    assert set(value) == {"a", "b"}
    assert value["b"] == 3


def test_items_that_must_differ_do() -> None:
    value = instance({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3}, Random(0))

    assert isinstance(value, list)
    assert sorted(value) == [1, 2, 3]


def test_it_is_spaced_as_models_write_it() -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}}}

    assert text_for(schema, Random(0)) == '{"a": 1, "b": [1, 2]}'
    assert json.loads(text_for(True, Random(0)))


@pytest.mark.parametrize(
    "schema",
    [
        False,
        7,
        {"type": "nothing"},
        {"enum": []},
        {"$ref": "#/$defs/gone"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#"},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "("},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "minItems": 3, "maxItems": 2},
        {"type": "array", "uniqueItems": True, "minItems": 3, "items": {"type": "boolean"}},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
        {"anyOf": [False, False]},
    ],
)
def test_what_nothing_fits_is_refused(schema: object) -> None:
    with pytest.raises(Unsatisfiable):
        instance(schema, Random(0))
