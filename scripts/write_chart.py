#!/usr/bin/env python3
"""Writes the templates and files of deploy/helm/poolgate from deploy/; a test fails when one is stale.

Two descriptions of one system drift, so there is one: a template is a manifest of the kustomization with expressions in
the places that scripts/chart/templates.py lists. By hand are written: values.yaml and its schema, but for what it says
of the gateway's configuration; NOTES.txt; and the ConfigMaps, which kustomize generates.
"""

import json
from pathlib import Path
from typing import Any

from gateway.config.whole import Config
from scripts.chart.places import in_the_namespaces, template
from scripts.chart.templates import COMPONENTS, TEMPLATES

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
CHART = DEPLOY / "helm" / "poolgate"
SCHEMA = CHART / "values.schema.json"
COPIES = {
    "overview.json": "grafana/overview.json",
    "pool.json": "grafana/pool.json",
    "tenants.json": "grafana/tenants.json",
    "datasources.yaml": f"{COMPONENTS}/grafana/datasources.yaml",
    "dashboards.yaml": f"{COMPONENTS}/grafana/dashboards.yaml",
    "rules.yaml": "prometheus/rules/poolgate.yaml",
    "collector.yaml": f"{COMPONENTS}/otel/configuration.yaml",
    "prometheus.yaml": "prometheus/prometheus-kubernetes.yaml",
    "secrets.yaml": f"{COMPONENTS}/first-secrets/secrets.yaml",
}
"""A chart reads no file outside of itself."""
WITH_NAMESPACES = {"prometheus.yaml", "secrets.yaml"}
"""Those that are templates, since they name namespaces."""
SECRETS = (("ServerSection", "ops_token"), ("AuthSection", "forwarded_user_secret"), ("UpstreamSection", "api_key"))
"""What of the configuration is secret."""


def written() -> dict[Path, str]:
    """Everything that is written, by where."""
    found = {CHART / "templates" / each.target: template(each, _text(each.source)) for each in TEMPLATES}
    for name, source in COPIES.items():
        text = _text(source)
        found[CHART / "files" / name] = in_the_namespaces(text) if name in WITH_NAMESPACES else text
    return found | {SCHEMA: with_the_keys_of_the_configuration(SCHEMA.read_text("utf-8"))}


def with_the_keys_of_the_configuration(schema: str) -> str:
    """The schema of the values, as it knows which keys the gateway's configuration has.

    Only which: what they may be is told by `poolgate check`, and may stand in a `${VAR}`. A secret stands elsewhere.
    """
    whole = json.loads(schema)
    config = Config.model_json_schema()
    sections = {name: _keys(each) for name, each in config["$defs"].items()}
    for section, name in SECRETS:
        sections[section]["properties"][name] = {"type": ["string", "null"], "pattern": r"^(file:|\$\{)"}
    sections["LimitsSection"]["properties"]["redis_url"] = {"not": {"pattern": r"://[^/]*:[^$/@][^/@]*@"}}
    # The pods' grace goes by it.
    sections["ServerSection"]["properties"]["drain_seconds"] = {"type": "number"}
    sections["ServerSection"]["required"] = ["drain_seconds"]
    own = {name: each for name, each in whole["$defs"].items() if not name.endswith(("Section", "Config"))}
    whole["$defs"] = own | sections | {"Config": _keys(config) | {"required": ["server"]}}
    return json.dumps(whole, indent=2) + "\n"


def _keys(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a schema: the keys that objects may have, and no more."""
    kept: dict[str, Any] = {word: schema[word] for word in ("$ref", "additionalProperties") if word in schema}
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = _keys(schema["additionalProperties"])
    if "properties" in schema:
        kept["properties"] = {name: _keys(each) for name, each in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = _keys(schema["items"])
    # An object or null: the keys of the one say nothing of the other.
    return kept | next((some for each in schema.get("anyOf", []) if (some := _keys(each))), {})


def _text(source: str) -> str:
    return (DEPLOY / source).read_text("utf-8")


if __name__ == "__main__":
    for path, content in written().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
