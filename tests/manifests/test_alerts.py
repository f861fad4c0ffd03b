"""The alerts are valid, name series that exist, are each proven by promtool, and have a page that says what to do."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from gateway.config.whole import Config
from gateway.telemetry.definitions import DEFINITIONS, Definition
from tests.running import CAPTURES

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "poolgate.yaml"
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
RUNBOOK = ROOT / "docs" / "runbook.md"

SETTLED = {
    "PoolgatePoolDown",
    "PoolgateQueueGrowing",
    "PoolgateTtftBudgetBurning",
    "PoolgatePodFlapping",
    "PoolgateLimitsLocal",
    "PoolgateDiscoveryStale",
    "PoolgateErrorRatio",
    "PoolgateLoopLag",
    "PoolgateConfigRefused",
    "PoolgateEngineWedged",
}
"""Names that other parts of Poolgate may speak of."""
SPOKEN_OF = {
    name
    for file in (ROOT / "gateway").rglob("*.py")
    for name in re.findall(r'^\s+"(Poolgate[A-Z]\w+)",$', file.read_text("utf-8"), re.MULTILINE)
}
"""Alerts that the status page names beside what it has found."""
SEVERITIES = {"page", "ticket"}
PARTS = ("First", "What it means", "See it", "Likely causes", "Do", "It ends")
"""Of each entry in the runbook, in this order."""
ADDRESS = re.compile(r"\$labels\.(?:instance|host|address)|\d+\.\d+\.\d+\.\d+")
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
SERIES = {definition.name + suffix: definition for definition in DEFINITIONS for suffix in SUFFIXES[definition.kind]}

OF_VLLM = {line.partition("{")[0] for line in (CAPTURES / "metrics-part.txt").read_text("utf-8").splitlines()}
"""Names as a real vLLM has them."""

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
EVERY_RULE: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in EVERY_RULE if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})

each_example = pytest.mark.parametrize("file", sorted(PROMETHEUS.glob("prometheus*.yaml")), ids=lambda file: file.stem)
each_alert = pytest.mark.parametrize("name", NAMES)


def promtool(*arguments: object) -> str:
    """What it says of valid files; fails where one is not."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def selectors(text: str) -> list[promql.VectorSelector]:
    """Every series that an expression asks for."""
    found: list[promql.VectorSelector] = []

    def note(part: promql.Expr) -> None:
        if isinstance(part, promql.VectorSelector):
            found.append(part)

    promql.walk(promql.parse(text), note)
    return found


def cases(name: str) -> list[dict[str, Any]]:
    """What promtool is told to expect of an alert."""
    return [
        case
        for file in UNIT_TESTS
        for test in yaml.safe_load(file.read_text("utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]


def values_of(matcher: promql.Matcher) -> list[str]:
    """The label values that a matcher names."""
    regular = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
    return matcher.value.split("|") if regular else [matcher.value]


def wrong_matchers(selector: promql.VectorSelector, definition: Definition) -> Iterator[str]:
    """What a selector wants of a series that it cannot have."""
    closed = {label.name: label.values for label in definition.labels}
    if definition.kind == "histogram" and (selector.name or "").endswith("_bucket"):
        closed["le"] = tuple(f"{bound:g}" for bound in definition.buckets)
    for matcher in selector.matchers.matchers:
        if matcher.name not in closed:
            yield f"{selector.name} has no label {matcher.name}"
        for value in values_of(matcher):
            if closed.get(matcher.name) and value not in closed[matcher.name]:
                yield f"{selector.name} never has {matcher.name}={value!r}"


def entries() -> dict[str, str]:
    """The runbook's entries, by heading."""
    parts = re.split(r"^## (Poolgate\w+)\n", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_settled_names_are_there() -> None:
    assert set(NAMES) >= SETTLED | SPOKEN_OF
    assert SPOKEN_OF


@pytest.mark.program("promtool")
def test_promtool_finds_the_rules_valid() -> None:
    assert f"{len(EVERY_RULE)} rules found" in promtool("check", "rules", RULES)


@pytest.mark.program("promtool")
@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_the_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    promtool("test", "rules", file)


@pytest.mark.program("promtool")
@each_example
def test_promtool_finds_the_examples_of_scraping_valid(file: Path, tmp_path: Path) -> None:
    example = yaml.safe_load(file.read_text("utf-8"))
    for job in example["scrape_configs"]:
        # Debian builds it without Kubernetes.
        job.pop("kubernetes_sd_configs", None)
    example["rule_files"] = [str(PROMETHEUS / name) for name in example["rule_files"]]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(example), "utf-8")
    assert "1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yaml")


@each_example
def test_the_examples_scrape_gateways_and_pods_often_enough_and_keep_the_gateways_labels(file: Path) -> None:
    example = yaml.safe_load(file.read_text("utf-8"))
    jobs = {job["job_name"]: job for job in example["scrape_configs"]}
    assert set(jobs) == {"poolgate", "vllm"}
    assert jobs["poolgate"]["honor_labels"] is True
    assert promql.parse_duration(example["global"]["scrape_interval"]).total_seconds() <= 30


def test_in_a_cluster_prometheus_finds_what_the_gateway_finds() -> None:
    example = yaml.safe_load((PROMETHEUS / "prometheus-kubernetes.yaml").read_text("utf-8"))
    discovery = Config().discovery
    assert [job["kubernetes_sd_configs"] for job in example["scrape_configs"]] == [
        [{"role": "pod", "namespaces": {"names": [namespace]}, "selectors": [{"role": "pod", "label": label}]}]
        for namespace, label in (("poolgate", discovery.self_selector), ("vllm", discovery.selector))
    ]


@each_alert
def test_each_alert_is_proven_to_fire_and_to_be_silent(name: str) -> None:
    firing = [bool(case["exp_alerts"]) for case in cases(name)]
    assert True in firing
    # It ends: no test of promtool's leaves it firing.
    assert firing[-1] is False or any(not fires for fires in firing[firing.index(True) + 1 :])
    assert False in firing[: firing.index(True)], "before it fires it is silent"


def test_each_rule_is_proven_to_fire_with_the_labels_that_it_has() -> None:
    expected = [
        (case["alertname"], alert["exp_labels"])
        for name in NAMES
        for case in cases(name)
        for alert in case["exp_alerts"]
    ]
    for rule in ALERTS:
        own = rule["labels"].items()
        assert any(name == rule["alert"] and own <= labels.items() for name, labels in expected), rule["alert"]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_series_that_is_named_exists_with_the_labels_that_are_named(rule: dict[str, Any]) -> None:
    recorded = {each["record"] for each in EVERY_RULE if "record" in each}
    found = selectors(rule["expr"])
    assert found
    for selector in found:
        name = selector.name or ""
        assert name in SERIES or name in recorded, name
        if name in SERIES:
            assert list(wrong_matchers(selector, SERIES[name])) == []


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["name"])
def test_what_is_recorded_is_used_after_it_in_its_own_group(group: dict[str, Any]) -> None:
    # Only within a group are rules evaluated in order: elsewhere an alert would look at values of the round before.
    known: set[str] = set()
    used: set[str] = set()
    for rule in group["rules"]:
        names = {selector.name or "" for selector in selectors(rule["expr"])} - SERIES.keys()
        assert names <= known
        used |= names
        known |= {rule["record"]} if "record" in rule else set()
    assert used == known


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_each_alert_waits_and_says_how_urgent_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"[1-9]\d*m", rule["for"]), "one bad look is no alert"
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook"}
    assert told["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert not ADDRESS.search(told["summary"] + told["description"])
    assert all(text.endswith(".") for text in (told["summary"], told["description"]))


def test_each_alert_has_an_entry_in_the_runbook_and_each_entry_an_alert() -> None:
    assert sorted(entries()) == NAMES


@each_alert
def test_each_entry_says_all_that_one_wants_to_know_at_night(name: str) -> None:
    entry = entries()[name]
    at = [entry.find(f"**{part}") for part in PARTS]
    assert -1 not in at, dict(zip(PARTS, at, strict=True))
    assert at == sorted(at)
    assert len(entry[: at[1]].split("**What fires")[0].strip().splitlines()) <= 2, (
        "what to do stands in the first two lines"
    )
    seen = entry[at[2] : at[3]]
    assert "`poolgate " in seen  # tests/unit/test_docs.py knows which commands there are
    asked = re.findall(r"```promql\n(.*?)```", seen, re.DOTALL)
    assert asked
    for text in asked:
        for selector in selectors(text):
            series = selector.name or ""
            assert series in SERIES or series in OF_VLLM, series
            if series in SERIES:
                assert list(wrong_matchers(selector, SERIES[series])) == []
    severities = {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}
    assert all(severity in entry[: at[1]] for severity in severities)
