"""Decides what `poolgate secrets` makes: from what is wanted and what is there. Pure but for the chance in new values.

What is there wins. A value that is in one namespace is copied to the others; a key's digest is that of its text as it
is there. The keys file comes last of all: where it is, every key's text was before it. So a run that died is finished
by the next one, and a Secret that is there with an entry missing was not made by us: it is left as it is, and told.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.cli.keys_file import with_key
from gateway.config.document import parsed
from gateway.config.faults import ConfigError
from gateway.config.fields import first_repeated
from gateway.config.keys import entries_in
from gateway.config.secrets import EntrySection, KeyEntrySection, SecretsSpec
from gateway.limits.keys import MAX_KEY_BYTES, digest, id_in, new_key

RANDOM_BYTES = 24
"""192 bits."""
KEYS_FILE_HEAD = "# Made by 'poolgate secrets'. 'poolgate keys' adds, lists and revokes keys.\n"
PRINTABLE = range(0x21, 0x7F)


class NotMade(Exception):
    """It could not be made; the text has a line for each reason, with the mend, and holds no secret. Exit code 1."""


class Place(NamedTuple):
    """Where a Secret is."""

    namespace: str
    """Empty in a folder."""
    secret: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.secret}" if self.namespace else self.secret


class Item(NamedTuple):
    """A value: the same in all namespaces."""

    secret: str
    entry: str


Content = Mapping[str, bytes]
"""A Secret's entries."""
There = Mapping[Place, Content | None]
"""What each place holds; None: no such Secret."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted."""

    places: Mapping[Place, tuple[str, ...]]
    """The Secrets, each with the names of its entries, in the order in which they are made. Everybody goes by that
    order, so of two who start at once the one who is late finds the value of the first, whatever namespaces it is for.
    """
    keys: Mapping[Item, KeyEntrySection]
    keys_file: Item | None

    def places_of(self, item: Item) -> list[Place]:
        """Where a value belongs."""
        return [
            place for place, entries in self.places.items() if place.secret == item.secret and item.entry in entries
        ]


def plan_of(spec: SecretsSpec, *, namespaced: bool) -> Plan:
    """The plan. In a folder (not `namespaced`) each Secret is there once."""
    sections: list[EntrySection] = [*spec.random, *spec.keys]
    if spec.keys_file is not None:
        sections.append(spec.keys_file)
    places: dict[Place, list[str]] = {}
    for each in sections:
        for namespace in each.namespaces if namespaced else ("",):
            places.setdefault(Place(namespace, each.secret), []).append(each.entry)
    return Plan(
        {place: tuple(entries) for place, entries in places.items()},
        {Item(key.secret, key.entry): key for key in spec.keys},
        None if spec.keys_file is None else Item(spec.keys_file.secret, spec.keys_file.entry),
    )


def values_in(plan: Plan, there: There) -> dict[Item, bytes]:
    """The values that are there."""
    found: dict[Item, bytes] = {}
    for place, entries in plan.places.items():
        content = there.get(place) or {}
        for entry in entries:
            if content.get(entry):
                found.setdefault(Item(place.secret, entry), content[entry])
    return found


def content_for(place: Place, plan: Plan, there: There) -> dict[str, bytes]:
    """The entries of a Secret that is not there."""
    values = values_in(plan, there)
    return {entry: values.get(item) or _new(item, plan, values) for entry, item in _items(place, plan)}


def _items(place: Place, plan: Plan) -> Iterator[tuple[str, Item]]:
    for entry in plan.places[place]:
        yield entry, Item(place.secret, entry)


def _new(item: Item, plan: Plan, values: Mapping[Item, bytes]) -> bytes:
    if item == plan.keys_file:
        return _keys_file(plan, values)
    # A letter first: YAML reads no text that begins so as a number, a date or true.
    text = new_key()[1] if item in plan.keys else f"s{secrets.token_urlsafe(RANDOM_BYTES)}"
    return text.encode("ascii")


def _keys_file(plan: Plan, values: Mapping[Item, bytes]) -> bytes:
    """All keys are there by now. From the same texts everybody makes the same file."""
    text = KEYS_FILE_HEAD
    for item, key in plan.keys.items():
        text = with_key(text, _entry(key, values[item].strip()))
    return text.encode("utf-8")


def _entry(key: KeyEntrySection, text: bytes) -> dict[str, Any]:
    more = {"forwards_user": key.forwards_user, "debug": key.debug}
    return {
        "id": id_in(text) or digest(text)[:8],
        "sha256": digest(text),
        "team": key.team,
        "models": list(key.models),
        **{name: value for name, value in more.items() if value},
    }


def troubles_in(plan: Plan, there: There) -> Iterator[str]:
    """What keeps us from making the rest, in words: it wants a person to decide."""
    values = values_in(plan, there)
    for place, entries in plan.places.items():
        content = there.get(place)
        if content is None:
            continue
        for entry in entries:
            value, known = content.get(entry), values.get(Item(place.secret, entry))
            if not value:
                yield (
                    f"the Secret {place} has no entry {entry}, and what is there is never changed: add the entry, or, "
                    "if nobody uses that Secret yet, delete it and run this again"
                )
            elif value != known:
                first = plan.places_of(Item(place.secret, entry))[0]
                yield (
                    f"the entry {entry} of the Secret {place} is not that of {first}: make them the same, or delete "
                    "one of the two and run this again, to have the other one copied"
                )
    yield from _troubles_of_keys(plan, there, values)


def _troubles_of_keys(plan: Plan, there: There, values: Mapping[Item, bytes]) -> Iterator[str]:
    texts = {item: values[item].strip() for item in plan.keys if item in values}
    for item, text in texts.items():
        if len(text) > MAX_KEY_BYTES or not text or not all(byte in PRINTABLE for byte in text):
            yield f"{_named(item, plan)} is no API key: put one there, of ASCII and without blanks"
    if twice := first_repeated(texts.values()):
        yield f"{_named(list(texts)[twice[0]], plan)} is the key of another entry too: give each its own"
    if plan.keys_file is None or plan.keys_file not in values:
        return
    file = _named(plan.keys_file, plan)
    try:
        known = {entry.sha256 for entry in entries_in(parsed(values[plan.keys_file], file))}
    except ConfigError as error:
        yield str(error)
        return
    for item, key in plan.keys.items():
        anew = (
            f"or delete the Secret {plan.keys_file.secret} too: both are made anew then, and other keys in it are lost"
        )
        if item in texts:
            if digest(texts[item]) not in known:
                yield (
                    f"{_named(item, plan)} opens nothing: {file} has no entry for that key. Put one there that it has "
                    f"(poolgate keys create --team {key.team} --file keys.yaml), {anew}"
                )
        elif all(there.get(place) is None for place in plan.places_of(item)):
            yield (
                f"{_named(item, plan)} is missing, while {file} is there, and no key can be added to it from here: put "
                f"a key there that it has (poolgate keys create --team {key.team} --file keys.yaml), {anew}"
            )


def _named(item: Item, plan: Plan) -> str:
    return f"the entry {item.entry} of the Secret {plan.places_of(item)[0]}"
