"""What has the same look, and the same choice, on several dashboards."""

from scripts.dashboards.grafana import values_of
from scripts.dashboards.promql import OURS

RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, GREY = "red", "orange", "yellow", "green", "blue", "purple", "#8e8e8e"
OUTCOMES = {
    "completed": GREEN,
    "client_left": GREY,
    "refused": BLUE,
    "truncated": PURPLE,
    "upstream_timeout": YELLOW,
    "upstream_failed": ORANGE,
    "internal": RED,
}
STATES = {"ready": GREEN, "starting": BLUE, "draining": GREY, "asleep": PURPLE, "ejected": RED}
MODES = {"memory": BLUE, "redis": GREEN, "local": ORANGE}

JOB = values_of("job", "Gateway", "poolgate_build_info", "job", many=False)
MODEL = values_of("model", "Model asked for", f"poolgate_requests_total{{{OURS}}}", "model", every=".*")
