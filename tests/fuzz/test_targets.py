"""Every parser has a target; what was found before stays mended; a few hundred mutations break no word."""

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import gateway
from tests.fuzz.mutating import inputs
from tests.fuzz.registry import NO_PARSERS, READING, TARGETS

HERE = Path(__file__).parent
ROOT = Path(gateway.__file__).parents[1]
KEPT = sorted(file for folder in ("corpus", "crashes") for file in (HERE / folder).glob("*/*"))
MAX_CORPUS_BYTES = 200_000
EXAMPLES = 120


def imported(file: Path) -> set[str]:
    """The first words of what a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def modules() -> dict[str, set[str]]:
    """Our modules, and what each imports."""
    files = (ROOT / "gateway").rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): imported(file) for file in files}


def test_every_module_that_may_read_bytes_has_a_target_or_a_reason() -> None:
    reading = {name for name, found in modules().items() if found & READING}
    covered = {parser for target in TARGETS.values() for parser in target.parsers}
    assert covered <= modules().keys()
    assert not covered & NO_PARSERS.keys()
    assert sorted(reading - covered - NO_PARSERS.keys()) == [], "add a target, or say in NO_PARSERS why there is none"
    assert sorted(NO_PARSERS.keys() - reading) == []


def test_the_corpus_is_small_and_of_known_targets() -> None:
    assert {file.parent.name for file in KEPT} <= TARGETS.keys()
    assert sum(file.stat().st_size for file in KEPT) <= MAX_CORPUS_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_breaks_no_word(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    for file in KEPT:
        if file.parent.name == name:
            target.run(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_break_no_word(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def hold(data: bytes) -> None:
        target.run(data)

    hold()
