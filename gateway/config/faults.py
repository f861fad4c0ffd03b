"""What is wrong with a configuration, in words: where it stands, and what to do about it.

pydantic tells which value does not fit, in the words of Python; what would fit is read from the models' JSON Schema
and told in the words of the file. A value is repeated only where a number, a switch or one of a few words is wanted:
a text may be a secret.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

KeyPath = tuple[str, ...]
"""The names and places that lead to a value."""
Schema = Mapping[str, Any]

KEYS_NAMED = 16
MAX_REPEATED = 40
"""Characters of a value that is repeated."""
PATTERNS = {
    r"^https?://": "give a URL that begins with http:// or https://",
    r"^(redis|rediss|unix)://": "give a URL such as redis://HOST:PORT/0, rediss://HOST:PORT/0 or unix://PATH",
    r"^[!-~]+$": "give a text of letters, digits and signs of ASCII, without blanks",
    r"^[0-9a-f]{64}$": "give a SHA-256 in 64 lower-case hex digits, as 'poolgate keys create' writes it",
}
"""What a text must be like, in words: for each pattern in the models."""
TIME = "give a time such as 2027-01-01T00:00:00Z"
_TYPES: dict[type, str] = {dict: "keys", list: "a list", tuple: "a list", bool: "true or false", type(None): "nothing"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    source: str
    """The file, or the variable or flag that the value came by; empty: the text says it."""
    line: int | None
    """Counted from 1; None where there are no lines."""
    key: str
    """Such as `pools.chat.policy`; empty: it is no key's."""
    text: str
    """What is wrong, and the mend."""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.text) if part)


class ConfigError(Exception):
    """The configuration cannot be used; the text has one line per fault, each with file, line, key and mend."""

    def __init__(self, told: str | Iterable[Fault]) -> None:
        self.faults = (Fault("", None, "", told),) if isinstance(told, str) else tuple(sorted(told, key=_place))
        super().__init__("\n".join(map(str, self.faults)))


def _place(fault: Fault) -> tuple[bool, int, str]:
    return fault.line is None, fault.line or 0, fault.source


class AtKey(ValueError):
    """Said by a validator of a section: the fault is at a key below it."""

    def __init__(self, below: KeyPath, text: str) -> None:
        super().__init__(text)
        self.below = below


class Spoken(NamedTuple):
    """A fault of pydantic's in our words."""

    path: KeyPath
    text: str


def spoken(
    told: Mapping[str, Any],
    schema: Schema,
    shows: Callable[[KeyPath], bool],
    as_written: Callable[[KeyPath, KeyPath], str],
) -> Spoken:
    """In words. `told`: one of `ValidationError.errors()`. `shows(path)`: whether the value there stands in the file as
    it is. `as_written(path, instead)`: how another key, in place of the one at `path`, is written where that came from.
    """
    path: KeyPath = tuple(str(step) for step in told["loc"] if step != "[key]")
    given, context = told.get("input"), told.get("ctx", {})
    node = at(schema, path)
    match told["type"]:
        case "extra_forbidden":
            return Spoken(path, unknown_key(path, schema, as_written))
        case "missing":
            return Spoken(path, f"this key is missing: {wanted(node)}")
        case "value_error":
            error = context.get("error")
            below = error.below if isinstance(error, AtKey) else ()
            return Spoken((*path, *below), str(error))
        case "invalid_key":
            return Spoken(path, "a key is a text: put it in quotes")
        case "string_pattern_mismatch":
            return Spoken(path, PATTERNS.get(context["pattern"], told["msg"]))
        case "string_too_short" | "string_too_long" | "too_short" | "too_long":
            return Spoken(path, wrong_length(context, "character" if told["type"].startswith("string") else "entry"))
        case kind if kind.startswith("date"):
            return Spoken(path, TIME)
    words = wanted(node)
    if not words:
        return Spoken(path, str(told["msg"]))
    return Spoken(path, f"{words}{instead_of(given, node, shows=shows(path))}{hint(given, node)}")


def unknown_key(path: KeyPath, schema: Schema, as_written: Callable[[KeyPath, KeyPath], str]) -> str:
    """What to say of a key that does not exist: which was meant, or where it belongs, or which there are."""
    *above, name = path
    known = list(at(schema, tuple(above)).get("properties", ()))
    alike = close_to(name.replace("-", "_"), known)
    if alike is not None:
        return f"this key does not exist: did you mean {as_written(path, (*above, alike))}?"
    elsewhere = [each for each in every_key(schema) if each[-1] == name]
    if elsewhere:
        return f"this key does not exist here: did you mean {as_written(path, elsewhere[0])}?"
    shown = ", ".join(known[:KEYS_NAMED]) + (" ..." if len(known) > KEYS_NAMED else "")
    return f"this key does not exist: correct or remove it; here are {shown}"


def wanted(node: Schema) -> str:
    """What to give; empty if the schema does not say."""
    null = " or null" if node.get("nullable") else ""
    if choices := node.get("enum"):
        return f"give one of {', '.join(map(str, choices))}{null}"
    match node.get("type"):
        case "boolean":
            return f"give true or false{null}"
        case "integer":
            return f"give a whole number{bounds(node)}{null}"
        case "number":
            return f"give a number{bounds(node)}{null}"
        case "string":
            text = "a path" if node.get("format") == "path" else "a text"
            return PATTERNS.get(node.get("pattern", ""), f"give {text}") + null
        case "array":
            return f"give a list, such as {'[{...}, {...}]' if 'properties' in node['items'] else '[a, b]'}"
        case "object" if "properties" in node:
            some = " and ".join(f"{name}:" for name in list(node["properties"])[:2])
            return f"put keys such as {some} below it"
        case "object":
            return "put names below it, and the settings of each below its name"
    return ""


def bounds(node: Schema) -> str:
    """Of a number."""
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    ways = (("minimum", "of at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
    found = [f"{words} {node[name]}" for name, words in (*ways, ("exclusiveMaximum", "less than")) if name in node]
    return f" {' and '.join(found)}" if found else ""


def wrong_length(context: Mapping[str, Any], unit: str) -> str:
    """A text or a list is too short or too long."""
    least = "min_length" in context
    count = context["min_length"] if least else context["max_length"]
    units = unit if count == 1 else {"entry": "entries"}.get(unit, f"{unit}s")
    return f"give {'at least' if least else 'at most'} {count} {units}"


def instead_of(given: Any, node: Schema, *, shows: bool) -> str:
    """`, not 'ten'`: what was given, as far as it may be repeated."""
    if type(given) in _TYPES and not (isinstance(given, bool) and node.get("type") != "boolean" and not shows):
        found = _TYPES[type(given)]
        if isinstance(given, bool) and shows:
            found = str(given).lower()
        return f", not {found}" if given is not None else "; here stands nothing: null, or an empty value"
    may_repeat = "enum" in node or node.get("type") in ("boolean", "integer", "number")
    if shows and may_repeat and isinstance(given, str | int | float):
        text = repr(given)
        return f", not {text if len(text) <= MAX_REPEATED else text[:MAX_REPEATED] + '...'}"
    return ", not a single value" if node.get("type") in ("array", "object") else ""


def hint(given: Any, node: Schema) -> str:
    """What was perhaps meant."""
    if "enum" in node and isinstance(given, str):
        alike = close_to(given, [str(choice) for choice in node["enum"]])
        return f"; did you mean {alike}?" if alike else ""
    if isinstance(given, bool) and node.get("type") == "string":
        return ": put it in quotes; without them YAML reads yes, no, on and off as true and false"
    if given is None and node.get("type") in ("array", "object"):
        return ". If nothing is set, remove the key"
    return ""


def close_to(name: str, known: Sequence[str]) -> str | None:
    """The one that was perhaps meant."""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.65)
    return by_lower[found[0]] if found else None


def at(schema: Schema, path: KeyPath) -> Schema:
    """What the schema says of a place; `nullable` is added. Empty where it says nothing."""
    node = _resolved(schema, schema)
    for step in path:
        if step in node.get("properties", {}):
            below = node["properties"][step]
        elif isinstance(node.get("additionalProperties"), Mapping):
            below = node["additionalProperties"]
        else:
            below = node.get("items", {})
        node = _resolved(below, schema)
    return node


def every_key(schema: Schema, node: Schema | None = None, path: KeyPath = ()) -> Iterator[KeyPath]:
    """All there are; those of lists and of what has names of its own under a star."""
    node = _resolved(schema if node is None else node, schema)
    for name, below in node.get("properties", {}).items():
        yield (*path, name)
        yield from every_key(schema, below, (*path, name))
    for inner in (node.get("items"), node.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from every_key(schema, inner, (*path, "*"))


def _resolved(node: Schema, root: Schema) -> Schema:
    """Without references and alternatives: of the latter the first that is not null."""
    nullable = False
    if "anyOf" in node:
        nullable = any(each.get("type") == "null" for each in node["anyOf"])
        node = next((each for each in node["anyOf"] if each.get("type") != "null"), {})
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    if "items" in node:
        node = {**node, "items": _resolved(node["items"], root)}
    return {**node, "nullable": nullable} if nullable else node


# YAML


def yaml_mend(problem: str, context: str, line: int, context_line: int) -> tuple[int, str]:
    """(The line to look at, what is wrong there and the mend), from PyYAML's words and places."""
    if "'\\t'" in problem:
        return line, "a tab stands here: YAML is indented by blanks only"
    if "quoted scalar" in context and "end of stream" in problem:
        return context_line, "the quote that opens here is not closed"
    if context in ("while parsing a flow sequence", "while parsing a flow mapping", "while parsing a flow node"):
        bracket = "{" if context.endswith("mapping") else "["
        where = "opens here" if context != "while parsing a flow node" else "opens before this"
        return context_line, f"the {bracket} that {where} is not closed, or a comma is missing: {problem}"
    if context in ("while scanning an alias", "while scanning an anchor") or "undefined alias" in problem:
        return line, 'a text that begins with * or & is put in quotes, such as models: ["*"]'
    if "for the tag" in problem or "tag handle" in problem or context.endswith(" a tag"):
        # Their words quote it, and it may be a secret that begins so.
        return line, "a text that begins with ! is put in quotes"
    if "that cannot start any token" in problem:
        return line, f"{problem.removesuffix(' that cannot start any token')}: put the text in quotes"
    if "mapping values are not allowed" in problem:
        return line, (
            "a colon where none may be: put a text that holds ': ' in quotes, and look whether this line and the one "
            "before it have their colon and the same indentation"
        )
    if "<block end>" in problem:
        return line, "this line does not fit to those above: look at its indentation"
    if "single document" in context:
        return line, "a second document begins here: remove the --- and what follows it"
    return line, problem
