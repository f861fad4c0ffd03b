#!/usr/bin/env python3
"""Writes the PrometheusRule of the component alerts from deploy/prometheus/rules; a test fails when it is stale.

The rules' text stays as it is, comments and all, two spaces further in: a `spec` is what a file of rules is.
"""

from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "poolgate.yaml"
RULE = DEPLOY / "kustomize" / "components" / "alerts" / "rule.yaml"

HEAD = """\
# Written by scripts/write_prometheus_rule.py from deploy/prometheus/rules/poolgate.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: poolgate
  namespace: poolgate
  labels: {app.kubernetes.io/name: poolgate}
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The manifest, for the text of a file of rules."""
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


if __name__ == "__main__":
    RULE.write_text(prometheus_rule(RULES.read_text("utf-8")), "utf-8")
