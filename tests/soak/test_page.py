"""The page on the soak says what there is."""

from pathlib import Path

from loadtest.invariants import RULES
from tests.soak.faults import FAULTS

PAGE = (Path(__file__).parents[2] / "docs" / "soak.md").read_text()


def test_the_page_has_every_invariant_in_its_own_words() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| I")]
    paragraphs = [(rule.__doc__ or "").partition("\n\n")[0] for rule in RULES]
    told = [f"| {rule.name} | {' '.join(words.split())} |" for rule, words in zip(RULES, paragraphs, strict=True)]
    assert rows == told


def test_the_page_counts_the_kinds_of_faults() -> None:
    assert f"{len(FAULTS)} kinds" in PAGE
