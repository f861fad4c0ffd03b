"""Writes the keys file: an entry is added, or disabled, and all else in it stays as it is, comments too.

The text is changed at one place, and what came of it is read before anything is replaced: if that is not the keys of
before with this one change, the file stays and the operator is told. It is replaced in one step, so who follows it sees
the whole of the old file or of the new one.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

from gateway.config.faults import ConfigError
from gateway.config.keys import check_key, load_keys
from gateway.limits.keys import KeyEntry

MODE = 0o600
GROUP_READS = 0o040
WIDTH = 4096
"""Of a line. Values are rarely folded then."""


def add_key(file: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry to a keys file, which is made if it does not exist, readable by its owner only.

    Raises `ConfigError`.
    """
    check_key(entry)
    with _alone_with(file):
        text = file.read_text("utf-8", "replace") if file.exists() else ""
        if text.strip():
            load_keys(file)
        _replace(file, with_key(text, dict(entry)), [*keys_in(text), dict(entry)])


def disable_key(file: Path, key_id: str) -> KeyEntry:
    """Set `disabled` in the entry with this id, and return the entry as it was.

    Raises `ConfigError`.
    """
    with _alone_with(file):
        entries = load_keys(file)
        index = next((at for at, entry in enumerate(entries) if entry.tenant.key_id == key_id), None)
        if index is None:
            raise ConfigError(f"{file}: no key here has the id {key_id!r}: 'poolgate keys list' shows those it has")
        if not entries[index].disabled:
            text = file.read_text("utf-8")
            keys = keys_in(text)
            keys[index] = {**keys[index], "disabled": True}
            _replace(file, with_disabled(text, index), keys)
        return entries[index]


def with_key(text: str, entry: dict[str, Any]) -> str:
    """The text with an entry more, at the end of its list."""
    found = _found_in(text)
    if found is None:
        return f"{text}keys:\n{in_lines(entry, 0)}"
    root, keys = found
    start, end = keys.start_mark.index, keys.end_mark.index
    if not keys.value and root.flow_style:
        return f"{text[:start]}[{in_one_line(entry)}]{text[end:]}"
    if not keys.value:
        return f"{text[:start].rstrip()}\n{in_lines(entry, root.start_mark.column)}{text[end:].lstrip(' ')}"
    if keys.flow_style:
        last = keys.value[-1].end_mark.index
        return f"{text[:last]}, {in_one_line(entry)}{text[last:]}"
    # A keys file holds nothing but its list, so the end of the file is the end of the list.
    return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{in_lines(entry, keys.start_mark.column)}"


def with_disabled(text: str, index: int) -> str:
    """The text with `disabled: true` in the entry at this place of the list."""
    found = _found_in(text)
    if found is None:
        return text
    entry = found[1].value[index]
    members = {name.value: (name, value) for name, value in entry.value}
    if "disabled" in members:
        value = members["disabled"][1]
        return f"{text[: value.start_mark.index]}true{text[value.end_mark.index :]}"
    name, value = members["id"]
    end = value.end_mark.index
    if entry.flow_style:
        return f"{text[:end]}, disabled: true{text[end:]}"
    end = text.find("\n", end) if "\n" in text[end:] else len(text)
    return f"{text[:end]}\n{' ' * name.start_mark.column}disabled: true{text[end:]}"


def _found_in(text: str) -> tuple[yaml.MappingNode, yaml.SequenceNode] | None:
    """The one mapping of a keys file, and the list in it, each with where it stands."""
    match yaml.compose(text, Loader=yaml.SafeLoader):
        case yaml.MappingNode(value=[(_, yaml.SequenceNode() as keys)]) as root:
            return root, keys
    return None


def in_lines(entry: dict[str, Any], column: int) -> str:
    """An entry of a list in block form, at a column."""
    return indent(_dumped([entry], flow=False), " " * column)


def in_one_line(entry: dict[str, Any]) -> str:
    """An entry of a list in flow form."""
    return _dumped(entry, flow=True).strip()


def _dumped(value: Any, *, flow: bool) -> str:
    def dump(*, as_it_is: bool) -> str:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=as_it_is, default_flow_style=flow, width=WIDTH)

    text = dump(as_it_is=True)
    # This one line break PyYAML reads otherwise than it writes it.
    return dump(as_it_is=False) if "\x85" in text else text


def keys_in(text: str) -> list[dict[str, Any]]:
    return list((yaml.safe_load(text) or {"keys": []})["keys"])


@contextmanager
def _alone_with(file: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile by this module."""
    if file.is_symlink():
        raise ConfigError(
            f"{file}: this is a symbolic link, as where Kubernetes mounts a Secret: change the file that the Secret is "
            "made from, or name the one that the link leads to"
        )
    try:
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Not every file system can lock a directory; there it goes without.
            with suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be changed: {error.strerror}") from None


def _replace(file: Path, text: str, wanted: list[dict[str, Any]]) -> None:
    try:
        as_wanted = keys_in(text) == wanted
    except (yaml.YAMLError, ValueError):
        as_wanted = False
    if not as_wanted:
        raise ConfigError(
            f"{file}: it is written in a form that cannot be changed here without harm to the rest: let its list stand "
            "below 'keys:', each entry with a dash, without anchors, or change it by hand"
        )
    beside = file.with_name(f".{file.name}.new")
    beside.unlink(missing_ok=True)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            if file.exists():
                _keep_readers(descriptor, file)
            os.fsync(descriptor)
        load_keys(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _keep_readers(descriptor: int, file: Path) -> None:
    """Who owned the file owns the new one, and its group may go on reading: a gateway may run as another user."""
    before = file.stat()
    with suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, MODE | before.st_mode & GROUP_READS)
