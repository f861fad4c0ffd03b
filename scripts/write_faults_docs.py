#!/usr/bin/env python3
"""Plays the fault scenes and writes docs/faults.md from them; exit 1 if one did not end as it must.

What is listed is the registry of scenes; the result comes from the run. A test compares the page with the registry, and
the suite plays the same scenes: a page that says they hold stays true.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.scenes.defences import defences
from tests.scenes.promises import Promise
from tests.scenes.rows import SECTIONS
from tests.scenes.scene import Scene, scenes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
SCENES = ROOT / "tests" / "scenes" / "test_scenes.py"

HOLDS, FAILS, NOT_PLAYED = "holds", "**fails**", "not played"
"""A scene's results."""

HEAD = """\
# Faults, and what happens

<!-- Written by scripts/write_faults_docs.py, which plays the scenes of tests/scenes. Change those, not this page. -->

{rows} faults that a gateway meets, and {scenes} scenes that inject them: scripted clients and pods, at the level of
bytes, on real sockets, with a real server of Redis' protocol and a stand-in for the Kubernetes API. `make scenes` plays
them all and writes this page; the suite plays them in each run. F5b is a second scene of the fault F5.

- **A scene holds** when what its sentence says has happened, and when afterwards nothing is left: no request in flight,
  queued or leased, no connection, no descriptor, no task, less than 5 MiB of memory; the ops port answers; each request
  has one line in the access log; each error has OpenAI's shape and a request id; no prompt, key or address stands in a
  log, a metric or an error. What chats were told is compared with what pods said, by the [invariants](soak.md).
- **A defence is proved** when the same scene fails without it, for the reason that the scene names. A gateway is then
  built with that one part replaced by a careless one ({defences} of them); nothing in the product can be told to. Each
  scene names a defence, and each defence has a scene.
- **Nobody holds a watch.** Deadlines are reached by a leap of the gateway's own clock; those of the kernel, of Redis
  and of the event loop are waited for. Costs are judged by what is held and counted; processor time, by that of
  something plain in the same run. The figures are in [performance](performance.md).

In this order: [the promises](#the-promises), [the scenes](#the-scenes), [the defences](#the-defences).
"""


def played() -> dict[str, bool]:
    """Which scenes held, and which failed without a defence, by the ids of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # A process of its own: pytest wants to be the first to import what it rewrites.
        subprocess.run([sys.executable, "-m", "pytest", str(SCENES), f"--junitxml={report}"], cwd=ROOT)  # noqa: S603
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  # written by our own pytest
    return {case.get("name", "").partition("[")[2].rstrip("]"): not len(case) for case in cases}


def all_well() -> dict[str, bool]:
    """As it must be."""
    found = {scene.id: True for scene in scenes()}
    return found | {without_id(scene, each.defence.name): True for scene in scenes() for each in scene.without}


def without_id(scene: Scene, defence: str) -> str:
    """The id of the test that plays a scene without a defence."""
    return f"{scene.name}-without-{defence}"


def page(passed: Mapping[str, bool]) -> str:
    """The whole page."""
    found = scenes()
    rows = sum(len(section.rows) for section in SECTIONS)
    parts = [HEAD.format(rows=rows, scenes=len(found), defences=len(defences()))]
    parts.append("## The promises\n")
    parts.append(table(("promise", "scenes", "hold", "defences proved", "shown besides by"), promises(found, passed)))
    parts.append("## The scenes\n")
    for section in SECTIONS:
        parts.append(f"### {section.title}\n")
        own = [scene for scene in found if scene.row in section.rows]
        parts.append(table(("", "fault", "what happens", "result", "fails without"), listed(section.rows, own, passed)))
    parts.append("## The defences\n")
    parts.append(table(("defence", "what it does", "scenes"), defended(found)))
    return "\n".join(parts)


def promises(found: Sequence[Scene], passed: Mapping[str, bool]) -> Iterator[tuple[str, ...]]:
    """How each promise fares."""
    for promise in Promise:
        own = [scene for scene in found if scene.promise is promise]
        holding = sum(passed.get(scene.id, False) for scene in own)
        proved = {
            each.defence.name
            for scene in own
            for each in scene.without
            if passed.get(without_id(scene, each.defence.name), False)
        }
        yield promise.value, str(len(own)), str(holding), str(len(proved)), promise.besides


def listed(rows: Mapping[int, str], found: Sequence[Scene], passed: Mapping[str, bool]) -> Iterator[tuple[str, ...]]:
    """The scenes of each row, whose fault stands beside the first of them."""
    for number, title in rows.items():
        for scene in found:
            if scene.row == number:
                yield scene.name, title, scene.sentence, result(scene, passed), ", ".join(lacking(scene, passed))
                title = ""


def result(scene: Scene, passed: Mapping[str, bool]) -> str:
    """Of a scene."""
    return NOT_PLAYED if scene.id not in passed else HOLDS if passed[scene.id] else FAILS


def lacking(scene: Scene, passed: Mapping[str, bool]) -> Iterator[str]:
    """The defences without which it fails; one of which that is not so is said to be."""
    for each in scene.without:
        proved = passed.get(without_id(scene, each.defence.name), False)
        yield f"`{each.defence.name}`{'' if proved else ' (**not shown**)'}"


def defended(found: Sequence[Scene]) -> Iterator[tuple[str, ...]]:
    """Each defence, and the scenes that fail without it."""
    for defence in defences():
        own = [scene.name for scene in found if defence in [each.defence for each in scene.without]]
        yield f"`{defence.name}`", defence.sentence, ", ".join(own)


def table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    passed = played()
    PAGE.write_text(page(passed), "utf-8")
    sys.exit(0 if passed == all_well() else 1)
