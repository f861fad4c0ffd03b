"""What watches and scales Poolgate in a cluster is what was tested outside of one: rules, jobs, labels, dashboards.

That ports, names and references of these manifests agree is the linter's to say (`checks`).
"""

import json
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from gateway.config.reading import load_config
from gateway.config.sections import PoolSection
from gateway.config.whole import Config
from scripts.write_dashboards import FOLDER
from scripts.write_prometheus_rule import RULE, RULES, prometheus_rule
from tests.manifests.building import (
    KUSTOMIZE,
    Build,
    Manifest,
    build,
    containers,
    environment,
    find,
    labels_of,
    of_kind,
    sources_of,
)
from tests.manifests.test_alerts import PROMETHEUS, promtool
from tests.manifests.test_dashboards import KNOWN, OF_TARGETS, Metric, selectors
from tests.manifests.test_dashboards import labels_of as labels_of_result

pytestmark = pytest.mark.program("kubectl")

SCRAPING: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus-kubernetes.yaml").read_text("utf-8"))
JOBS = {job["job_name"]: job for job in SCRAPING["scrape_configs"]}
OPERATORS_WORDS = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
LARGEST_BYTES = 262_144
"""Of an object's annotations, where `kubectl apply` keeps the whole of what it has applied."""


def component(name: str) -> Build:
    return build(KUSTOMIZE / "components" / name)


def mounted(built: Build, workload: Manifest) -> dict[str, str]:
    """The files that a workload's one container has from ConfigMaps, by their paths."""
    template = workload["spec"]["template"]
    (container,) = containers(template)
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    found: dict[str, str] = {}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        for source in (each["configMap"] for each in sources_of(volume) if "configMap" in each):
            told = find(built, "ConfigMap", source["name"], "poolgate")["data"]
            items = source.get("items") or [{"key": key, "path": key} for key in told]
            found |= {f"{mount['mountPath']}/{item['path']}": told[item["key"]] for item in items}
    return found


def prometheus_files() -> dict[str, str]:
    built = component("prometheus")
    return mounted(built, find(built, "Deployment", "prometheus"))


# Prometheus


def test_prometheus_has_the_one_configuration_and_the_one_file_of_rules() -> None:
    assert prometheus_files() == {
        "/etc/prometheus/prometheus.yaml": (PROMETHEUS / "prometheus-kubernetes.yaml").read_text("utf-8"),
        "/etc/prometheus/rules/poolgate.yaml": RULES.read_text("utf-8"),
    }


@pytest.mark.program("promtool")
def test_promtool_finds_what_prometheus_is_given_valid(tmp_path: Path) -> None:
    for path, text in prometheus_files().items():
        config = yaml.safe_load(text)
        for job in config.get("scrape_configs", []):
            # Debian builds it without Kubernetes.
            job.pop("kubernetes_sd_configs")
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config), "utf-8")
    (container,) = containers(find(component("prometheus"), "Deployment", "prometheus")["spec"]["template"])
    (started_with,) = [flag for flag in container["args"] if flag.startswith("--config.file=")]
    assert "1 rule files found" in promtool("check", "config", tmp_path / started_with.partition("=/")[2])


def test_prometheus_may_read_pods_where_it_looks_for_them_and_nothing_else() -> None:
    built = component("prometheus")
    looked = {
        namespace
        for job in JOBS.values()
        for found in job["kubernetes_sd_configs"]
        for namespace in found["namespaces"]["names"]
    }
    roles = [role for role in of_kind(built, "Role") if role["metadata"]["name"] == "prometheus"]
    assert {role["metadata"]["namespace"] for role in roles} == looked
    wanted = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert [role["rules"] for role in roles] == [wanted, wanted]


# The operator's Prometheus


def test_the_operator_gets_the_same_rules() -> None:
    assert RULE.read_text("utf-8") == prometheus_rule(RULES.read_text("utf-8")), (
        "run .venv/bin/python -m scripts.write_prometheus_rule"
    )
    (rule,) = of_kind(component("alerts"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text("utf-8"))


def labels_given(relabelings: list[dict[str, Any]]) -> dict[str, Any]:
    """The labels that a job's relabelling sets, and of what; in Prometheus' words or in the operator's."""
    plain = [{OPERATORS_WORDS.get(key, key): value for key, value in each.items()} for each in relabelings]
    return {
        each["target_label"]: each.get("source_labels", each.get("replacement"))
        for each in plain
        if each.get("action", "replace") == "replace"
    }


def test_the_operator_gives_the_same_labels_as_the_plain_configuration() -> None:
    built = component("servicemonitor")
    gateways, pods = find(built, "ServiceMonitor", "poolgate"), find(built, "PodMonitor", "vllm")
    (of_gateways,) = gateways["spec"]["endpoints"]
    (of_pods,) = pods["spec"]["podMetricsEndpoints"]
    # The operator itself gives both the label `namespace`.
    plain = {name: labels_given(job["relabel_configs"]) for name, job in JOBS.items()}
    namespace = {"namespace": ["__meta_kubernetes_namespace"]}
    assert labels_given(of_gateways["relabelings"]) | namespace == plain["poolgate"]
    given = labels_given(of_pods["relabelings"])
    assert given.pop("job") == JOBS["vllm"]["job_name"]
    assert given | namespace == plain["vllm"]


def test_the_operators_job_of_the_gateways_is_called_as_in_the_plain_configuration() -> None:
    built = component("servicemonitor")
    monitor = find(built, "ServiceMonitor", "poolgate")
    assert labels_of(find(built, "Service", "poolgate-ops"))[monitor["spec"]["jobLabel"]] in JOBS


def test_the_operator_scrapes_as_often_and_lets_the_gateways_labels_win() -> None:
    built = component("servicemonitor")
    (of_gateways,) = find(built, "ServiceMonitor", "poolgate")["spec"]["endpoints"]
    (of_pods,) = find(built, "PodMonitor", "vllm")["spec"]["podMetricsEndpoints"]
    assert {of_gateways["interval"], of_pods["interval"]} == {SCRAPING["global"]["scrape_interval"]}
    assert of_gateways["honorLabels"] is JOBS["poolgate"]["honor_labels"] is True
    assert {of_gateways["path"], of_pods["path"]} == {"/metrics"}


# Grafana


def grafana() -> tuple[Build, Manifest]:
    built = component("grafana")
    return built, find(built, "Deployment", "grafana")


def test_grafana_finds_the_dashboards_as_they_are() -> None:
    files = mounted(*grafana())
    (provider,) = yaml.safe_load(files["/etc/grafana/provisioning/dashboards/dashboards.yaml"])["providers"]
    shown = {path: text for path, text in files.items() if path.startswith(provider["options"]["path"] + "/")}
    assert {Path(path).name: text for path, text in shown.items()} == {
        file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")
    }


def test_grafana_has_one_datasource_and_it_is_our_prometheus() -> None:
    built, workload = grafana()
    (source,) = yaml.safe_load(mounted(built, workload)["/etc/grafana/provisioning/datasources/datasources.yaml"])[
        "datasources"
    ]
    assert (source["type"], source["uid"], source["isDefault"]) == ("prometheus", "prometheus", True)
    service = find(built, "Service", "prometheus")
    assert source["url"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert source["jsonData"]["timeInterval"] == SCRAPING["global"]["scrape_interval"]


def test_grafana_knows_an_administrator_by_a_secret_and_nobody_else() -> None:
    _, workload = grafana()
    (container,) = containers(workload["spec"]["template"])
    variables = environment(container)
    assert variables["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in variables
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "secrets"]
    assert variables["GF_SECURITY_ADMIN_PASSWORD__FILE"] == f"{mount['mountPath']}/admin-password"


def test_a_sidecar_finds_every_dashboard_and_each_can_be_applied() -> None:
    found = [each for each in component("dashboards") if labels_of(each).get("grafana_dashboard") == "1"]
    shown = {key: text for each in found for key, text in each["data"].items()}
    assert shown == {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")}
    assert max(len(json.dumps(each)) for each in found) < LARGEST_BYTES


# KEDA


def scaled() -> tuple[Build, dict[str, Any]]:
    """All there is, and the pool's ScaledObject."""
    built = component("keda")
    spec: dict[str, Any] = find(built, "ScaledObject", "vllm-chat")["spec"]
    return built, spec


def metric_of(selector: promql.VectorSelector) -> Metric:
    """What may be asked of a series. Those of vLLM's pods have the labels that the scraping gives them."""
    assert selector.name in KNOWN, f"nobody tells {selector.name}"
    found = KNOWN[selector.name]
    given = labels_given(JOBS["vllm"]["relabel_configs"]) if selector.name.startswith("vllm:") else {}
    return found._replace(labels=found.labels | OF_TARGETS | set(given))


def test_each_trigger_asks_for_one_number_of_series_that_there_are() -> None:
    _, spec = scaled()
    asked = set()
    for trigger in spec["triggers"]:
        tree = promql.parse(trigger["metadata"]["query"])
        for selector in selectors(tree):
            asked.add(selector.name)
            assert {matcher.name for matcher in selector.matchers.matchers} <= metric_of(selector).labels
        # A query with several results is an error to KEDA.
        assert result_labels(tree) == frozenset()
    assert asked == {"poolgate_queue_depth", "poolgate_pod_in_flight", "vllm:num_requests_waiting"}


def result_labels(tree: promql.Expr) -> frozenset[str] | None:
    """Of a query's result. Inner groupings are by labels that are there."""
    if isinstance(tree, promql.AggregateExpr) and isinstance(tree.expr, promql.AggregateExpr):
        (selector,) = selectors(tree.expr)
        assert tree.expr.modifier is not None
        assert set(tree.expr.modifier.labels) <= metric_of(selector).labels
        assert tree.modifier is None
        return frozenset()
    return labels_of_result(tree)


def test_each_trigger_is_about_the_pool_that_is_scaled() -> None:
    built, spec = scaled()
    target = find(built, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"], "vllm")
    pool = labels_of(target["spec"]["template"])["poolgate.dev/pool"]
    for trigger in spec["triggers"]:
        for selector in selectors(promql.parse(trigger["metadata"]["query"])):
            assert [each.value for each in selector.matchers.matchers if each.name == "pool"] == [pool]


def test_an_answer_that_is_missing_never_looks_like_no_work() -> None:
    _, spec = scaled()
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in spec["triggers"]} == {"false"}
    # The line is told of with 0 while nobody waits; what runs at pods is not, while there is no pod.
    (of_gateways,) = [each["metadata"]["query"] for each in spec["triggers"] if each["name"] == "gateway"]
    assert of_gateways.endswith('(sum(poolgate_pod_in_flight{pool="chat"}) or vector(0))')


def test_pods_are_added_before_they_are_full_and_taken_away_slowly() -> None:
    built, spec = scaled()
    (wanted,) = [int(each["metadata"]["threshold"]) for each in spec["triggers"] if each["name"] == "gateway"]
    assert wanted < PoolSection().max_in_flight_per_pod
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    target = find(built, "Deployment", "vllm-chat")
    assert down["stabilizationWindowSeconds"] >= PoolSection().response_seconds
    assert policy["value"] == 1
    assert spec["minReplicaCount"] >= 1
    assert "replicas" not in target["spec"]


# Traces


def test_the_gateway_sends_its_traces_where_the_collector_listens() -> None:
    built = component("otel")
    (gateway,) = containers(find(built, "Deployment", "poolgate")["spec"]["template"])
    variables = {key: value for key, value in environment(gateway).items() if key.startswith("POOLGATE_")}
    endpoint = load_config(None, variables).tracing.endpoint
    collector = find(built, "Deployment", "otel-collector")
    settings = yaml.safe_load(mounted(built, collector)["/etc/otel-collector/collector.yaml"])
    listens = settings["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert endpoint == f"http://otel-collector:{listens.rpartition(':')[2]}"
    (container,) = containers(collector["spec"]["template"])
    health = settings["extensions"]["health_check"]["endpoint"]
    assert {port["name"]: f"0.0.0.0:{port['containerPort']}" for port in container["ports"]} == {
        "otlp-http": listens,
        "health": health,
    }


def test_the_collector_refuses_spans_before_it_runs_out_of_memory() -> None:
    built = component("otel")
    collector = find(built, "Deployment", "otel-collector")
    settings = yaml.safe_load(mounted(built, collector)["/etc/otel-collector/collector.yaml"])
    (container,) = containers(collector["spec"]["template"])
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert settings["service"]["pipelines"]["traces"]["processors"][0] == "memory_limiter"
    assert settings["processors"]["memory_limiter"]["limit_mib"] < limit


# In front of the gateways


def test_nothing_in_front_of_the_gateways_cuts_what_they_let_run() -> None:
    pool, server = PoolSection(), Config().server
    (route,) = of_kind(component("httproute"), "HTTPRoute")
    assert [rule["timeouts"] for rule in route["spec"]["rules"]] == [{"request": "0s"}]
    (ingress,) = of_kind(component("ingress"), "Ingress")
    told = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert int(told["proxy-read-timeout"]) > pool.response_seconds
    assert int(told["proxy-body-size"].removesuffix("m")) * 2**20 > server.max_upload_bytes
    assert (told["proxy-buffering"], told["proxy-request-buffering"], told["proxy-next-upstream"]) == ("off",) * 3
    balancer = find(component("aks"), "Service", "poolgate-internal")
    annotations = {key.rpartition("/")[2]: value for key, value in balancer["metadata"]["annotations"].items()}
    assert int(annotations["azure-load-balancer-tcp-idle-timeout"]) * 60 > pool.response_seconds
    assert annotations["azure-load-balancer-internal"] == "true"
    # Its probe would ask for `/`.
    assert all("appProtocol" not in port for port in balancer["spec"]["ports"])


# Whole systems


def overlay(name: str) -> Build:
    return build(KUSTOMIZE / "overlays" / name)


def pools_of(built: Build) -> set[str]:
    return {
        labels_of(each["spec"]["template"])["poolgate.dev/pool"]
        for each in of_kind(built, "Deployment")
        if "poolgate.dev/pool" in labels_of(each["spec"]["template"])
    }


def test_production_makes_no_secret_and_has_three_gateways_at_least() -> None:
    built = overlay("production")
    assert not [each for each in built if each["metadata"]["name"] == "first-secrets"]
    assert find(built, "HorizontalPodAutoscaler", "poolgate")["spec"]["minReplicas"] == 3
    settings = yaml.safe_load(find(built, "ConfigMap", "poolgate-config")["data"]["gateway.yaml"])
    assert set(settings["pools"]) == pools_of(built) == {"chat", "large"}
    # What the models of the pools are called there is what their pods say.
    for pool, told in settings["pools"].items():
        (container,) = containers(find(built, "Deployment", f"vllm-{pool}")["spec"]["template"])
        assert [f"--served-model-name={name}" for name in told["models"]] == [container["args"][1]]
    loaded = [each["args"][0] for each in containers(find(built, "Job", "model-loader")["spec"]["template"])]
    asked = [
        containers(find(built, "Deployment", f"vllm-{pool}")["spec"]["template"])[0]["args"][0]
        for pool in settings["pools"]
    ]
    assert sorted(loaded) == sorted(asked)


def test_on_aks_the_models_are_on_a_share_and_the_database_is_not() -> None:
    built = overlay("aks")
    classes = {
        each["metadata"]["name"]: each["spec"].get("storageClassName")
        for each in of_kind(built, "PersistentVolumeClaim")
    }
    assert classes == {"model-cache": "azurefile-csi-premium", "open-webui": None}
    spec = find(built, "Deployment", "vllm-chat")["spec"]["template"]["spec"]
    assert {(each["key"], each.get("value")) for each in spec["tolerations"]} == {
        ("nvidia.com/gpu", None),
        ("sku", "gpu"),
    }
