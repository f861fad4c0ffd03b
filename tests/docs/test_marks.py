"""No command of a page slips through: each block is run, marked with what it wants, or claimed by another test."""

import ast
import re
import shlex
import subprocess
import sys
from itertools import pairwise, takewhile
from pathlib import PurePath

import pytest

from tests.docs.claims import BLOCKS, IN_PASSING, SPANS, Claim
from tests.docs.pages import ALL, COMMAND, PAGES, ROOT, TYPED, WANTS, Block, blocks, spans
from tests.docs.test_commands import SENTENCES, of_others

CLAIMS = (*BLOCKS, *SPANS)
each_page = pytest.mark.parametrize("page", PAGES)
KNOWN = frozenset({"", "console", "csv", "diff", "dockerfile", "js", "json", "promql", "python", "sh", "text", "yaml"})
"""Languages that a test knows what to do with, or that nobody types."""


def test_there_are_blocks_of_each_kind() -> None:
    assert len([block for block in ALL if block.language in TYPED]) > 40
    assert any(block.wants for block in ALL)
    assert {"README.md", "docs/keys.md", "deploy/prometheus/README.md"} <= set(PAGES)


@each_page
def test_every_block_is_of_a_language_that_is_looked_after(page: str) -> None:
    for block in blocks(page):
        assert block.language in KNOWN, block.name
        assert not block.indented, f"{block.name}: a block in a list is seen by no test; begin it at the margin"


@each_page
def test_what_can_be_typed_is_marked_as_such(page: str) -> None:
    """A command in a block without a language would be run by nobody."""
    for block in blocks(page):
        if block.language in ("", "text") and "Poolgate is up" not in block.text:
            typed = [line for line in block.text.splitlines() if COMMAND.match(line)]
            assert typed == [], f"{block.name}: give it the language sh"


@each_page
def test_a_mark_names_wants_of_the_list_and_stands_before_something_to_type(page: str) -> None:
    marked = [block for block in blocks(page) if block.wants]
    for block in marked:
        assert set(block.wants) <= WANTS, block.name
        assert block.language in TYPED, block.name
    lines = [line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("*Wants")]
    assert len(lines) == len(marked), f"{page}: a mark stands directly before a block"


def test_every_want_is_wanted() -> None:
    assert {want for block in ALL for want in block.wants} == WANTS


@pytest.mark.parametrize("block", [pytest.param(each, id=each.name) for each in ALL if each.wants])
def test_what_is_marked_names_files_and_options_that_exist(block: Block) -> None:
    """It cannot be run here; what it names can be looked up."""
    words = shlex.split(block.script, comments=True)
    for flag, value in pairwise(part for word in words for part in word.split("=", 1)):
        if flag in ("-k", "-f", "--filename", "--from-file") and not value.startswith(("-", "http")):
            assert (ROOT / value).exists() or _is_made(block, value), f"{block.name}: {value}"
    for module, options in re.findall(r"python -m ([\w.]+)([^#\n]*)", block.script):
        # Its command, if it has several: what stands before the first option.
        before = takewhile(lambda word: not word.startswith("-"), options.split())
        asked = [sys.executable, "-m", module, *before, "--help"]
        told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"--[\w-]+", options)) <= set(re.findall(r"--[\w-]+", told)), module


def _is_made(block: Block, path: str) -> bool:
    """Whether the page shows the file, or makes it, or the folder that it is in, before or in this block."""
    folder = re.escape(path.partition("/")[0]) if "/" in path else r"(?!)"
    made = re.compile(
        rf"(?:> |--file )(?:\S*/)?{re.escape(path)}\b|--folder {folder}\b|mkdir (?:-p )?{re.escape(path)}\b"
    )
    earlier = [each for each in blocks(block.page) if each.line <= block.line]
    shown = {each.file for each in earlier if each.file} | {
        str(PurePath(each.file).parent) for each in earlier if each.file
    }
    return path in shown or any(made.search(each.text) for each in earlier)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.begins[:40].strip()}")
def test_a_claim_is_true(claim: Claim) -> None:
    """There is such a block, and a test of that name, which knows it."""
    if claim in BLOCKS:
        found = [block for block in blocks(claim.page) if block.language in TYPED and block.begins(claim.begins)]
        assert len(found) == 1
        assert not found[0].wants, "marked and claimed"
    else:
        assert claim.begins in spans(claim.page)
    path, _, name = claim.test.partition("::")
    source = (ROOT / path).read_text("utf-8")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, functions)}
    assert claim.known_by in source
    assert bool(claim.word) >= bool(claim.why)


@each_page
def test_every_command_in_a_sentence_is_run_somewhere(page: str) -> None:
    """Those of `poolgate` and `make` are held to their options and targets by tests/unit/test_docs.py."""
    claimed = {claim.begins for claim in SPANS if claim.page == page} | IN_PASSING
    claimed |= {span for of, span in SENTENCES if of == page}
    for span in spans(page):
        words = span.split()
        if len(words) > 2 and COMMAND.match(span) and words[0] not in ("poolgate", "make", ".venv/bin/poolgate"):
            assert span in claimed, f"{page}: `{span}`: make it a block, or claim it in tests/docs/claims.py"


@pytest.mark.parametrize(
    "target", sorted({t for p in PAGES for s in spans(p) for t in re.findall(r"^make ([a-z-]+)", s)})
)
def test_make_knows_every_target_that_is_named(target: str) -> None:
    """What it would do; that it does it, CI shows for `make test`, and test_commands for `make demo`."""
    asked = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr


def test_blocks_of_others_are_not_run_twice() -> None:
    assert sum(of_others(block) for block in ALL) == len(BLOCKS)
