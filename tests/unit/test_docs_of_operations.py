"""docs/operations.md is what the definitions of the metrics say, and all pages name metrics that there are."""

import re
from pathlib import Path

import pytest

from gateway.telemetry.definitions import DEFINITIONS
from scripts.write_operations_docs import GROUPS, PAGE, labels, page, series

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = {definition.name for definition in DEFINITIONS}
ENDINGS = ("_bucket", "_sum", "_count")


def test_the_page_is_what_the_definitions_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "run .venv/bin/python scripts/write_operations_docs.py"


def test_each_metric_stands_in_one_group() -> None:
    listed = [definition.name for _, definitions in GROUPS for definition in definitions]
    assert sorted(listed) == sorted(NAMES)


def test_each_row_has_as_many_cells_as_its_head() -> None:
    for part in re.findall(r"(?:^\|.*\n)+", page(), re.MULTILINE):
        assert len({line.count(" | ") for line in part.splitlines()}) == 1


def test_each_label_of_each_metric_is_explained() -> None:
    told = [(name.strip("`"), metrics) for name, metrics, _ in labels()]
    for definition in DEFINITIONS:
        for label in definition.labels:
            assert sum(name == label.name and f"`{definition.name}`" in metrics for name, metrics in told) == 1


def test_each_metric_is_counted_in_the_bound_of_series() -> None:
    metrics = [name for _, _, listed in series() for name in re.findall(r"`(\w+)`", listed)]
    assert sorted(metrics) == sorted(NAMES)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_metric_that_a_page_names_exists(file: Path) -> None:
    for name in re.findall(r"`(poolgate_[a-z_]+)[`{]", file.read_text("utf-8")):
        stem = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
        assert name in NAMES or stem in NAMES, name
