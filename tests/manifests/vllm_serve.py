"""What `vllm serve` takes: the flags of the help that one version printed, and what is wrong with a list of arguments.

The help is a capture of `vllm serve --help=all`. A flag's form is in its head (`--port PORT`,
`--kv-cache-dtype {auto,fp8}`, `--enable-lora, --no-enable-lora`); what kind of value it takes is only in its text: a
default that is a number, a word about JSON or about "human-readable integers".
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from tests.running import CAPTURES

Kind = Literal["switch", "integer", "number", "size", "json", "choice", "text"]

HELP = CAPTURES / "serve-help-all.txt"
HEAD = re.compile(r"^  (?=-)", re.MULTILINE)
NAME = re.compile(r"(?<![\w-])--?[a-z][\w.-]*")
CHOICES = re.compile(r"^\s*(?:\{([^}]*)\}|(\['[^\]]*\]))")
DEFAULT = re.compile(r"\(default: ([^)]*)\)$")
# Numbers whose default is None: the help does not say what they are.
INTEGERS = {"--max-num-queued-reqs", "--max-num-seqs", "--max-cpu-loras", "--max-num-partial-prefills"}
SIZE = re.compile(r"-1|auto|\d+(\.\d+)?[kmgKMG]?")


@dataclass(frozen=True)
class Flag:
    """One entry of the help, by all its names."""

    names: tuple[str, ...]
    kind: Kind
    choices: tuple[str, ...] = ()

    def refuses(self, value: str) -> bool:
        match self.kind:
            case "switch":
                return True
            case "choice":
                return value not in self.choices
            case "integer":
                return re.fullmatch(r"-?\d+", value) is None
            case "number":
                return re.fullmatch(r"-?\d+(\.\d+)?", value) is None
            case "size":
                return SIZE.fullmatch(value) is None
            case "json":
                return not _is_json(value)
            case "text":
                return not value


@cache
def flags() -> dict[str, Flag]:
    """Each name of each flag."""
    return {name: flag for flag in _entries(HELP.read_text("utf-8")) for name in flag.names}


@cache
def version() -> str:
    """Of the vLLM that printed the help: its texts link to the documentation of that version."""
    found = set(re.findall(r"docs\.vllm\.ai/en/v([\d.]+)/", HELP.read_text("utf-8")))
    assert len(found) == 1, found
    return str(found.pop())


def faults(arguments: Sequence[str]) -> list[str]:
    """What vLLM would refuse, or take for something else: a model first, then `--flag` and `--flag=value`."""
    if not arguments or arguments[0].startswith("-"):
        return ["the first argument is not a model"]
    found = [fault for each in arguments[1:] if (fault := _fault(each)) is not None]
    count = Counter(each.partition("=")[0] for each in arguments[1:])
    return found + [f"{name} is there {times} times" for name, times in count.items() if times > 1]


def values(arguments: Sequence[str]) -> dict[str, str]:
    """Flag to value; a switch has an empty one."""
    parts = [each.partition("=") for each in arguments[1:]]
    return {name: value for name, _, value in parts}


def _fault(argument: str) -> str | None:
    name, equals, value = argument.partition("=")
    if not argument.startswith("--"):
        return f"{argument!r} is no flag: a stray word, or a value parted from its flag"
    flag = flags().get(name)
    if flag is None:
        return f"vLLM {version()} has no {name}"
    if flag.kind == "switch":
        return f"{name} takes no value" if equals else None
    if not equals:
        return f"{name} wants a value"
    return f"{name} does not take {value!r} ({flag.kind})" if flag.refuses(value) else None


def _entries(text: str) -> Iterator[Flag]:
    for entry in HEAD.split(text)[1:]:
        head = re.split(r"\n|  +| or name registered", entry, maxsplit=1)[0]
        names = tuple(NAME.findall(re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", head)))
        rest = head.removeprefix(names[0])
        kind, choices = _kind(names[0], rest, " ".join(entry.removeprefix(head).split()))
        yield Flag(names, kind, choices)


def _kind(name: str, rest: str, text: str) -> tuple[Kind, tuple[str, ...]]:
    if not rest.strip() or rest.startswith(","):
        return "switch", ()
    if listed := CHOICES.match(rest):
        return "choice", tuple(part.strip(" '") for part in (listed[1] or listed[2].strip("[]")).split(","))
    if "valid JSON string" in text:
        return "json", ()
    if "human-readable integers" in text:
        return "size", ()
    default = DEFAULT.search(text)
    shown = default[1] if default else ""
    if name in INTEGERS or re.fullmatch(r"-?\d+", shown):
        return "integer", ()
    if "range from 0 to 1" in text or re.fullmatch(r"-?\d+\.\d+", shown):
        return "number", ()
    return "text", ()


def _is_json(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return False
