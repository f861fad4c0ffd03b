"""The SVGs: whole XML, the same from the same, nothing fetched, nothing outside the sheet, and what they must show."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from loadtest.load.plan import Objectives
from loadtest.load.record import Record
from loadtest.report.drawing import WIDTH
from loadtest.report.plots import Plot, plots_of
from loadtest.report.side import Mark, side_of
from tests.unit.loadtest.report.made import OBJECTIVES, record, risen, run, schedule

SVG = "{http://www.w3.org/2000/svg}"
RISEN = run(risen())
TWO = run(replace(risen(2), name="direct"), risen())
EVERY = [
    pytest.param(plot, id=f"{name}-{plot.name}") for name, of in (("one", RISEN), ("two", TWO)) for plot in plots_of(of)
]
each_plot = pytest.mark.parametrize("plot", EVERY)


def words(plot: Plot) -> list[str]:
    return [element.text or "" for element in ET.fromstring(plot.svg).iter(f"{SVG}text")]


def named(name: str) -> Plot:
    return next(plot for plot in plots_of(RISEN) if plot.name == name)


@each_plot
def test_a_plot_is_whole_xml_with_a_title(plot: Plot) -> None:
    root = ET.fromstring(plot.svg)
    assert root.tag == f"{SVG}svg"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert title.text.startswith("rising: ")


@each_plot
def test_a_plot_fetches_nothing_and_runs_nothing(plot: Plot) -> None:
    without_namespace = plot.svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//|href|url\(|@import|<script|<image|<foreignObject|\bon\w+=", without_namespace)


def test_the_same_run_is_drawn_in_the_same_bytes() -> None:
    assert plots_of(run(risen())) == plots_of(RISEN)
    assert plots_of(run(risen(3)))[0].svg != plots_of(RISEN)[0].svg


@each_plot
def test_nothing_is_drawn_outside_the_sheet(plot: Plot) -> None:
    root = ET.fromstring(plot.svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width == WIDTH
    for element in root.iter():
        if "x" in element.attrib:
            x, y = float(element.attrib["x"]), float(element.attrib["y"])
            letters = 6.2 * len(element.text or "") if element.tag == f"{SVG}text" else float(element.attrib["width"])
            begin = x - {"middle": letters / 2, "end": letters}.get(element.attrib.get("text-anchor", "start"), 0)
            assert begin >= 0, element.text
            assert begin + letters <= WIDTH + 1, element.text
            assert 0 <= y <= height
        for along, down in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", element.attrib.get("d", "")):
            assert 0 <= float(along) <= WIDTH
            assert 0 <= float(down) <= height


def test_a_plot_is_small_enough_to_commit() -> None:
    assert all(len(plot.svg) < 60_000 for plot in plots_of(TWO))


def test_the_knee_is_marked_where_the_measures_say() -> None:
    assert "knee: 10/s" in words(named("rate"))


def test_where_every_rate_held_there_is_no_knee() -> None:
    easy = run(risen(rates=(5, 10), slower=0.1))
    told = [text for plot in plots_of(easy) if plot.name == "rate" for text in words(plot)]
    assert not [text for text in told if text.startswith("knee")]


def test_without_an_objective_for_a_time_no_knee_is_claimed() -> None:
    loose = replace(risen(), objectives=Objectives())
    told = [text for plot in plots_of(run(loose)) if plot.name == "rate" for text in words(plot)]
    assert told
    assert not [text for text in told if "knee" in text or "at no rate" in text]


def test_every_fault_is_marked_and_told() -> None:
    told = words(named("timeline"))
    assert "kill pod chat-2" in told
    assert "26.0 s" in told
    assert told.count("1") == told.count("2") == 2, "once at the line and once below"


def test_many_faults_are_all_drawn_and_the_first_are_told() -> None:
    side = replace(risen(), marks=tuple(Mark(float(second), f"fault {second}") for second in range(30)))
    plot = next(plot for plot in plots_of(run(side)) if plot.name == "timeline")
    assert plot.svg.count('class="s-violet" stroke-width="1.5" stroke-linejoin="round" stroke-dasharray') == 30
    assert [text for text in words(plot) if text.startswith("fault")] == [f"fault {second}" for second in range(12)]
    assert "and 18 more" in words(plot)


def test_the_percentiles_of_each_side_are_told_beside_its_line() -> None:
    latency = next(plot for plot in plots_of(TWO) if plot.name == "latency")
    told = words(latency)
    assert {"direct", "gateway"} <= set(told)
    assert sum("p99 " in text for text in told) == 6


def test_two_events_of_one_read_do_not_flatten_the_other_gaps() -> None:
    records = [record(gap=0.01), record(gap=1e-6, tokens=3)]
    (told,) = [plot for plot in of(records) if plot.name == "latency"]
    assert {"10 ms", "5 ms"} <= set(words(told))


def test_an_objective_at_the_top_of_a_panel_does_not_lie_on_its_title() -> None:
    records = [record(waited=0.1), record(waited=0.3)]
    (told,) = [plot for plot in of(records) if plot.name == "latency"]
    at = {element.text: element.attrib for element in ET.fromstring(told.svg).iter(f"{SVG}text")}
    title, objective = at["Time to first token (TTFT)"], at["objective 500 ms"]
    assert abs(float(objective["y"]) - float(title["y"])) >= 14


def test_one_rate_is_not_drawn_against_the_rate() -> None:
    assert "rate" not in {plot.name for plot in plots_of(run(risen(rates=(5,))))}


def of(records: list[Record]) -> list[Plot]:
    return plots_of(run(side_of("gateway", records, schedule(records), OBJECTIVES)))


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record()],
        [record(waited=None)],
        [record(stream=False, waited=3.0)],
        [record(waited=0.0, gap=0.0)],
        [record(waited=1e-7, gap=0.0), record(at=0.9, waited=3000.0, tokens=2)],
    ],
    ids=["none", "one", "no answer", "no stream", "no time", "a nanosecond and an hour"],
)
def test_a_poor_run_is_drawn_as_far_as_it_goes(records: list[Record]) -> None:
    for plot in of(records):
        ET.fromstring(plot.svg)
        assert "nan" not in plot.svg
        assert "inf" not in plot.svg
