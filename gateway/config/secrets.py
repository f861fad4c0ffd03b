"""What `poolgate secrets` is to make: the Secrets of a deployment, each entry of each, and in which namespaces.

Two values of one name are a fault wherever they stand: in a folder there are no namespaces. The keys file has a Secret
of its own, since it is made last, from the keys.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from gateway.config.document import read
from gateway.config.faults import AtKey, KeyPath
from gateway.config.fields import Section, first_repeated
from gateway.config.validating import validated

MAX_NAME_CHARACTERS = 253
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_ENTRY = re.compile(r"(?!\.\.)[-._a-zA-Z0-9]+")


def _check_namespace(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no namespace: at most 63 small letters, digits and dashes between them")
    return name


def _check_secret(name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no Secret's name: small letters and digits, and between them - and .")
    return name


def _check_entry(name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS or name == "." or not _ENTRY.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no entry's name: letters, digits and - _ . in it, and no .. before it")
    return name


class EntrySection(Section):
    """An entry of a Secret."""

    secret: Annotated[str, AfterValidator(_check_secret)]
    """The Secret's name."""
    entry: Annotated[str, AfterValidator(_check_entry)]
    """The entry's name in it."""
    namespaces: tuple[Annotated[str, AfterValidator(_check_namespace)], ...] = Field(min_length=1)
    """Where the Secret is: with one and the same value in each. In a folder they do not matter."""

    @model_validator(mode="after")
    def _check_namespaces(self) -> "EntrySection":
        if twice := first_repeated(self.namespaces):
            raise AtKey(("namespaces", str(twice[0])), f"{twice[1]} stands here twice: keep one of them")
        return self


class KeyEntrySection(EntrySection):
    """The text of an API key, whose digest goes into the keys file; the fields are those of an entry there."""

    team: str = Field(min_length=1, max_length=64)
    """Whose key it is."""
    models: tuple[str, ...] = ("*",)
    """Globs of the model names it may use and see."""
    forwards_user: bool = False
    """It belongs to an application that says for which of its users it asks."""
    debug: bool = False
    """Its answers say which pod gave them."""


class SecretsSpec(Section):
    """All of them."""

    random: tuple[EntrySection, ...] = ()
    """A random text each."""
    keys: tuple[KeyEntrySection, ...] = ()
    """An API key each."""
    keys_file: EntrySection | None = None
    """The file that the gateway reads as `auth.keys_file`."""

    @model_validator(mode="before")
    @classmethod
    def _check_some(cls, values: Any) -> Any:
        if values is None or (isinstance(values, dict) and not any(values.values())):
            raise ValueError("there is nothing to make: name entries below random: or keys:")
        return values

    @model_validator(mode="after")
    def _check_names(self) -> "SecretsSpec":
        places = dict(self._entries())
        if twice := first_repeated((each.secret, each.entry) for each in places.values()):
            at = (*list(places)[twice[0]], "entry")
            raise AtKey(at, f"the entry {twice[1][1]} of the Secret {twice[1][0]} stands here twice: keep one of them")
        if self.keys and self.keys_file is None:
            raise AtKey(("keys",), "keys want a file for their digests: say where it is by keys_file:")
        if self.keys_file is None:
            return self
        if not self.keys:
            raise AtKey(("keys_file",), "there is no key to stand in it: name one below keys:, or remove it")
        if self.keys_file.secret in {each.secret for each in (*self.random, *self.keys)}:
            text = "the keys file is made last, so nothing else may be in its Secret: give it one of its own"
            raise AtKey(("keys_file", "secret"), text)
        return self

    def _entries(self) -> Iterator[tuple[KeyPath, EntrySection]]:
        for place, each in enumerate(self.random):
            yield ("random", str(place)), each
        for place, each in enumerate(self.keys):
            yield ("keys", str(place)), each
        if self.keys_file is not None:
            yield ("keys_file",), self.keys_file


def load_secrets(file: Path) -> SecretsSpec:
    """What a file says.

    Raises `ConfigError`.
    """
    document = read(file)
    return validated(SecretsSpec, document.value, document)
