"""Label selectors: equality, sets, existence. https://kubernetes.io/docs/concepts/overview/working-with-objects/labels"""

import re
from collections.abc import Callable, Mapping

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]

_SET = re.compile(r"(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL = re.compile(r"(?P<key>[^\s=!]+)\s*(?P<sign>!=|==?)\s*(?P<value>[^\s=!]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class BadSelector(Exception):
    """The server answers 400."""


def parse_selector(text: str) -> Selector:
    """Whether labels match all requirements. An absent key satisfies `!=` and `notin`, as on the real server."""
    requirements = [_requirement(part.strip()) for part in re.split(r",(?![^()]*\))", text) if part.strip()]
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _requirement(text: str) -> Selector:
    if _NAME.fullmatch(text):
        return lambda labels: text in labels
    if text.startswith("!") and _NAME.fullmatch(text[1:].strip()):
        return lambda labels: text[1:].strip() not in labels
    if match := _SET.fullmatch(text):
        key, inside = match["key"], match["word"] == "in"
        values = {value.strip() for value in match["values"].split(",")}
        return lambda labels: (key in labels and labels[key] in values) is inside
    if match := _EQUAL.fullmatch(text):
        key, value, equal = match["key"], match["value"], match["sign"] != "!="
        return lambda labels: (labels.get(key) == value) is equal
    raise BadSelector(f'unable to parse requirement: "{text}"')
