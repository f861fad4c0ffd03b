"""The table of this folder's docstring names every failure case once, and tests that there are."""

import re
from importlib import import_module

from tests.integration import discovery

ROW = re.compile(r"^(C\d+|F\d+)\s", re.MULTILINE)
TEST = re.compile(r"^    - (test_\w+)\.(test_\w+)$", re.MULTILINE)


def test_each_case_has_its_row_and_at_least_one_test() -> None:
    table = discovery.__doc__ or ""
    _, *rows = ROW.split(table)
    names, texts = rows[::2], rows[1::2]
    assert [name for name in names if name[0] == "C"] == [f"C{number}" for number in range(1, 29)]
    told = set(re.findall(r"F\d+", table))
    assert told == {f"F{number}" for number in (40, 41, 42, 43, 44, 45, 47, 58, 59)}
    assert all(TEST.search(text) for text in texts)


def test_each_test_that_the_table_names_is_there() -> None:
    found = TEST.findall(discovery.__doc__ or "")
    assert len(found) > 60
    for module, name in found:
        assert hasattr(import_module(f"tests.integration.discovery.{module}"), name), f"{module}.{name}"
