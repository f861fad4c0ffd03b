#!/usr/bin/env python3
"""Writes docs/smuggling.md by asking the gateway and every parser that can be had; a test fails when the page is stale.

What the gateway does is pinned in tests/smuggling; what others do is as measured on the day, with their versions.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.smuggling.answers import ANSWERS  # noqa: E402  # below the path to them
from tests.smuggling.judging import seen_by, tried, verdict  # noqa: E402
from tests.smuggling.parsers import FUZZERS, PARSERS, recorder  # noqa: E402
from tests.smuggling.vectors import SECTIONS, VECTORS, Vector  # noqa: E402

PAGE = ROOT / "docs" / "smuggling.md"

HEAD = """\
# Smuggling: what is taken for one request

<!-- Written by scripts/write_smuggling_docs.py from tests/smuggling. Change those, not this page. -->

Two parsers that read the same bytes in two ways let a request hide in another one's body. Three things keep that out:

- **The gateway takes what means one thing.** What the RFC leaves to the reader, it refuses, and closes the connection:
  nothing that comes behind a refusal is read.
- **A pod never sees a caller's framing.** Its request is written anew, with one Content-Length and none of the caller's
  header lines but a few values.
- **A pod's answer is read with the same suspicion**, and its connection is not used again unless the answer ended where
  it said it would.

`tests/smuggling` sends each of these over real sockets, with servers of {count} other makes as the pod in turn: it sees
one request for each that is taken, with exactly its bytes, and none for one that is refused. The other columns are
those servers asked directly, as an application behind them sees it:

- **one**: one request, with the body that was meant.
- **one, other body**: one request whose body is another.
- **two**: two requests. That is right where two were sent, one behind the other.
- **refused**: an error, then closed. **refused, open**: an error, and the connection stays. **closed**: without a word.
- **no route**: 404 or 405; only the gateway has routes.
- **waits**: for more. **two answers**: none of which reached the application.

Measured with {versions}.

"""
ANSWERS_HEAD = """\
## Answers

What a pod says, what the client gets, and whether the pod's connection may serve the next request.

| answer | client gets | connection |
|---|---|---|
"""


async def asked(kind: str) -> Mapping[str, str]:
    """What a parser makes of each vector, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        async with recorder(kind, Path(folder)) as server:
            told = await tried(server.port, VECTORS)
            seen = seen_by(server)
    return {vector.name: verdict(vector, said, seen.get(said.port, [])) for vector, said in told.items()}


def versions() -> str:
    """Of the parsers."""

    def of_program(*command: str) -> str:
        told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # words of our own
        return (told.stdout or told.stderr).strip().rpartition("/")[2].removeprefix("v").split()[0]

    def in_fuzzers(name: str) -> str:
        code = f"from importlib.metadata import version; print(version({name!r}))"
        return of_program(str(FUZZERS), "-c", code)

    found = {name: version(name) for name in ("h11", "httptools", "aiohttp")}
    found |= {name: in_fuzzers(name) for name in ("gunicorn", "waitress")}
    found |= {"node": of_program("node", "--version"), "nginx": of_program("nginx", "-v")}
    return ", ".join(f"{name} {found[name]}" for name in PARSERS)


def rows(vectors: Iterable[Vector], others: Mapping[str, Mapping[str, str]]) -> str:
    """The lines of a section's table."""
    told = [f"| request | RFC | **gateway** | {' | '.join(PARSERS)} |", f"|{'---|' * (3 + len(PARSERS))}"]
    for vector in vectors:
        columns = " | ".join(others[kind][vector.name] for kind in PARSERS)
        told.append(f"| {pinned(vector)} | {columns} |")
    return "\n".join(told) + "\n"


def pinned(vector: Vector) -> str:
    """What the tests hold of a row: its first three columns."""
    return f"{vector.name} | {vector.law} | **{vector.ours}**"


def answers() -> str:
    """The table of answers."""
    lines = (f"| {told.name} | {told.status} | {'kept' if told.kept else 'closed'} |" for told in ANSWERS)
    return ANSWERS_HEAD + "\n".join(lines) + "\n"


async def page() -> str:
    """The whole page."""
    others = {kind: await asked(kind) for kind in PARSERS}
    sections = (f"## {name}\n\n{rows(vectors, others)}" for name, vectors in SECTIONS.items())
    return HEAD.format(count=len(PARSERS), versions=versions()) + "\n".join(sections) + "\n" + answers()


if __name__ == "__main__":
    PAGE.write_text(asyncio.run(page()), "utf-8")
