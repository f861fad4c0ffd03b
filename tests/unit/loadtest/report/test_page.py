"""docs/load-tests.md says of the comparison what it does."""

import re
from pathlib import Path

from loadtest.report import wording
from loadtest.report.compare import BARS, BEYOND, FIGURES_MAY, Bar, may_move

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "load-tests.md").read_text("utf-8")


def row(bar: Bar) -> str:
    return f"p{bar.percentile * 100:.0f} of a time" if bar.times else bar.name


def test_the_page_tells_what_each_measure_may_move() -> None:
    told = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", PAGE.partition("| measure |")[2], re.MULTILINE))
    true = {row(bar): may_move(bar, 1.0) for bar in BARS}
    true["a figure of the stand: CPU, memory"] = wording.share(FIGURES_MAY)
    assert {name: told.get(name) for name in true} == true


def test_the_page_tells_from_how_many_a_percentile_is_judged() -> None:
    assert BEYOND == 5
    assert "fewer than five requests beyond it" in " ".join(PAGE.split())
