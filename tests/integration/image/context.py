"""What the builder is sent of this folder: `.dockerignore`, read as Docker reads it.

The last pattern that a path or a folder above it matches decides; `!` lets in what an earlier one kept out.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.integration.image.dockerfile import ROOT

DOCKERIGNORE = ROOT / ".dockerignore"
PIECES = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")


class Ignore:
    """The patterns, in order."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self.patterns = [
            (line.removeprefix("!"), line.startswith("!")) for line in lines if line and not line.startswith("#")
        ]
        self._matchers = [(_matcher(pattern), lets_in) for pattern, lets_in in self.patterns]

    def lets_in(self, path: str) -> bool:
        """Whether a path, relative to the folder, is sent."""
        sent = True
        for matcher, lets_in in self._matchers:
            if matcher.match(path):
                sent = lets_in
        return sent

    def may_hold(self, folder: str) -> bool:
        """Whether something below may be sent."""
        return self.lets_in(folder) or any(
            lets_in and pattern.startswith(f"{folder}/") for pattern, lets_in in self.patterns
        )


def _matcher(pattern: str) -> re.Pattern[str]:
    """Of a path, or of anything below one that the pattern means."""
    said = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(said.get(piece, re.escape(piece)) for piece in PIECES.findall(pattern)) + r"(?:/.*)?\Z")


def sent(root: Path, ignore: Ignore) -> Iterator[str]:
    """The files that the builder gets."""
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if ignore.may_hold((here / name).as_posix()))
        yield from (path for name in sorted(files) if ignore.lets_in(path := (here / name).as_posix()))


def export(target: Path) -> list[str]:
    """A clean copy of what is sent."""
    names = list(sent(ROOT, Ignore(DOCKERIGNORE.read_text("utf-8"))))
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return names
