#!/usr/bin/env python3
"""Writes deploy/grafana/*.json from scripts/dashboards; a test fails when a file is stale."""

from collections.abc import Mapping
from pathlib import Path

from scripts.dashboards.grafana import Json, text_of
from scripts.dashboards.overview import OVERVIEW
from scripts.dashboards.pool import POOL
from scripts.dashboards.tenants import TENANTS

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana"
DASHBOARDS: Mapping[str, Json] = {"overview": OVERVIEW, "pool": POOL, "tenants": TENANTS}


if __name__ == "__main__":
    for name, board in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(text_of(board), "utf-8")
