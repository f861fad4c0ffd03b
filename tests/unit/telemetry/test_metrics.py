"""The contract's series: their names and labels, what each counts, and that no caller can make one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.balancing.health import Reason
from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.core.errors import Busy, Draining, NoReadyPod, QueueFull, QueueTimeout
from gateway.core.fleet import Fleet, Pod, PodState, Pool, Route
from gateway.telemetry.definitions import (
    DEFINITIONS,
    LIMIT_MODES,
    MAX_ISSUED_TEAMS,
    MAX_MODELS,
    MAX_POOLS,
    MAX_SPENDERS,
    MAX_TEAMS,
)
from gateway.telemetry.metrics import Live, Metrics
from tests.unit.telemetry.trails import refused, trail

# As the contract has them: name → labels. `_total` is the sample's, not the family's.
CONTRACT: dict[str, set[str]] = {
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
    "poolgate_queue_depth": {"pool"},
    "poolgate_queue_wait_seconds": {"pool"},
    "poolgate_ejections": {"pool", "reason"},
    "poolgate_panic": {"pool"},
    "poolgate_quarantined": set(),
    "poolgate_config_reloads": {"result"},
    "poolgate_limit_decisions": {"limit", "decision"},
    "poolgate_limit_mode": {"mode"},
}
BESIDE: dict[str, set[str]] = {
    "poolgate_access_lines_dropped": set(),
    "poolgate_buffered_body_bytes": set(),
    "poolgate_build_info": {"version"},
    "poolgate_config_refused": set(),
    "poolgate_connections": set(),
    "poolgate_log_lines_dropped": set(),
    "poolgate_memory_limit_bytes": set(),
    "poolgate_overload_level": set(),
    "poolgate_shed": {"cause"},
    "poolgate_traces_lost": set(),
    "poolgate_turned_away": {"pool", "code"},
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
            dropped_log_lines=lambda: 3,
            overload_level=lambda: 1,
            shed=lambda: [("lag", 6), ("memory", 7)],
            memory_limit=lambda: 1 << 30,
            limit_mode=lambda: "local",
            discovery_stale=lambda: 1.5,
            lost_traces=lambda: 5,
            config_refused=lambda: True,
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
        "dropped_log_lines": int,
        "overload_level": int,
        "shed": list,
        "memory_limit": int,
        "connections": int,
        "buffered_body_bytes": int,
        "limit_mode": lambda: "memory",
        "discovery_stale": float,
        "lost_traces": int,
        "config_refused": bool,
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
    metrics.expect(Fleet(PODS))
    found = families(metrics)
    expected = CONTRACT | BESIDE
    assert {name for name in found if not name.startswith("process_")} == set(expected)
    for name, labels in expected.items():
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
    assert value(metrics, "poolgate_access_lines_dropped_total") == 2
    assert value(metrics, "poolgate_traces_lost_total") == 5
    assert value(metrics, "poolgate_config_refused") == 1
    assert [value(metrics, "poolgate_limit_mode", mode=mode) for mode in LIMIT_MODES] == [0, 0, 1]
    assert value(metrics, "poolgate_build_info", version=__version__) == 1


def test_the_process_tells_its_own_needs() -> None:
    metrics = Metrics()
    assert (value(metrics, "process_resident_memory_bytes") or 0) > 1e6
    assert value(metrics, "process_cpu_seconds_total") is not None


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


def test_the_troubles_of_a_pool_are_counted_from_zero() -> None:
    metrics = Metrics()
    metrics.expect(Fleet(PODS, {"m": Route("m", Pool("empty"), ())}))
    for pool in ("chat", "other", "empty"):
        for reason in Reason:
            assert value(metrics, "poolgate_ejections_total", pool=pool, reason=reason) == 0
        for code in (NoReadyPod.code, QueueFull.code, QueueTimeout.code, Busy.code, Draining.code):
            assert value(metrics, "poolgate_turned_away_total", pool=pool, code=code) == 0
    metrics.ejected("chat", "share")
    metrics.expect(Fleet(PODS))
    assert value(metrics, "poolgate_ejections_total", pool="chat", reason="share") == 1


def test_whom_nobody_could_take_is_counted_by_pool_and_why() -> None:
    away = {"status": 503, "pool": "chat", "code": "no_ready_pod"}
    # An alias may lead to a model that no pod ever had: then there is no pool.
    elsewhere = away | {"pool": ""}
    cut = trail(status=200, code="gateway_draining", outcome=Outcome.TRUNCATED)
    metrics = observed(refused(**away), refused(**away), refused(**elsewhere), trail(), refused(), cut)
    assert value(metrics, "poolgate_turned_away_total", pool="chat", code="no_ready_pod") == 2
    assert value(metrics, "poolgate_turned_away_total", pool="other", code="no_ready_pod") == 1
    assert len(families(metrics)["poolgate_turned_away"].samples) == 2


def test_whom_nobody_could_take_is_not_who_was_over_a_limit() -> None:
    metrics = observed(refused(status=429, code="overloaded", pool="chat"), refused(status=503, code="x", pool="chat"))
    assert not families(metrics)["poolgate_turned_away"].samples


def test_a_counter_whose_labels_are_closed_begins_at_zero() -> None:
    metrics = Metrics()
    for name, labels in (
        ("poolgate_config_reloads_total", {"result": "refused"}),
        ("poolgate_discovery_rejected_total", {"reason": "worker"}),
        ("poolgate_discovery_relists_total", {"reason": "backwards"}),
        ("poolgate_limit_decisions_total", {"limit": "concurrent", "decision": "unchecked"}),
        ("poolgate_quarantined_total", {}),
    ):
        assert value(metrics, name, **labels) == 0


# --- series are bounded -------------------------------------------------------------------------------------


def labels_of(metrics: Metrics, label: str) -> dict[str, set[str]]:
    """The values that a label has now, by family."""
    found = {
        name: {sample.labels[label] for sample in family.samples if label in sample.labels}
        for name, family in families(metrics).items()
    }
    return {name: values for name, values in found.items() if values}


def test_adapters_that_come_and_go_for_months_leave_no_more_than_so_many_series() -> None:
    served: list[str] = []
    metrics = Metrics(served=lambda model: model in served)
    for number in range(3 * MAX_MODELS):
        served[:] = [f"adapter-{number - 1}", f"adapter-{number}", "m"]
        metrics.observe(trail(model=f"adapter-{number}"))
        metrics.observe(trail(model="m"))
    for name, models in labels_of(metrics, "model").items():
        assert len(models) <= MAX_MODELS, name
        assert "other" not in models
        # Whoever came last has series of its own.
        assert f"adapter-{3 * MAX_MODELS - 1}" in models
    # And who is served all the time has lost nothing.
    assert value(metrics, "poolgate_tokens_total", model="m", kind="prompt", tenant="acme") == 34 * 3 * MAX_MODELS
    last = f"adapter-{3 * MAX_MODELS - 1}"
    assert value(metrics, "poolgate_time_to_first_token_seconds_count", model=last) == 1


def test_more_models_than_there_is_room_for_share_the_series_of_other_and_nothing_is_lost() -> None:
    metrics = Metrics()
    for number in (*range(MAX_MODELS + 50), *range(MAX_MODELS + 50)):
        metrics.observe(trail(model=f"model-{number}"))
    labels = {"operation": "chat", "status": "200", "outcome": "completed"}
    assert value(metrics, "poolgate_requests_total", model="model-0", **labels) == 2
    assert value(metrics, "poolgate_requests_total", model="other", **labels) == 100
    assert value(metrics, "poolgate_tokens_total", model="other", kind="cached", tenant="acme") == 1600
    assert value(metrics, "poolgate_overhead_seconds_count", model="other") == 100
    assert all(len(models) == MAX_MODELS + 1 for models in labels_of(metrics, "model").values())


def test_a_model_that_comes_back_begins_at_zero_and_is_counted() -> None:
    served = {"old"}
    metrics = Metrics(served=lambda model: model in served)
    metrics.observe(trail(model="old"))
    served.clear()
    for number in range(MAX_MODELS):
        metrics.observe(trail(model=f"new-{number}"))
    assert "old" not in labels_of(metrics, "model")["poolgate_tokens"]
    served.add("old")
    metrics.observe(trail(model="old"))
    metrics.observe(trail(model="old"))
    for name in ("time_to_first_token", "inter_token", "overhead"):
        assert value(metrics, f"poolgate_{name}_seconds_count", model="old") == 2
    assert value(metrics, "poolgate_tokens_total", model="old", kind="prompt", tenant="acme") == 68


def test_models_in_flight_are_bounded_as_well() -> None:
    metrics = Metrics()
    metrics.watch(live(in_flight=lambda: [(f"model-{number}", 1) for number in range(MAX_MODELS + 7)]))
    assert value(metrics, "poolgate_in_flight", model="model-0") == 1
    assert value(metrics, "poolgate_in_flight", model="other") == 7
    assert len(labels_of(metrics, "model")["poolgate_in_flight"]) == MAX_MODELS + 1


def test_pools_that_come_and_go_leave_no_more_than_so_many_series() -> None:
    metrics = Metrics()
    for number in range(2 * MAX_POOLS):
        pool = f"pool-{number}"
        metrics.expect(Fleet((Pod("u", "p", pool, "127.0.0.1", 1), Pod("v", "q", "chat", "127.0.0.1", 2))))
        for each in (pool, "chat"):
            ended = ((each, "connect"), (each, "completed"))
            metrics.observe(trail(pool=each, attempt_outcomes=ended, retries=((each, "connect"),), queue_seconds=1.0))
    for name, pools in labels_of(metrics, "pool").items():
        assert len(pools) <= MAX_POOLS, name
        assert {"chat", f"pool-{2 * MAX_POOLS - 1}"} <= pools
    assert value(metrics, "poolgate_retries_total", pool="chat", reason="connect") == 2 * MAX_POOLS


def test_tenants_are_bounded_however_many_somebody_writes_down() -> None:
    metrics = Metrics()
    for number in range(MAX_TEAMS + 20):
        metrics.observe(trail(tenant=Tenant(f"k{number}", f"team-{number}"), usage=Usage(1, 0)))
    assert value(metrics, "poolgate_tokens_total", model="org/m", kind="prompt", tenant="other") == 20
    assert len(labels_of(metrics, "tenant")["poolgate_tokens"]) == MAX_TEAMS + 1


def test_pairs_of_models_and_tenants_are_bounded() -> None:
    metrics = Metrics()
    for model in range(10):
        for team in range(MAX_SPENDERS // 10 + 1):
            spender = Tenant(f"k{team}", f"team-{team}")
            metrics.observe(trail(model=f"model-{model}", tenant=spender, usage=Usage(1, 0)))
    samples = families(metrics)["poolgate_tokens"].samples
    own = {(each.labels["model"], each.labels["tenant"]) for each in samples if each.labels["tenant"] != "other"}
    assert len(own) == MAX_SPENDERS
    assert sum(each.value for each in samples) == 10 * (MAX_SPENDERS // 10 + 1)


def test_tenants_of_models_that_are_gone_make_room_too() -> None:
    served: set[str] = set()
    metrics = Metrics(served=lambda model: model in served)
    each = MAX_SPENDERS // MAX_MODELS
    for model in range(MAX_MODELS):
        for team in range(each):
            metrics.observe(trail(model=f"old-{model}", tenant=Tenant(f"k{team}", f"team-{team}")))
    served.add("new")
    metrics.observe(trail(model="new", tenant=Tenant("k", "team-0"), usage=Usage(7, 0)))
    assert value(metrics, "poolgate_tokens_total", model="new", kind="prompt", tenant="team-0") == 7


@given(st.lists(st.tuples(st.integers(0, 2 * MAX_MODELS), st.integers(0, 9)), max_size=400))
@settings(max_examples=25)
def test_whatever_comes_and_goes_each_request_is_in_one_series_or_its_model_is_gone(
    asked: list[tuple[int, int]],
) -> None:
    served: set[str] = set()
    metrics, counted = Metrics(served=lambda model: model in served), 0
    for number, (model, leaves) in enumerate(asked):
        served.add(f"m{model}")
        metrics.observe(trail(model=f"m{model}", tenant=Tenant("k", f"team-{number % 3}")))
        counted += 1
        if not leaves:
            served.clear()
    models = labels_of(metrics, "model")
    assert all(len(values) <= MAX_MODELS + 1 for values in models.values())
    total = sum(s.value for s in families(metrics)["poolgate_requests"].samples if s.name.endswith("_total"))
    assert total <= counted
    if len({model for model, _ in asked}) <= MAX_MODELS:
        assert total == counted


def test_every_metric_that_a_scrape_finds_is_defined_and_the_other_way_round() -> None:
    found = families(watched())
    names = {definition.name.removesuffix("_total"): definition for definition in DEFINITIONS}
    assert len(names) == len(DEFINITIONS)
    assert set(found) == set(names)
    for name, definition in names.items():
        assert found[name].type == definition.kind, name
        if definition.ours:
            assert found[name].documentation == definition.meaning


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
