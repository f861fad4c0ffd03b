"""What the component prometheus is given finds gateways and pods in a cluster, under the labels that boards go by.

Debian builds its Prometheus without Kubernetes. So its place is taken by what its documentation says that it makes of
pods (`role: pod`: a target for each port, with `__meta_kubernetes_…` labels), asked for as it would ask: with the
rights of its own Role, in the namespaces and by the selectors of the configuration. The rest, which is where mistakes
are made, is the real one's: relabelling, scraping, rules.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from loadtest.simulator import PodSettings, SimulatedPod
from tests.apiserver.access import Account, Grant
from tests.apiserver.pods import container
from tests.apiserver.server import ADMIN_TOKEN, ApiServer
from tests.discovering import fleet_sees, gateway
from tests.integration.prometheus.server import SECONDS, Prometheus, running_with, until
from tests.integration.test_explain import ops_of
from tests.manifests.building import KUSTOMIZE, Build, build, find, of_kind

pytestmark = [pytest.mark.program("kubectl"), pytest.mark.program("prometheus")]

TOKEN = "prometheus' own"
GATEWAY, POOL = {"app.kubernetes.io/name": "poolgate"}, {"poolgate.dev/pool": "chat"}


def manifests() -> Build:
    return build(KUSTOMIZE / "components" / "prometheus")


def prometheus_account() -> Account:
    """With the rights that its Roles give."""
    grants = {
        Grant(verb, resource, role["metadata"]["namespace"])
        for role in of_kind(manifests(), "Role")
        if role["metadata"]["name"] == "prometheus"
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    return Account("system:serviceaccount:poolgate:prometheus", frozenset(grants))


def targets_of(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As Prometheus documents them: none while the pod has no address, else one for each port of a container."""
    if not (address := pod["status"].get("podIP")):
        return
    named = {f"__meta_kubernetes_pod_label_{_plain(key)}": value for key, value in pod["metadata"]["labels"].items()}
    for each in pod["spec"]["containers"]:
        for port in each.get("ports", []):
            labels = {
                "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
                "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                "__meta_kubernetes_pod_phase": pod["status"]["phase"],
                "__meta_kubernetes_pod_container_name": each["name"],
                "__meta_kubernetes_pod_container_port_name": port["name"],
                **named,
            }
            yield {"targets": [f"{address}:{port['containerPort']}"], "labels": labels}


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


async def found(server: ApiServer, config: dict[str, Any]) -> list[dict[str, Any]]:
    """What the API server tells a Prometheus with this `kubernetes_sd_configs` entry."""
    (selector,) = config["selectors"]
    listed = []
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
        for namespace in config["namespaces"]["names"]:
            answer = await client.get(
                f"/api/v1/namespaces/{namespace}/pods",
                params={"labelSelector": selector["label"]},
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            answer.raise_for_status()
            listed += answer.json()["items"]
    return [target for pod in listed for target in targets_of(pod)]


async def with_what_is_found(server: ApiServer, folder: Path) -> dict[str, Any]:
    """The configuration of the ConfigMap, with files in place of Kubernetes."""
    (given,) = [each for each in of_kind(manifests(), "ConfigMap") if "prometheus.yaml" in each["data"]]
    config: dict[str, Any] = yaml.safe_load(given["data"]["prometheus.yaml"])
    config["global"]["scrape_interval"] = "1s"
    for job in config["scrape_configs"]:
        (kubernetes,) = job.pop("kubernetes_sd_configs")
        file = folder / f"{job['job_name']}.json"
        file.write_text(json.dumps(await found(server, kubernetes)), "utf-8")
        job["file_sd_configs"] = [{"files": [str(file)]}]
    return config


def rules() -> str:
    (given,) = [each for each in of_kind(manifests(), "ConfigMap") if "prometheus.yaml" in each["data"]]
    text: str = given["data"]["poolgate.yaml"]
    return text


async def scraped(prometheus: Prometheus) -> list[dict[str, str]]:
    """The labels of all targets, without those that are addresses; none while one of them is not up."""
    targets = (await prometheus.ask("targets", state="active"))["activeTargets"]
    if any(each["health"] != "up" for each in targets):
        return []
    told = [{name: value for name, value in each["labels"].items() if name != "instance"} for each in targets]
    return sorted(told, key=lambda labels: (labels["job"], labels.get("pod", "")))


async def test_gateways_and_pods_of_a_cluster_are_scraped_under_the_names_that_the_dashboards_use(
    tmp_path: Path,
) -> None:
    accounts = {ADMIN_TOKEN: Account("admin"), TOKEN: prometheus_account()}
    async with (
        ApiServer(accounts=accounts) as server,
        SimulatedPod(PodSettings(model="m", port=0)) as first,
        SimulatedPod(PodSettings(model="m", port=0, seed=1)) as second,
        gateway(server, namespaces=("vllm",)) as running,
        ops_of(running) as ops,
    ):

        def pod(name: str, namespace: str, labels: dict[str, str], **ports: int) -> Any:
            listed = [{"name": port, "containerPort": number} for port, number in ports.items()]
            return server.cluster.create(name, namespace, labels=labels, containers=[container(ports=listed)])

        chat = [pod(f"chat-{place}", "vllm", POOL, http=each.port) for place, each in enumerate((first, second))]
        ours = pod("poolgate-a", "poolgate", GATEWAY, http=running.port, ops=int(ops.rpartition(":")[2]))
        for each in (*chat, ours):
            each.become_ready("127.0.0.1")
        # What must not be scraped: no address yet, gone, of another namespace, not of a pool.
        pod("chat-2", "vllm", POOL, http=first.port)
        gone = pod("chat-3", "vllm", POOL, http=first.port)
        gone.become_ready("127.0.0.1")
        gone.evict()
        pod("chat-4", "elsewhere", POOL, http=first.port).become_ready("127.0.0.1")
        pod("loader", "vllm", {"app": "loader"}, http=first.port).become_ready("127.0.0.1")
        await fleet_sees(running, **{"chat-0": "ready", "chat-1": "ready", "chat-2": "starting"})

        async with running_with(tmp_path, await with_what_is_found(server, tmp_path), rules()) as prometheus:

            async def all_up() -> bool:
                return bool(await scraped(prometheus))

            await until(all_up, SECONDS, "all targets are up")
            assert await scraped(prometheus) == [
                {"job": "poolgate", "namespace": "poolgate"},
                {"job": "vllm", "namespace": "vllm", "pod": "chat-0", "pool": "chat"},
                {"job": "vllm", "namespace": "vllm", "pod": "chat-1", "pool": "chat"},
            ]
            assert await prometheus.value("count(poolgate_pods{instance='poolgate-a', state='ready'})") == 1
            # The two meet in `pod`, as in the pool's dashboard.
            met = "count(vllm:num_requests_running and on (pod) poolgate_pod_in_flight{job='poolgate', pool='chat'})"
            assert await prometheus.value(met) == 2
            for trigger in find(build(KUSTOMIZE / "components" / "keda"), "ScaledObject", "vllm-chat")["spec"][
                "triggers"
            ]:
                assert await prometheus.value(trigger["metadata"]["query"]) == 0
