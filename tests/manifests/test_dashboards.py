"""The dashboards ask for what exists: every metric, label, value and variable, and in a way that makes sense of it."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import yaml

from gateway.telemetry.definitions import DEFINITIONS
from gateway.telemetry.metrics import Metrics
from scripts.dashboards.grafana import text_of
from scripts.dashboards.looks import MODES, OUTCOMES, STATES
from scripts.write_dashboards import DASHBOARDS, FOLDER
from tests.running import CAPTURES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dashboards.md"
RULES = ROOT / "deploy" / "prometheus" / "rules"

OF_TARGETS = frozenset({"job", "instance"})
"""Labels that Prometheus gives to what it scrapes. Of vLLM's pods `pod` is wanted as well, see docs/dashboards.md."""
IN_PLACE = {"$__rate_interval": "5m", "$__range": "1h", "$aliases": "", "$": ".*"}
"""What stands in for Grafana's variables when an expression is parsed; for all others the last one."""
VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")
GRAFANAS_OWN = {"__rate_interval", "__range", "__url_time_range", "__field", "__all"}
UNITS = {"s", "ops", "opm", "reqps", "short", "percentunit", "bytes"}
NEEDS_NO_LOOK = {"process_virtual_memory_bytes"}


class Metric(NamedTuple):
    """What may be asked of one series."""

    kind: str
    """`counter` or `gauge`; of a histogram, `bucket` or `counter`."""
    labels: frozenset[str]
    values: Mapping[str, frozenset[str]]
    """Those of closed sets, by label."""


def series(name: str, kind: str, labels: frozenset[str], values: Mapping[str, frozenset[str]]) -> dict[str, Metric]:
    """The series of one metric, by their names in PromQL."""
    if kind == "histogram":
        return {
            f"{name}_bucket": Metric("bucket", labels | {"le"}, values),
            f"{name}_sum": Metric("counter", labels, values),
            f"{name}_count": Metric("counter", labels, values),
        }
    return {name: Metric(kind, labels, values)}


def known() -> dict[str, Metric]:
    """Everything that a dashboard may ask for."""
    found: dict[str, Metric] = {}
    for ours in DEFINITIONS:
        closed = {label.name: frozenset(label.values) for label in ours.labels if label.values}
        found |= series(ours.name, ours.kind, OF_TARGETS | set(ours.label_names), closed)
    for line in (CAPTURES / "metrics-names.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, kind, *labels = line.split()
            found |= series(name, kind, OF_TARGETS | {"pod", *labels}, {})
    alerts = frozenset({"alertname", "alertstate", "severity", "pool", "model"})
    return found | {"ALERTS": Metric("gauge", alerts, {"alertstate": frozenset({"firing", "pending"})})}


KNOWN = known()


class Query(NamedTuple):
    """One query of a panel."""

    board: str
    panel: Mapping[str, Any]
    expr: str
    legend: str

    @property
    def tree(self) -> promql.Expr:
        return promql.parse(filled_in(self.expr))


def filled_in(text: str) -> str:
    """Without variables."""
    return VARIABLE.sub(lambda match: IN_PLACE.get(f"${match[1] or match[2]}", IN_PLACE["$"]), text)


def panels(board: str) -> list[Mapping[str, Any]]:
    """All but the headings."""
    return [panel for panel in DASHBOARDS[board]["panels"] if panel["type"] != "row"]


QUERIES = [
    Query(board, panel, target["expr"], target["legendFormat"])
    for board in DASHBOARDS
    for panel in panels(board)
    for target in panel["targets"]
]
each_board = pytest.mark.parametrize("board", DASHBOARDS)
each_query = pytest.mark.parametrize(
    "query", QUERIES, ids=lambda query: f"{query.board}: {query.panel['title']}: {query.legend}"
)


def inner(tree: promql.Expr) -> Iterator[promql.Expr]:
    """The expressions of which this one is made."""
    if isinstance(tree, promql.Call):
        yield from tree.args
    elif isinstance(tree, promql.BinaryExpr):
        yield from (tree.lhs, tree.rhs)
    elif isinstance(tree, promql.AggregateExpr | promql.ParenExpr):
        yield tree.expr


def walk(tree: promql.Expr) -> Iterator[promql.Expr]:
    """It, and all in it."""
    yield tree
    for part in inner(tree):
        yield from walk(part)


def selectors(tree: promql.Expr) -> list[promql.VectorSelector]:
    """All series that are asked for."""
    of_ranges = [part.vector_selector for part in walk(tree) if isinstance(part, promql.MatrixSelector)]
    return of_ranges + [part for part in walk(tree) if isinstance(part, promql.VectorSelector)]


def metric(selector: promql.VectorSelector) -> Metric:
    assert selector.name in KNOWN, f"nobody tells {selector.name}"
    return KNOWN[selector.name]


def labels_of(tree: promql.Expr) -> frozenset[str] | None:
    """The labels of what an expression gives; None: a number. Fails where Prometheus would find nothing to match, or a
    grouping names a label that is not there.
    """
    if isinstance(tree, promql.VectorSelector):
        return metric(tree).labels
    if isinstance(tree, promql.MatrixSelector):
        return metric(tree.vector_selector).labels
    if isinstance(tree, promql.ParenExpr):
        return labels_of(tree.expr)
    if isinstance(tree, promql.Call):
        found = [labels_of(arg) for arg in tree.args]
        labels = next((each for each in found if each is not None), None)
        if tree.func.name == "histogram_quantile":
            assert labels is not None
            assert "le" in labels
            return labels - {"le"}
        return labels
    if isinstance(tree, promql.AggregateExpr):
        labels = labels_of(tree.expr)
        assert labels is not None
        if str(tree.op) == "topk":
            return labels
        by = frozenset(tree.modifier.labels) if tree.modifier else frozenset()
        assert not tree.modifier or tree.modifier.type == promql.AggModifierType.By
        assert by <= labels, f"{set(by - labels)} is no label of {tree.expr}"
        return by
    if isinstance(tree, promql.BinaryExpr):
        return labels_of_both(tree)
    assert isinstance(tree, promql.NumberLiteral), tree
    return None


def labels_of_both(tree: promql.BinaryExpr) -> frozenset[str] | None:
    """The labels of what an operator gives."""
    left, right = labels_of(tree.lhs), labels_of(tree.rhs)
    if left is None or right is None:
        return right if left is None else left
    how = tree.modifier
    if how is None or how.matching is None:
        assert left == right, f"no two series match: {tree}"
        return left
    on = frozenset(how.matching.labels)
    assert how.matching.type == promql.LabelModifierType.Include
    assert on <= left & right, f"{set(on - left & right)} is not on both sides of {tree}"
    if str(tree.op) == "and":
        return left
    assert how.card == promql.VectorMatchCardinality.ManyToOne, tree
    kept = frozenset(how.group_labels or ())
    assert kept <= right
    return left | kept


# ---- the files


def test_the_files_are_what_their_descriptions_say() -> None:
    assert {file.name for file in FOLDER.glob("*.json")} == {f"{name}.json" for name in DASHBOARDS}
    for name, board in DASHBOARDS.items():
        written = (FOLDER / f"{name}.json").read_text("utf-8")
        assert written == text_of(board), "run .venv/bin/python scripts/write_dashboards.py"


@each_board
def test_it_imports_as_it_is(board: str) -> None:
    """No question at import, no id of another Grafana, the address that links and docs name."""
    told = DASHBOARDS[board]
    assert told["uid"] == f"poolgate-{board}"
    assert len(told["uid"]) <= 40
    assert told["id"] is None
    assert 39 <= told["schemaVersion"] <= 41
    assert not {"__inputs", "__requires", "__elements"} & set(told)
    assert told["tags"] == ["poolgate"]
    assert told["refresh"] == "30s"
    assert [(link["type"], link["tags"]) for link in told["links"]] == [("dashboards", ["poolgate"])]


def parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a piece of JSON."""
    if isinstance(value, Mapping):
        yield value
        for member in value.values():
            yield from parts(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from parts(member)


@each_board
def test_the_data_source_is_the_variable_everywhere(board: str) -> None:
    named = [part["datasource"] for part in parts(DASHBOARDS[board]) if "datasource" in part]
    assert named
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in named)
    first = DASHBOARDS[board]["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels(board):
        assert all("datasource" in each for each in (panel, *panel["targets"]))


# ---- panels


@each_board
def test_every_panel_says_what_it_shows_in_what_unit_and_what_to_do(board: str) -> None:
    for panel in panels(board):
        assert 0 < len(panel["title"]) <= 32, panel["title"]
        assert 20 <= len(panel["description"]) <= 120, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["description"].count(". ") == 0, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]


@each_board
def test_no_panel_lies_on_another_or_beyond_the_edge(board: str) -> None:
    places = [panel["gridPos"] for panel in DASHBOARDS[board]["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


@each_board
def test_no_row_has_a_hole(board: str) -> None:
    """Each cell from the top to the bottom belongs to a panel."""
    places = [panel["gridPos"] for panel in DASHBOARDS[board]["panels"]]
    assert sum(place["w"] * place["h"] for place in places) == 24 * max(place["y"] + place["h"] for place in places)


@each_board
def test_every_number_stands_once(board: str) -> None:
    numbers = [panel["id"] for panel in DASHBOARDS[board]["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in panels(board):
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0


# ---- queries


@each_query
def test_every_metric_is_told_by_the_gateway_or_by_vllm(query: Query) -> None:
    assert selectors(query.tree)
    for selector in selectors(query.tree):
        metric(selector)


@each_query
def test_every_matcher_asks_for_a_label_and_a_value_that_there_may_be(query: Query) -> None:
    for selector in selectors(query.tree):
        of = metric(selector)
        for matcher in selector.matchers.matchers:
            assert matcher.name in of.labels, f"{selector.name} has no {matcher.name}"
            asked = frozenset(matcher.value.split("|"))
            if matcher.name in of.values and matcher.value != ".*":
                assert asked <= of.values[matcher.name], f"{selector.name}: {matcher.name} is never {matcher.value}"


@each_query
def test_every_grouping_and_every_legend_names_a_label_that_is_there(query: Query) -> None:
    labels = labels_of(query.tree)
    assert labels is not None
    assert set(re.findall(r"{{(\w+)}}", query.legend)) <= labels
    if query.panel["type"] in ("timeseries", "bargauge"):
        assert set(re.findall(r"{{(\w+)}}", query.legend)) == labels, "two lines would have one name"


@each_query
def test_counters_are_asked_how_fast_they_grow_and_gauges_what_they_are(query: Query) -> None:
    for part in walk(query.tree):
        if isinstance(part, promql.Call) and part.func.name in ("rate", "increase"):
            (ranged,) = part.args
            assert isinstance(ranged, promql.MatrixSelector)
            assert metric(ranged.vector_selector).kind in ("counter", "bucket")
        elif isinstance(part, promql.VectorSelector):
            assert metric(part).kind == "gauge"
        elif isinstance(part, promql.MatrixSelector):
            assert query.tree is not part


@each_query
def test_quantiles_are_taken_of_added_up_buckets(query: Query) -> None:
    for part in walk(query.tree):
        buckets = {of.name for of in selectors(part) if metric(of).kind == "bucket"}
        if isinstance(part, promql.Call) and part.func.name == "histogram_quantile":
            quantile, added = part.args
            assert isinstance(quantile, promql.NumberLiteral)
            assert 0 < quantile.val < 1
            assert isinstance(added, promql.AggregateExpr)
            assert str(added.op) == "sum"
            assert added.modifier is not None
            assert "le" in added.modifier.labels
            assert len(buckets) == 1
    assert ("_bucket" in query.expr) == ("histogram_quantile" in query.expr)


@each_query
def test_no_rate_has_a_window_of_its_own(query: Query) -> None:
    """Grafana knows how often Prometheus scrapes and how wide the graph is. Sums are of the time shown or of a day."""
    assert set(re.findall(r"rate\([^[]*\[([^]]*)\]", query.expr)) <= {"$__rate_interval"}
    assert set(re.findall(r"increase\([^[]*\[([^]]*)\]", query.expr)) <= {"$__range", "24h"}


@each_query
def test_our_series_are_of_the_chosen_gateway_and_vllms_of_the_pools_pods(query: Query) -> None:
    """Staging may serve a model of the same name to the same Prometheus."""
    for selector in selectors(query.tree):
        assert selector.name is not None
        matched = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name.startswith("vllm:"):
            assert "model_name" in matched
            assert 'poolgate_pod_in_flight{job="$job",pool="$pool"}' in query.expr
        elif selector.name != "ALERTS":
            assert "job" in matched, selector.name


def test_every_metric_of_ours_is_looked_at_somewhere() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", of.name or "") for query in QUERIES for of in selectors(query.tree)}
    assert {definition.name for definition in DEFINITIONS} - shown == NEEDS_NO_LOOK


def test_what_is_defined_is_what_the_registry_tells() -> None:
    """The names that the queries are held against; the gauges of the live gateway are told by none but it."""
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in Metrics().registry.collect()
    }
    assert told <= {definition.name for definition in DEFINITIONS}
    assert len(told) > 15


def test_every_alert_is_among_those_that_are_shown() -> None:
    (query,) = [query for query in QUERIES if "ALERTS" in query.expr]
    named = re.compile("Poolgate.*")
    rules = [
        rule
        for file in RULES.iterdir()
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert 'alertname=~"Poolgate.*"' in query.expr
    assert rules
    assert all(named.fullmatch(rule["alert"]) and "severity" in rule["labels"] for rule in rules)


# ---- variables


@each_board
def test_every_variable_that_is_used_is_defined_and_none_is_idle(board: str) -> None:
    told = DASHBOARDS[board]
    defined = [variable["name"] for variable in told["templating"]["list"]]
    used = {match[1] or match[2] for match in VARIABLE.finditer(json.dumps(told))}
    assert len(set(defined)) == len(defined)
    assert used - GRAFANAS_OWN == set(defined)


@each_board
def test_every_variable_asks_for_a_metric_and_a_label_that_exist_after_what_it_depends_on(board: str) -> None:
    before: set[str] = set()
    for variable in DASHBOARDS[board]["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            assert query == variable["definition"]
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
            assert asked is not None
            tree = promql.parse(filled_in(asked[1]))
            assert isinstance(tree, promql.VectorSelector)
            assert {asked[2], *(matcher.name for matcher in tree.matchers.matchers)} <= metric(tree).labels
            assert {match[1] or match[2] for match in VARIABLE.finditer(query)} <= before
        before.add(variable["name"])


@each_board
def test_every_link_leads_to_a_dashboard_and_sets_a_variable_of_it(board: str) -> None:
    for panel in panels(board):
        for link in panel["fieldConfig"]["defaults"].get("links", []):
            address = re.match(r"/d/poolgate-(\w+)\?var-(\w+)=\$\{__field\.labels\.(\w+)\}&", link["url"])
            assert address is not None
            there, variable, label = address.groups()
            assert variable in [each["name"] for each in DASHBOARDS[there]["templating"]["list"]]
            assert all(label in (labels_of(promql.parse(filled_in(each["expr"]))) or ()) for each in panel["targets"])


# ---- what they lean on


def test_colours_are_given_to_words_that_there_are() -> None:
    def values(name: str, label: str) -> frozenset[str]:
        return KNOWN[name].values[label]

    assert set(OUTCOMES) == values("poolgate_requests_total", "outcome")
    assert set(STATES) == values("poolgate_pods", "state")
    assert set(MODES) == values("poolgate_limit_mode", "mode")


def test_vllms_metrics_are_those_of_a_real_one() -> None:
    """The list was collected from several answers; one of them is at hand whole."""
    text = (CAPTURES / "e23-metrics-overload.http").read_text("utf-8")
    kinds = {
        name: kind
        for name, kind in re.findall(r"^# TYPE (vllm:\S+) (\w+)$", text, re.MULTILINE)
        if "_created" not in name
    }
    assert len(kinds) > 30
    for name, kind in kinds.items():
        for sample, of in series(name, kind, frozenset(), {}).items():
            found = re.findall(rf"^{sample}{{(.*)}} ", text, re.MULTILINE)
            labels = {label for each in found for label in re.findall(r'(\w+)="', each)}
            assert labels, sample
            assert KNOWN[sample].kind == of.kind
            assert labels <= KNOWN[sample].labels - {"pod"} - OF_TARGETS


def test_the_page_tells_of_every_dashboard_and_every_choice() -> None:
    text = PAGE.read_text("utf-8")
    for name, board in DASHBOARDS.items():
        assert f"deploy/grafana/{name}.json" in text
        assert f"`{board['uid']}`" in text
        for variable in board["templating"]["list"]:
            assert variable["hide"] == 2 or f"**{variable['label']}**" in text, variable["label"]
