"""The table of this folder's docstring names every fault once, and tests that there are."""

import re
from importlib import import_module

from tests.integration import balancing

ROW = re.compile(r"^(F\d+)\s", re.MULTILINE)
TEST = re.compile(r"^     - ([\w.]+)\.(test_\w+)$", re.MULTILINE)
FAULTS = (*range(1, 10), 11, 12, 13, 14, 15, 16, 18, 20, *range(22, 31), 48, *range(51, 57), 73, 108)
"""The numbers that are missing in between are no faults of a pod's, or nobody's."""


def test_each_fault_has_its_row_and_at_least_one_test() -> None:
    _, *rows = ROW.split(balancing.__doc__ or "")
    names, texts = rows[::2], rows[1::2]
    assert names == [f"F{number}" for number in FAULTS]
    assert all(TEST.search(text) for text in texts)


def test_each_test_that_the_table_names_is_there() -> None:
    found = TEST.findall(balancing.__doc__ or "")
    assert len(found) == (balancing.__doc__ or "").count("     - ") > 60
    for module, name in found:
        assert hasattr(import_module(f"tests.integration.{module}"), name), f"{module}.{name}"
