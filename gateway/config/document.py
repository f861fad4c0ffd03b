"""A YAML file with the line of each key: it knows where a value comes from, and so where its fault is to be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.config.environment import PREFIX, variable
from gateway.config.faults import ConfigError, Fault, KeyPath, yaml_mend

_NOT_THAT_KIND = (ValueError, KeyError, AttributeError)
"""What PyYAML raises for a text that cannot be made what it looks like, or is tagged as."""


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file with the line of each key, and what was seen of it while it was read."""

    file: str
    value: Any
    lines: Mapping[KeyPath, int]
    faults: tuple[Fault, ...] = ()
    """What is wrong with it as a text."""
    filled: frozenset[KeyPath] = frozenset()
    """Where a variable, or a secret's file, was put in its place, or would be."""
    unknown: frozenset[KeyPath] = frozenset()
    """Those of them whose values are not known."""
    told_by: Mapping[KeyPath, str] = field(default_factory=dict)
    """The variable or flag that a value comes by, in place of the file."""

    def line_of(self, path: KeyPath) -> int | None:
        """Of the key, or of the next one above it; None if there are no lines."""
        if not self.lines and not self.value:
            return None
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def teller(self, path: KeyPath) -> tuple[KeyPath, str] | None:
        """The variable or flag that a value, or a key that holds it, comes by, and what that sets."""
        by = ((told, name) for told, name in self.told_by.items() if path[: len(told)] == told)
        inside = ((told, name) for told, name in self.told_by.items() if told[: len(path)] == path)
        return next(by, None) or (None if path in self.lines or not path else next(inside, None))

    def fault(self, path: KeyPath, text: str) -> Fault:
        """A fault there."""
        key, teller = ".".join(path) or "(file)", self.teller(path)
        if teller is not None:
            return Fault(teller[1], None, key, text)
        return Fault(self.file, self.line_of(path), key, text)

    def shows(self, path: KeyPath) -> bool:
        """Whether the value there stands in the file as it is."""
        return path not in self.filled and self.teller(path) is None

    def as_written(self, path: KeyPath, instead: KeyPath) -> str:
        """Another key, in the place of one, as it is written where that one came from."""
        teller = self.teller(path)
        if teller is not None and teller[1].startswith(PREFIX):
            return variable((*instead, *teller[0][len(path) :]))
        return instead[-1] if instead[:-1] == path[:-1] else ".".join(instead).replace("*", "NAME")


def read(file: Path) -> Document:
    """A file and its lines.

    Raises `ConfigError`.
    """
    try:
        return parsed(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigError([Fault(str(file), None, "", f"cannot be read: {error.strerror}")]) from None


def parsed(content: bytes, file: str) -> Document:
    """What stands in a file, and its lines. `file`: what faults call it.

    Raises `ConfigError`.
    """

    def broken(line: int | None, why: str) -> ConfigError:
        return ConfigError([Fault(file, line, "", why)])

    text = ""
    try:
        text = content.decode("utf-8")
        # Parsed once, for the values and their lines: ten thousand keys take seconds. Not by libyaml: what nests too
        # deeply ends the process there.
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        twice: list[Fault] = []
        _note_lines(node, (), lines, twice, file)
        value = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise broken(line, "is not UTF-8 text: save it as UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise broken(line, "is not valid YAML: a control character stands here: remove it") from None
    except yaml.MarkedYAMLError as error:
        at, before = error.problem_mark, error.context_mark
        line = at.line + 1 if at is not None else 1
        place, why = yaml_mend(error.problem or "", error.context or "", line, before.line + 1 if before else line)
        raise broken(place, f"is not valid YAML: {why}") from None
    except yaml.YAMLError as error:
        raise broken(1, f"is not valid YAML: {error}") from None
    except _NOT_THAT_KIND:
        # It may be a secret: it is not repeated.
        why = "what looks like a date, or is tagged as a number, is none: put it in quotes"
        raise broken(_line_of_no_date(node), f"is not valid YAML: {why}") from None
    except RecursionError:
        raise broken(1, "is not valid YAML: it nests too deeply, or a part of it holds itself") from None
    return Document(file, value, lines, tuple(twice))


def _note_lines(
    node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], twice: list[Fault], file: str
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below, line = (*path, str(key.value)), key.start_mark.line + 1
            if below in lines:
                text = f"this key stands here twice, on line {lines[below]} too: keep one of them"
                twice.append(Fault(file, line, ".".join(below), text))
            lines[below] = line
            _note_lines(value, below, lines, twice, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, str(index))
            lines[below] = value.start_mark.line + 1
            _note_lines(value, below, lines, twice, file)


def _line_of_no_date(node: yaml.Node | None) -> int:
    """Of the first value that cannot be made what it looks like."""
    waiting, loader = [node], yaml.SafeLoader("")
    while waiting:
        each = waiting.pop()
        if isinstance(each, yaml.ScalarNode):
            try:
                loader.construct_object(each)
            except _NOT_THAT_KIND:
                return int(each.start_mark.line) + 1
        elif isinstance(each, yaml.MappingNode):
            waiting += [value for pair in reversed(each.value) for value in reversed(pair)]
        elif isinstance(each, yaml.SequenceNode):
            waiting += reversed(each.value)
    return 1
