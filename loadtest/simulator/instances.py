"""A value that satisfies a JSON schema: what a model held by a grammar would say.

Made up, but the same for the same chance. Objects have all their properties as long as they are not nested
deep, then only the required ones; lists are short; a choice between schemas prefers one that ends. Keywords
that no grammar enforces (`not`, `if`, `dependentSchemas`) are ignored.
"""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any, cast

from loadtest.simulator.answers import VOCABULARY
from loadtest.simulator.patterns import BadPattern, check_pattern, matching

_ROOMY = 4  # levels on which everything optional is there
_DEEPEST = 24
_WORDS = tuple(word.strip() for word in VOCABULARY if word.strip().isascii() and word.strip().isalpha())
_FORMATS = {
    "date": "2026-11-23",
    "date-time": "2026-11-23T18:34:19Z",
    "time": "18:34:19Z",
    "duration": "P3D",
    "email": "someone@example.com",
    "hostname": "host.example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
}


class Unsatisfiable(ValueError):
    """No value satisfies the schema, or we do not see which; in words for the caller."""


Schema = dict[str, Any]


def text_for(schema: object, chance: Random) -> str:
    """An instance as JSON, spaced as models write it. Raises Unsatisfiable."""
    return json.dumps(instance(schema, chance), ensure_ascii=False)


def instance(schema: object, chance: Random) -> object:
    """Raises Unsatisfiable."""
    return _Maker(schema, chance).make(schema, 0)


class _Maker:
    def __init__(self, root: object, chance: Random) -> None:
        self._root = root
        self._chance = chance

    def make(self, schema: object, depth: int) -> object:
        if schema is False:
            raise Unsatisfiable("schema is unsatisfiable: false")
        if schema is True:
            return self._chance.choice(_WORDS)
        if not isinstance(schema, dict):
            raise Unsatisfiable(f"Expected object or boolean, got {schema!r}")
        if depth > _DEEPEST:
            raise Unsatisfiable("schema has no finite instance")
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            if not schema["enum"]:
                raise Unsatisfiable("enum is empty")
            return self._chance.choice(schema["enum"])
        alternatives = schema.get("anyOf") or schema.get("oneOf")
        if alternatives:
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            return self._first_possible([_merged(rest, self._resolved(each)) for each in alternatives], depth)
        return self._typed(schema, depth)

    def _first_possible(self, schemas: list[Schema], depth: int) -> object:
        """By chance while there is room, else the one that asks least, so that recursion ends."""
        if depth < _ROOMY:
            schemas = self._chance.sample(schemas, len(schemas))
        else:
            schemas = sorted(schemas, key=lambda schema: len(json.dumps(schema)))
        problem = Unsatisfiable("no alternatives")
        for schema in schemas:
            try:
                return self.make(schema, depth + 1)
            except Unsatisfiable as error:
                problem = error
        raise problem

    def _resolved(self, schema: object) -> Schema:
        """Without `$ref` and `allOf` at its top."""
        if isinstance(schema, bool):
            return {} if schema else {"enum": []}
        if not isinstance(schema, dict):
            raise Unsatisfiable(f"Expected object or boolean, got {schema!r}")
        seen = 0
        while "$ref" in schema or "allOf" in schema:
            seen += 1
            if seen > _DEEPEST:
                raise Unsatisfiable("$ref never ends")
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
            parts = [self._target(schema["$ref"])] if "$ref" in schema else []
            for part in [*parts, *schema.get("allOf", ())]:
                rest = _merged(rest, part)
            schema = rest
        return schema

    def _target(self, reference: object) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Unsatisfiable(f"Unresolvable: {reference}")
        place = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, dict) or name not in place:
                raise Unsatisfiable(f"Pointer '{reference.removeprefix('#')}' does not exist")
            place = place[name]
        return place

    def _typed(self, schema: Schema, depth: int) -> object:
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._first_possible([{**schema, "type": each} for each in kind], depth)
        if kind is None:
            kind = _implied_type(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return self._chance.random() < 0.5
        if kind == "null":
            return None
        raise Unsatisfiable(f"Invalid type: {kind}")

    def _object(self, schema: Schema, depth: int) -> Schema:
        properties = _dict(schema.get("properties"))
        required = list(schema.get("required", ()))
        made: Schema = {}
        for name, each in properties.items():
            if name not in required and depth >= _ROOMY:
                continue
            try:
                made[name] = self.make(each, depth + 1)
            except Unsatisfiable:
                if name in required:
                    raise
        more = schema.get("additionalProperties", True)
        for name in required:
            if name not in made:
                made[name] = self.make(more, depth + 1)
        for word in _WORDS:
            if len(made) >= schema.get("minProperties", 0):
                break
            made.setdefault(word, self.make(more, depth + 1))
        return made

    def _array(self, schema: Schema, depth: int) -> list[object]:
        first = list(schema.get("prefixItems", ()))
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, 3))
        if most < least:
            raise Unsatisfiable("minItems is greater than maxItems")
        wanted = max(least, min(most, len(first))) if first else least
        if not first and depth < _ROOMY:
            wanted = self._chance.randint(max(least, min(most, 1)), min(most, max(least, 3)))
        items = schema.get("items", True)
        if items is False:
            wanted = min(wanted, len(first))
        made: list[object] = []
        for index in range(wanted):
            value = self.make(first[index] if index < len(first) else items, depth + 1)
            for _ in range(20 if schema.get("uniqueItems") else 0):
                if value not in made:
                    break
                value = self.make(items, depth + 1)
            if schema.get("uniqueItems") and value in made:
                if index < least:
                    raise Unsatisfiable("there are not enough different items")
                break
            made.append(value)
        return made

    def _string(self, schema: Schema) -> str:
        if "pattern" in schema:
            try:
                check_pattern(schema["pattern"])
            except BadPattern as error:
                raise Unsatisfiable(str(error)) from None
            return matching(schema["pattern"], self._chance)
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if most < least:
            raise Unsatisfiable("minLength is greater than maxLength")
        text = self._chance.choice(_WORDS)
        while len(text) < least:
            text += " " + self._chance.choice(_WORDS)
        return text if len(text) <= most else text[: int(most)]

    def _number(self, schema: Schema, *, whole: bool) -> int | float:
        step = schema.get("multipleOf", 1 if whole else 0.5)
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        # A strict bound is one that a multiple on it does not count for.
        first = math.ceil(low / step) if low > -math.inf else -math.inf
        last = math.floor(high / step) if high < math.inf else math.inf
        over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if over is not None:
            first = max(first, math.floor(over / step) + 1)
        if under is not None:
            last = min(last, math.ceil(under / step) - 1)
        if first == -math.inf:
            first = min(0, last - 100) if last < math.inf else 0
        last = min(last, first + 100)
        if last < first:
            if whole or "multipleOf" in schema:
                raise Unsatisfiable("no number lies between the bounds")
            low, high = max(low, -math.inf if over is None else over), min(high, math.inf if under is None else under)
            return float((low + high) / 2)
        value = self._chance.randint(int(first), int(last)) * step
        return int(value) if whole or (float(value).is_integer() and isinstance(step, int)) else value


def _implied_type(schema: Schema) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if any(key in schema for key in ("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum")):
        return "number"
    return "string"


def _merged(one: Schema, other: object) -> Schema:
    """Both at once: properties and requirements add up, of the rest the second has the last word."""
    if not isinstance(other, dict):
        return one
    both = {**one, **other}
    if "properties" in one and "properties" in other:
        both["properties"] = {**_dict(one["properties"]), **_dict(other["properties"])}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both


def _dict(value: object) -> Schema:
    return cast("Schema", value) if isinstance(value, dict) else {}
