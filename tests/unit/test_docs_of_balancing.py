"""docs/balancing.md says the code's own numbers, words and metrics."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from gateway.api.status import WHY
from gateway.pipeline.retries import BLAME
from gateway.telemetry.definitions import DEFINITIONS
from gateway.upstream.failure import Failure

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "balancing.md").read_text("utf-8")
NUMBER = re.compile(r"^\|[^|]+\| ([\d.,]+)[^|]*\| `(\w+)\.([A-Z_]+)` \|$", re.MULTILINE)
HOMES = ("gateway.balancing", "gateway.pipeline", "gateway.cli", "gateway")


def section(heading: str) -> str:
    """What stands below a heading, up to the next one of its kind."""
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def value(module: str, constant: str) -> float:
    """The constant's value; the module is named without its package."""
    for home in HOMES:
        if (ROOT / home.replace(".", "/") / f"{module}.py").exists():
            return float(getattr(import_module(f"{home}.{module}"), constant))
    raise AssertionError(f"no module {module}")


def test_each_row_of_the_numbers_is_understood() -> None:
    rows = [line for line in section("The numbers").splitlines() if line.startswith("| ")]
    assert len(NUMBER.findall(TEXT)) == len(rows) - 1 > 30


@pytest.mark.parametrize(("told", "module", "constant"), NUMBER.findall(TEXT))
def test_each_number_is_the_codes(told: str, module: str, constant: str) -> None:
    assert float(told.replace(",", "")) == value(module, constant)


def test_each_decision_has_its_row() -> None:
    told = re.findall(r"^\| `(\w+)` \|", section("Why did it go there?"), re.MULTILINE)
    assert sorted(told) == sorted(WHY)


def test_each_metric_that_is_named_exists() -> None:
    named = set(re.findall(r"`(poolgate_\w+)", section("Metrics")))
    assert len(named) > 8
    assert named <= {definition.name for definition in DEFINITIONS}


def test_each_reason_of_a_retry_that_is_named_exists() -> None:
    reasons = re.findall(r"`([a-z_]+)`", section("Metrics").partition("`poolgate_retries_total")[2].partition("\n")[0])
    assert set(reasons) <= {str(failure) for failure in Failure}
    assert {Failure(reason) for reason in reasons} <= BLAME.keys()
