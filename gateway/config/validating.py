"""Values become a model, or faults: every one of them, each at the place that its value comes from."""

from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import ValidationError

from gateway.config.document import Document
from gateway.config.faults import ConfigError, Fault, KeyPath, spoken
from gateway.config.fields import Section

S = TypeVar("S", bound=Section)


def validated(kind: type[S], values: Any, document: Document) -> S:
    """The values as a model. Where one is not known what it is for is left out, so that the others are judged."""
    unknown = set(document.unknown)
    while True:
        try:
            found = kind.model_validate(values)
        except ValidationError as error:
            faults, blank = _faults(kind, error, document, unknown)
            if faults or not blank:
                raise ConfigError([*document.faults, *faults]) from None
            for path in blank:
                unknown.add(path)
                _leave_out(values, path)
        else:
            if document.faults:
                raise ConfigError(document.faults)
            return found


def _faults(
    kind: type[Section], error: ValidationError, document: Document, unknown: Collection[KeyPath]
) -> tuple[list[Fault], set[KeyPath]]:
    """(What is wrong, where nobody can say so since a value is not known)."""
    schema = kind.model_json_schema()
    faults, blank = [], set()
    errors = error.errors(include_url=False)
    places = {told["loc"][:-1] for told in errors}
    for told in errors:
        # Of a list whose entries are faulty pydantic says that it is too short, too.
        if told["type"] == "too_short" and any(place[: len(told["loc"])] == told["loc"] for place in places):
            continue
        path, text = spoken(told, schema, document.shows, document.as_written)
        if path not in unknown:
            faults.append(document.fault(path, text))
        elif told["type"] == "missing":
            blank.add(path[:-2] if path[-2].isdecimal() else path[:-1])
        else:
            blank.add(path)
    return faults, blank


def _leave_out(values: Any, path: KeyPath) -> None:
    for step in path[:-1]:
        values = values.get(step) if isinstance(values, dict) else values[int(step)]
    if isinstance(values, dict):
        values.pop(path[-1], None)
