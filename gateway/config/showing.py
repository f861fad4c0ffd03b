"""A configuration as it may be shown: with its secrets masked, which are the fields that have `repr=False`."""

from collections.abc import Mapping
from typing import Any

from gateway.config.fields import Section

MASK = "***"
"""Stands for a secret."""


def shown(section: Section) -> dict[str, Any]:
    """All of it in values of JSON, with secrets masked: of those that are URLs the password, of others everything."""
    plain = section.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found[name] = shown(value)
        elif isinstance(value, Mapping):
            found[name] = {key: shown(each) for key, each in value.items()}
        elif isinstance(value, tuple) and any(isinstance(each, Section) for each in value):
            found[name] = [shown(each) for each in value]
        elif isinstance(value, str):
            found[name] = _masked(value, secret=about.repr is False)
        else:
            found[name] = plain[name]
    return found


def _masked(value: str, *, secret: bool) -> str:
    """Without what is secret. A URL may hold a password in any field."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        return MASK if secret else value
    place, question, query = rest.partition("?")
    user, at, host = place.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        place = f"{name}{colon}{MASK if colon else ''}@{host}" if colon or not secret else f"{MASK}@{host}"
    query = "&".join(f"{each.partition('=')[0]}={MASK}" for each in query.split("&")) if secret and question else query
    return f"{scheme}://{place}{question}{query}"
