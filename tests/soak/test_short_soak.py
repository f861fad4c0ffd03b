"""A minute of the soak, always the same one: pods, watches, Valkey and a gateway have faults, every invariant holds."""

import json

from loadtest.invariants import RULES
from tests.soak.__main__ import table
from tests.soak.faults import FAULTS
from tests.soak.soak import Plan, soak

SEED = 9
FEW = (
    "a pod is killed",
    "a cut",
    "no end mark",
    "a reset in the middle",
    "busy",
    "a pod is not ready",
    "a watch expires",
    "Valkey is killed",
    "a gateway is replaced",
    "an invalid configuration",
)
"""At least one of each kind."""


async def test_a_short_soak_breaks_no_invariant() -> None:
    plan = Plan(
        SEED,
        45.0,
        rps=20.0,
        replicas=2,
        chat_pods=3,
        embedding_pods=1,
        every_seconds=1.0,
        calm_seconds=12.0,
        faults=FEW,
    )
    report = await soak(plan)
    assert report.passed, table(report)
    assert set(report.faults) <= set(FAULTS)
    assert len(report.faults) >= len(FEW) // 2, "the machine is too slow for a soak"
    assert report.checker.heard.keys() >= {"RequestSent", "PodReceived", "PodPiece", "AccessLine", "Scrape", "Text"}
    assert report.checker.endings["complete"] > 300
    assert report.checker.endings["left"] > 10
    told = json.dumps(report.as_json())
    assert all(rule.name in table(report) for rule in RULES)
    assert f'"seed": {SEED}' in told
