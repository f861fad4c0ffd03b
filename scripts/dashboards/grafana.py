"""What Grafana 11 and later want of a dashboard, so that its description need only say what is on it.

The classic JSON model. The data source is a variable everywhere, so the file imports into any Grafana without questions
and is provisioned as it is. Panels flow from left to right on Grafana's 24 columns.
"""

import json
from collections.abc import Mapping, Sequence, Sized
from typing import Any, NamedTuple

COLUMNS = 24
SCHEMA = 39
TAG = "poolgate"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]
Levels = Sequence[tuple[float, str]]
"""(from this value on, this colour), ascending; below the first all is well."""


Lines = Mapping[str, str]
"""What a query's series are called → the query."""


class Row(NamedTuple):
    """A heading, and what stands below it."""

    title: str
    panels: Sequence[Json]


def row(title: str, *panels: Json) -> Row:
    """A heading, and what stands below it."""
    return Row(title, panels)


def dashboard(name: str, title: str, text: str, variables: Sequence[Json], *rows: Row) -> Json:
    """A whole dashboard; its address in Grafana is `/d/poolgate-NAME`."""
    return {
        "annotations": {"list": []},
        "description": text,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_to_the_others()],
        "panels": _placed(rows),
        "refresh": "30s",
        "schemaVersion": SCHEMA,
        "tags": [TAG],
        "templating": {"list": [_datasources(), *variables]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": title,
        "uid": f"poolgate-{name}",
        "version": 1,
        "weekStart": "",
    }


def text_of(board: Json) -> str:
    """The file: the same for the same dashboard, and a line for each value, so that a diff shows what has changed."""
    return json.dumps(board, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# ---- variables


def values_of(name: str, label: str, metric: str, of: str, *, many: bool = True, every: str = "") -> Json:
    """A variable: the values that a label has. `many`: several or all, and `every` in place of a list of all."""
    query = f"label_values({metric}, {of})"
    return {
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if many else {},
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0 if label else 2,
        "includeAll": many,
        "label": label,
        "multi": many,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,  # when the time range changes as well: pods and models come and go
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
        **({"allValue": every} if every else {}),
    }


def words(name: str, label: str, text: str) -> Json:
    """A variable that is typed in; empty at first."""
    return {
        "current": {"selected": True, "text": "", "value": ""},
        "description": text,
        "hide": 0,
        "label": label,
        "name": name,
        "options": [],
        "query": "",
        "skipUrlSync": False,
        "type": "textbox",
    }


def _datasources() -> Json:
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Prometheus",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }


def _to_the_others() -> Json:
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }


# ---- panels: of each is known how wide and high it is; where it stands and its number come when it is placed


def stat(
    title: str,
    text: str,
    unit: str,
    expr: str,
    *,
    legend: str = "",
    width: int = 4,
    levels: Levels = (),
    says: Mapping[str, tuple[str, str]] | None = None,
    link: Json | None = None,
) -> Json:
    """What is so now, as one number for each series. `says`: words in place of a value."""
    return _panel(
        "stat",
        title,
        text,
        unit,
        (width, 4),
        [_now(expr, legend)],
        defaults={
            "color": {"mode": "thresholds" if levels else "fixed", **({} if levels else {"fixedColor": "text"})},
            "links": [link] if link else [],
            "mappings": _said(says or {}),
            "thresholds": _steps(levels),
        },
        options={
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "value_and_name" if legend else "value",
            "wideLayout": True,
        },
    )


def graph(
    title: str,
    text: str,
    unit: str,
    lines: Lines,
    *,
    width: int = 8,
    levels: Levels = (),
    stacked: bool = False,
    signed: bool = False,
    colours: Mapping[str, str] | None = None,
    unless: str = "no data",
) -> Json:
    """Lines over time, from 0 on unless `signed`. `colours` by legend; `unless` is said where there are no series."""
    return _panel(
        "timeseries",
        title,
        text,
        unit,
        (width, 8),
        [_over_time(expr, legend) for legend, expr in lines.items()],
        defaults={
            "color": {"mode": "palette-classic"},
            "custom": {
                "axisSoftMin": 0,
                "drawStyle": "line",
                "fillOpacity": 40 if stacked else 8,
                "lineWidth": 1,
                "showPoints": "auto",
                "spanNulls": False,
                "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
                "thresholdsStyle": {"mode": "dashed" if levels else "off"},
            },
            "noValue": unless,
            "thresholds": _steps(levels),
            **({} if signed else {"min": 0}),
        },
        options={
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        overrides=[
            _override(name, {"color": {"fixedColor": colour, "mode": "fixed"}})
            for name, colour in (colours or {}).items()
        ],
    )


def bars(title: str, text: str, unit: str, expr: str, *, legend: str, width: int = 8, height: int = 8) -> Json:
    """What is so now, as a bar for each series."""
    return _panel(
        "bargauge",
        title,
        text,
        unit,
        (width, height),
        [_now(expr, legend)],
        defaults={"color": {"mode": "palette-classic"}, "min": 0, "thresholds": _steps(())},
        options={
            "displayMode": "basic",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "maxVizHeight": 300,
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "auto",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
            "sizing": "auto",
            "valueMode": "color",
        },
    )


def table(
    title: str,
    text: str,
    unit: str,
    columns: Lines,
    *,
    labels: Sequence[str],
    units: Mapping[str, str] | None = None,
    width: int = 24,
    height: int = 8,
    unless: str = "no data",
) -> Json:
    """What is so now: a row for each set of `labels`, a column for each query. `units` where a column's is another."""
    values = {f"Value #{letter}": name for letter, name in zip(_letters(columns), columns, strict=True)}
    return _panel(
        "table",
        title,
        text,
        unit,
        (width, height),
        [_now(expr, "") | {"format": "table"} for expr in columns.values()],
        defaults={"custom": {"align": "auto", "inspect": False}, "noValue": unless, "thresholds": _steps(())},
        options={
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
            "sortBy": [{"desc": True, "displayName": next(iter(columns))}],
        },
        overrides=[_override(name, {"unit": other}) for name, other in (units or {}).items()],
    ) | {
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: at for at, name in enumerate((*labels, *values))},
                    "renameByName": values,
                },
            },
        ]
    }


def link_to(name: str, title: str, variable: str) -> Json:
    """From a value to the dashboard that tells more of it: there `variable` is the value's label of that name."""
    return {
        "targetBlank": False,
        "title": title,
        "url": f"/d/poolgate-{name}?var-{variable}=${{__field.labels.{variable}}}"
        "&${job:queryparam}&${datasource:queryparam}&${__url_time_range}",
    }


def _panel(
    kind: str,
    title: str,
    text: str,
    unit: str,
    size: tuple[int, int],
    targets: Sequence[Json],
    *,
    defaults: Json,
    options: Json,
    overrides: Sequence[Json] = (),
) -> Json:
    return {
        "datasource": DATASOURCE,
        "description": text,
        "fieldConfig": {"defaults": {"mappings": [], "unit": unit} | defaults, "overrides": list(overrides)},
        "gridPos": {"h": size[1], "w": size[0]},
        "options": options,
        "targets": [
            {"datasource": DATASOURCE, "editorMode": "code", "refId": letter} | target
            for letter, target in zip(_letters(targets), targets, strict=True)
        ],
        "title": title,
        "type": kind,
    }


def _letters(each: Sized) -> str:
    return "ABCDEFGH"[: len(each)]


def _over_time(expr: str, legend: str) -> Json:
    return {"expr": expr, "instant": False, "legendFormat": legend, "range": True}


def _now(expr: str, legend: str) -> Json:
    return {"expr": expr, "instant": True, "legendFormat": legend, "range": False}


def _steps(levels: Levels) -> Json:
    return {
        "mode": "absolute",
        "steps": [{"color": "green", "value": None}, *({"color": colour, "value": at} for at, colour in levels)],
    }


def _said(says: Mapping[str, tuple[str, str]]) -> Sequence[Json]:
    if not says:
        return []
    options = {
        value: {"color": colour, "index": at, "text": text} for at, (value, (text, colour)) in enumerate(says.items())
    }
    return [{"options": options, "type": "value"}]


def _override(name: str, properties: Json) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _placed(rows: Sequence[Row]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in rows:
        heading = {"collapsed": False, "panels": [], "title": row.title, "type": "row"}
        placed.append(heading | {"gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}})
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            size = panel["gridPos"]
            if x + size["w"] > COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(panel | {"gridPos": size | {"x": x, "y": y}})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    return [panel | {"id": number} for number, panel in enumerate(placed, 1)]
