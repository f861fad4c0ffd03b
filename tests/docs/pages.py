"""The pages as a reader meets them: their blocks, what each shows, and what a machine must have to run it.

A block of language `sh` is a script; in one of language `console` the lines behind `$` are typed, and the others are
what comes of it. What cannot run on a bare machine says so in a line of its own directly before the block, which begins
with `*Wants`: `*Wants a cluster.*`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    str(file.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md")
    for file in sorted(ROOT.glob(pattern))
)

WANTS = frozenset(
    {
        "Azure",
        "Helm",
        "Open WebUI",
        "a GPU",
        "a cluster",
        "a docker engine",
        "a registry",
        "two idle cores",
    }
)
"""All that a mark may name, with ` and ` between."""
TYPED = frozenset({"sh", "console"})
"""The languages of what is typed."""
PROGRAMS = (
    r"az|brew|cat|cd|cp|curl|docker|eksctl|export|gcloud|git|helm|kubectl|make|npm|open-webui|pip|poolgate|promtool|"
    r"python3?|sed|sudo|vllm|crane"
)
"""First words by which a command is known."""
COMMAND = re.compile(rf"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:{PROGRAMS})(?=\s|$)")

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<ticks>```+|~~~+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"\*Wants ([^*]+)\.\*")
_FILE = re.compile(r"`([\w./-]+)`:$")
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    """From the repository's root: docs/keys.md."""
    line: int
    """That of its fence."""
    language: str
    text: str
    before: str
    """The last line before it that holds anything."""
    indented: bool = False

    @property
    def name(self) -> str:
        """How a test names it."""
        return f"{self.page}:{self.line}"

    @property
    def wants(self) -> tuple[str, ...]:
        """What its mark names; empty without one."""
        mark = _MARK.match(self.before)
        return tuple(mark[1].replace(", and ", " and ").split(" and ")) if mark else ()

    @property
    def file(self) -> str | None:
        """The file that it shows, where the line before says so: `poolgate.yaml`:"""
        named = _FILE.search(self.before)
        return named[1] if named else None

    @property
    def script(self) -> str:
        """What is typed."""
        return self.text if self.language == "sh" else "".join(line for line, typed in self._lines() if typed)

    @property
    def answer(self) -> str:
        """What the page says comes of it."""
        return "" if self.language == "sh" else "".join(line for line, typed in self._lines() if not typed)

    def begins(self, words: str) -> bool:
        """Whether its first command begins so."""
        return self.script.startswith(words)

    def _lines(self) -> Iterator[tuple[str, bool]]:
        """Each line of a dialogue, without its `$`, and whether it is typed."""
        goes_on = False
        for line in self.text.splitlines(keepends=True):
            typed = goes_on or line.startswith("$ ")
            yield (line if goes_on else line.removeprefix("$ ")), typed
            goes_on = typed and line.endswith("\\\n")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The code blocks of a page, from top to bottom."""
    text = (ROOT / page).read_text("utf-8")
    return tuple(
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"].strip(),
            found["text"],
            text[: found.start()].rstrip().rpartition("\n")[2],
            indented=bool(found["indent"]),
        )
        for found in _FENCE.finditer(text)
    )


@cache
def spans(page: str) -> tuple[str, ...]:
    """What stands in backticks in a page's sentences, in one line each."""
    prose = _FENCE.sub("", (ROOT / page).read_text("utf-8"))
    return tuple(" ".join(span.split()) for span in _SPAN.findall(prose))


def scripts(page: str) -> list[Block]:
    """The blocks of a page that a bare machine can run."""
    return [block for block in blocks(page) if block.language in TYPED and not block.wants]


ALL = tuple(block for page in PAGES for block in blocks(page))
