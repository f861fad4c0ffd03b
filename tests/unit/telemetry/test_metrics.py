"""The contract's series: their names and labels, what each counts, and that no caller can make one."""

from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.core.fleet import Fleet, Pod, PodState, Pool, Route
from gateway.telemetry.metrics import MAX_ISSUED_TEAMS, Live, Metrics
from tests.unit.telemetry.trails import refused, trail

# As the contract has them: name → labels. `_total` is the sample's, not the family's.
NOW = {
    "poolgate_requests": {"model", "operation", "status", "outcome"},
    "poolgate_request_seconds": {"model", "operation"},
    "poolgate_time_to_first_token_seconds": {"model"},
    "poolgate_inter_token_seconds": {"model"},
    "poolgate_overhead_seconds": {"model"},
    "poolgate_tokens": {"model", "kind", "tenant"},
    "poolgate_in_flight": {"model"},
    "poolgate_attempts": {"pool", "outcome"},
    "poolgate_retries": {"pool", "reason"},
    "poolgate_pods": {"pool", "state"},
    "poolgate_pod_in_flight": {"pool", "pod"},
    "poolgate_loop_lag_seconds": set(),
    "poolgate_discovery_stale_seconds": set(),
    "poolgate_discovery_relists": {"reason"},
    "poolgate_discovery_rejected": {"reason"},
    "poolgate_access_lines_dropped": set(),
    "poolgate_queue_depth": {"pool"},
    "poolgate_queue_wait_seconds": {"pool"},
    "poolgate_ejections": {"pool", "reason"},
    "poolgate_panic": {"pool"},
    "poolgate_quarantined": set(),
    "poolgate_config_reloads": {"result"},
    "poolgate_limit_decisions": {"limit", "decision"},
    "poolgate_limit_mode": {"mode"},
}
PODS = (
    Pod("u0", "chat-0", "chat", "127.0.0.1", 1, PodState.READY),
    Pod("u1", "chat-1", "chat", "127.0.0.1", 2, PodState.STARTING),
    Pod("u2", "other-0", "other", "127.0.0.1", 3, PodState.READY),
)


def watched() -> Metrics:
    """Metrics with gauges to read."""
    metrics = Metrics()
    metrics.watch(
        live(
            fleet=lambda: Fleet(PODS),
            pod_in_flight=lambda uid: {"u0": 3}.get(uid, 0),
            in_flight=lambda: [("org/m", 3)],
            waiting=lambda: [("chat", 4), ("empty", 2)],
            ejected=lambda: ["u2", "u1", "gone"],
            panics=lambda: [("chat", False), ("other", True)],
            loop_lag=lambda: 0.125,
            dropped_lines=lambda: 2,
            limit_mode=lambda: "local",
            discovery_stale=lambda: 1.5,
        )
    )
    return metrics


def live(**more: Any) -> Live:
    """Owners of gauges who have nothing to tell, but for these."""
    nothing: dict[str, Any] = {
        "fleet": Fleet,
        "pod_in_flight": lambda uid: 0,
        "in_flight": list,
        "waiting": list,
        "ejected": list,
        "panics": list,
        "loop_lag": float,
        "dropped_lines": int,
        "limit_mode": lambda: "memory",
        "discovery_stale": float,
    }
    return Live(**nothing | more)


def families(metrics: Metrics) -> dict[str, Metric]:
    """What a scrape would find, by name."""
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def observed(*trails: Trail) -> Metrics:
    metrics = Metrics()
    for each in trails:
        metrics.observe(each)
    return metrics


def test_the_contracts_series_are_there_with_their_labels_and_no_others() -> None:
    metrics = watched()
    metrics.observe(trail(retries=(("chat", "busy"),), queue_seconds=0.2))
    metrics.ejected("chat", "consecutive")
    metrics.reloaded("applied")
    metrics.relisted("start")
    metrics.limit_decisions("concurrent", "refused").value += 1
    metrics.rejected("address", 2)
    found = families(metrics)
    assert set(found) == set(NOW)
    for name, labels in NOW.items():
        assert found[name].documentation
        assert found[name].samples, name
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == labels, name


def test_a_request_is_counted_by_how_it_ended() -> None:
    metrics = observed(trail(), trail(), trail(status=502, outcome=Outcome.UPSTREAM_FAILED))
    labels = {"model": "org/m", "operation": "chat"}
    assert value(metrics, "poolgate_requests_total", **labels, status="200", outcome="completed") == 2
    assert value(metrics, "poolgate_requests_total", **labels, status="502", outcome="upstream_failed") == 1


def test_a_request_without_an_answer_has_no_status() -> None:
    metrics = observed(trail(status=0, outcome=Outcome.CLIENT_LEFT))
    labels = {"model": "org/m", "operation": "chat", "status": "none", "outcome": "client_left"}
    assert value(metrics, "poolgate_requests_total", **labels) == 1


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_of_the_contract_has_its_label(outcome: Outcome) -> None:
    contract = {"completed", "client_left", "upstream_failed", "upstream_timeout", "truncated", "refused", "internal"}
    assert {each.value for each in Outcome} == contract
    assert f'outcome="{outcome.value}"'.encode() in observed(trail(outcome=outcome)).exposition()


def test_tokens_are_counted_by_kind_and_tenant() -> None:
    other = Tenant(key_id="k9", team="other")
    metrics = observed(trail(), trail(), trail(tenant=other, usage=Usage(1, 2)))
    for team, kind, count in (
        ("acme", "prompt", 68),
        ("acme", "completion", 20),
        ("acme", "cached", 32),
        ("other", "prompt", 1),
        ("other", "completion", 2),
        ("other", "cached", 0),
    ):
        assert value(metrics, "poolgate_tokens_total", model="org/m", kind=kind, tenant=team) == count


def test_lists_and_refusals_of_discovery_are_counted_by_reason() -> None:
    metrics = Metrics()
    metrics.relisted("start")
    metrics.relisted("start")
    metrics.rejected("address")
    metrics.rejected("model_name", 3)
    assert value(metrics, "poolgate_discovery_relists_total", reason="start") == 2
    assert value(metrics, "poolgate_discovery_rejected_total", reason="address") == 1
    assert value(metrics, "poolgate_discovery_rejected_total", reason="model_name") == 3


def test_two_keys_of_one_team_are_one_tenant() -> None:
    metrics = observed(*(trail(tenant=Tenant(key_id=f"k{n}", team="acme"), usage=Usage(1, 0)) for n in range(3)))
    assert value(metrics, "poolgate_tokens_total", model="org/m", kind="prompt", tenant="acme") == 3


def test_an_issuer_of_tokens_can_name_only_so_many_tenants_and_the_rest_are_other() -> None:
    def spent(team: str) -> float | None:
        return value(metrics, "poolgate_tokens_total", model="org/m", kind="prompt", tenant=team)

    def spend(key_id: str, team: str) -> None:
        metrics.observe(trail(tenant=Tenant(key_id=key_id, team=team), usage=Usage(1, 0)))

    metrics = Metrics()
    for n in range(2 * MAX_ISSUED_TEAMS):
        spend(f"{ISSUED_KEY_ID}{n}", f"issued-{n}")
    for team in ("issued-0", f"issued-{MAX_ISSUED_TEAMS - 1}", "issued-300", "issued-300"):
        spend(f"{ISSUED_KEY_ID}again", team)
    metrics.observe(trail(model="org/n", tenant=Tenant(key_id=f"{ISSUED_KEY_ID}0", team="issued-0"), usage=Usage(7, 0)))
    assert value(metrics, "poolgate_tokens_total", model="org/n", kind="prompt", tenant="issued-0") == 7
    # Those of the keys file are as many as somebody wrote there.
    for n in range(2 * MAX_ISSUED_TEAMS):
        spend(f"k{n}", f"written-{n}")
    assert spent("issued-0") == spent(f"issued-{MAX_ISSUED_TEAMS - 1}") == 2
    assert spent(f"issued-{MAX_ISSUED_TEAMS}") is None
    assert spent("other") == MAX_ISSUED_TEAMS + 2
    assert spent("written-0") == spent(f"written-{2 * MAX_ISSUED_TEAMS - 1}") == 1
    tenants = {sample.labels["tenant"] for sample in families(metrics)["poolgate_tokens"].samples}
    assert len(tenants) == 3 * MAX_ISSUED_TEAMS + 1


def test_attempts_and_retries_are_counted_one_by_one() -> None:
    metrics = observed(
        trail(
            attempt_outcomes=(("chat", "connect"), ("chat", "connect"), ("chat", "completed")),
            retries=(("chat", "connect"), ("chat", "connect")),
        )
    )
    assert value(metrics, "poolgate_attempts_total", pool="chat", outcome="connect") == 2
    assert value(metrics, "poolgate_attempts_total", pool="chat", outcome="completed") == 1
    assert value(metrics, "poolgate_retries_total", pool="chat", reason="connect") == 2


@pytest.mark.parametrize(
    ("name", "labels", "seconds"),
    [
        ("request_seconds", {"operation": "chat"}, 0.19),
        ("time_to_first_token_seconds", {}, 0.1),
        ("inter_token_seconds", {}, 0.01),
        ("overhead_seconds", {}, 0.003),
    ],
)
def test_times_are_in_seconds_and_in_every_bucket_that_holds_them(
    name: str, labels: dict[str, str], seconds: float
) -> None:
    metrics = observed(trail(), trail())
    labels = {"model": "org/m", **labels}
    assert value(metrics, f"poolgate_{name}_count", **labels) == 2
    assert value(metrics, f"poolgate_{name}_sum", **labels) == pytest.approx(2 * seconds)
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in families(metrics)[f"poolgate_{name}"].samples
        if sample.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == (float("inf"), 2)
    for bound, count in buckets:
        if abs(bound - seconds) > 1e-9:
            assert count == (2 if bound > seconds else 0), bound


def test_a_value_on_a_bound_is_within_it() -> None:
    metrics = observed(trail(ended_at=1000.0 + 0.64))
    metrics.observe(trail(ended_at=1000.0 + 0.641))
    counts = {
        sample.labels["le"]: sample.value
        for sample in families(metrics)["poolgate_request_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert counts["1.28"] == 2
    assert counts["0.32"] == 0


def test_only_streams_have_a_first_token_and_a_pace() -> None:
    metrics = observed(trail(stream=False))
    assert value(metrics, "poolgate_time_to_first_token_seconds_count", model="org/m") == 0
    assert value(metrics, "poolgate_inter_token_seconds_count", model="org/m") == 0
    assert value(metrics, "poolgate_overhead_seconds_count", model="org/m") == 1
    single = observed(trail(content_events=1))
    assert value(single, "poolgate_inter_token_seconds_count", model="org/m") == 0


def test_a_request_of_several_attempts_says_nothing_of_our_overhead() -> None:
    assert value(observed(trail(attempts=2)), "poolgate_overhead_seconds_count", model="org/m") == 0


def test_no_caller_can_make_a_series() -> None:
    metrics = observed(refused(model="x"), refused())
    before = metrics.exposition().count(b"\n")
    for number in range(500):
        metrics.observe(refused(model=f"canary-{number}", usage=Usage(1, 1)))
        metrics.observe(refused(operation="other", model='canary"} 1\n# HELP'))
    exposition = metrics.exposition()
    assert exposition.count(b"\n") == before
    assert b"canary" not in exposition
    labels = {"model": "other", "operation": "other", "status": "401", "outcome": "refused"}
    assert value(metrics, "poolgate_requests_total", **labels) == 1002


def test_a_key_is_never_a_label() -> None:
    metrics = observed(trail(tenant=Tenant(key_id="canary", team="acme"), request_id="canary"))
    assert b"canary" not in metrics.exposition()


def test_names_from_a_pod_or_the_configuration_are_escaped() -> None:
    odd = 'a"b\\c\nd'
    metrics = watched()
    metrics.observe(trail(model=odd, tenant=Tenant(key_id="k", team=odd)))
    (sample,) = families(metrics)["poolgate_requests"].samples
    assert sample.labels["model"] == odd


def test_gauges_are_read_when_they_are_scraped() -> None:
    metrics = watched()
    for pool, state, count in (
        ("chat", "ready", 1),
        ("chat", "starting", 1),
        ("chat", "draining", 0),
        ("chat", "ejected", 0),
        ("other", "ready", 0),
        ("other", "starting", 0),
        ("other", "ejected", 1),
    ):
        assert value(metrics, "poolgate_pods", pool=pool, state=state) == count
    assert value(metrics, "poolgate_pod_in_flight", pool="chat", pod="chat-0") == 3
    assert value(metrics, "poolgate_pod_in_flight", pool="chat", pod="chat-1") == 0
    assert value(metrics, "poolgate_in_flight", model="org/m") == 3
    assert value(metrics, "poolgate_loop_lag_seconds") == 0.125
    assert value(metrics, "poolgate_discovery_stale_seconds") == 1.5


def test_a_queue_is_as_deep_as_its_pool_says_and_0_where_nobody_waits() -> None:
    metrics = watched()
    assert value(metrics, "poolgate_queue_depth", pool="chat") == 4
    assert value(metrics, "poolgate_queue_depth", pool="other") == 0


def test_the_queue_of_a_pool_without_pods_can_be_seen_by_who_starts_some() -> None:
    metrics = Metrics()
    waits = {"chat": 7}
    fleet = Fleet((), {"m": Route("m", Pool("chat"), ())})
    metrics.watch(live(fleet=lambda: fleet, waiting=waits.items))
    assert value(metrics, "poolgate_queue_depth", pool="chat") == 7
    waits.clear()
    assert value(metrics, "poolgate_queue_depth", pool="chat") == 0


def test_panic_is_told_of_each_pool() -> None:
    metrics = watched()
    assert [value(metrics, "poolgate_panic", pool=pool) for pool in ("chat", "other")] == [0, 1]


def test_ejections_and_reloads_are_counted_by_why_and_how_and_quarantines_from_zero() -> None:
    metrics = Metrics()
    assert value(metrics, "poolgate_quarantined_total") == 0
    for pool, reason in (("chat", "share"), ("chat", "share"), ("chat", "wedged"), ("other", "share")):
        metrics.ejected(pool, reason)
    metrics.reloaded("refused")
    metrics.quarantined()
    assert value(metrics, "poolgate_ejections_total", pool="chat", reason="share") == 2
    assert value(metrics, "poolgate_ejections_total", pool="chat", reason="wedged") == 1
    assert value(metrics, "poolgate_ejections_total", pool="other", reason="share") == 1
    assert value(metrics, "poolgate_config_reloads_total", result="refused") == 1
    assert value(metrics, "poolgate_quarantined_total") == 1


def test_only_who_had_to_wait_is_in_the_times_of_waiting() -> None:
    metrics = observed(trail(), trail(queue_seconds=0.2), trail(queue_seconds=0.3), trail(pool="b", queue_seconds=9.0))
    assert value(metrics, "poolgate_queue_wait_seconds_count", pool="chat") == 2
    assert value(metrics, "poolgate_queue_wait_seconds_sum", pool="chat") == pytest.approx(0.5)
    assert value(metrics, "poolgate_queue_wait_seconds_bucket", pool="chat", le="0.25") == 1
    assert value(metrics, "poolgate_queue_wait_seconds_count", pool="b") == 1


def test_who_waited_in_vain_is_in_the_times_of_waiting_too() -> None:
    metrics = observed(refused(pool="chat", status=503, code="queue_timeout", queue_seconds=10.0))
    assert value(metrics, "poolgate_queue_wait_seconds_sum", pool="chat") == 10


def test_the_wait_for_a_pod_is_not_called_ours() -> None:
    waited = trail(received_at=999.0, queue_seconds=1.0)
    assert waited.overhead_seconds == pytest.approx(trail().overhead_seconds)


def test_what_is_measured_in_seconds_says_so() -> None:
    metrics = watched()
    for name, family in families(metrics).items():
        if name.endswith("_seconds"):
            assert "econds" in family.documentation, name


def test_gauges_follow_their_owners() -> None:
    fleets = [Fleet(PODS), Fleet(PODS[:1])]
    metrics = Metrics()
    metrics.watch(live(fleet=lambda: fleets[0]))
    assert value(metrics, "poolgate_pods", pool="other", state="ready") == 1
    fleets.pop(0)
    assert value(metrics, "poolgate_pods", pool="other", state="ready") is None


def test_two_gateways_in_one_process_count_apart() -> None:
    first, second = observed(trail()), Metrics()
    labels = {"model": "org/m", "operation": "chat", "status": "200", "outcome": "completed"}
    assert value(first, "poolgate_requests_total", **labels) == 1
    assert value(second, "poolgate_requests_total", **labels) is None


def test_a_pool_whose_pods_are_all_gone_has_none_rather_than_no_series() -> None:
    metrics = Metrics()
    fleet = Fleet((), {"m": Route("m", Pool("chat"), ())})
    metrics.watch(live(fleet=lambda: fleet))
    assert value(metrics, "poolgate_pods", pool="chat", state="ready") == 0
