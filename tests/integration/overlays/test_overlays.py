"""Each overlay runs: its pods are found by its gateways with its rights, and answer who has a key, and nobody else."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.integration.overlays.node import GATEWAY, POOLS, SECONDS, Node, pool_of
from tests.integration.test_process import ROOT
from tests.manifests.building import KUSTOMIZE, OVERLAYS, build, name_of
from tests.raw import chat

SPEC = KUSTOMIZE / "components" / "first-secrets" / "secrets.yaml"


def secrets_in(folder: Path) -> dict[str, dict[str, str]]:
    """What component first-secrets makes, by Secret and entry."""
    made = [sys.executable, "-m", "gateway", "secrets", str(SPEC), "--folder", str(folder)]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    return {each.name: {entry.name: entry.read_text() for entry in each.iterdir()} for each in folder.iterdir()}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=OVERLAYS, ids=name_of)
async def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "secrets").mkdir()
    async with Node(build(request.param), folder, secrets_in(folder / "secrets")) as made:
        await made.run()
        yield made


async def get(node: Node, path: str, port: int = 9090) -> Any:
    async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client:
        return (await client.get(f"http://{node.gateway().address}:{port}{path}")).json()


async def asked(node: Node, body: Any, key: str | None) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client:
        url = f"http://{node.gateway().address}:8000/v1/chat/completions"
        return await client.post(url, json=body, headers=headers)


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.program("kubectl")]


async def test_every_pod_of_a_pool_is_found_ready_in_its_pool_and_no_other_pod_is(node: Node) -> None:
    status = await get(node, "/status.json")
    found = Counter((pod["pool"], pod["state"]) for pod in status["pods"])
    meant = Counter((pool_of(pod), "ready") for pod in node.pods if pod.namespace == POOLS and pool_of(pod))
    assert found == meant
    assert meant


async def test_every_replica_lists_and_watches_with_the_rights_of_its_roles_and_asks_for_nothing_else(
    node: Node,
) -> None:
    assert node.server.verbs() == {
        (verb, "pods", namespace) for verb in ("list", "watch") for namespace in (GATEWAY, POOLS)
    }


async def test_every_model_answers_a_stream_to_the_first_key_and_a_401_to_others(node: Node) -> None:
    key = node.secrets["poolgate-first-key"]["key"]
    async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client:
        headers = {"authorization": f"Bearer {key}"}
        told = (await client.get(f"http://{node.gateway().address}:8000/v1/models", headers=headers)).json()
    models = [model["id"] for model in told["data"]]
    assert models
    for model in models:
        answer = await asked(node, chat(model=model, stream=True, max_tokens=3), key)
        assert (answer.status_code, answer.text.rstrip().endswith("data: [DONE]")) == (200, True), answer.text
    for wrong in (None, "sk-pg_a1b2c3d4_wrong"):
        assert (await asked(node, chat(model=models[0]), wrong)).status_code == 401


async def test_open_webuis_key_opens_as_well(node: Node) -> None:
    model = next(model for pool in (await get(node, "/status.json"))["pools"].values() for model in pool["models"])
    answer = await asked(node, chat(model=model, max_tokens=1), node.secrets["open-webui"]["api-key"])
    assert answer.status_code == 200, answer.text


async def test_the_pods_take_nobody_elses_requests(node: Node) -> None:
    pod = next(pod for pod in node.pods if pod.namespace == POOLS and pool_of(pod))
    async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client:
        answer = await client.post(f"http://{pod.address}:8000/v1/chat/completions", json=chat(model="any"))
    assert answer.status_code == 401


async def test_limits_are_counted_in_redis(node: Node) -> None:
    # A gateway is ready before it has reached Redis.
    async with asyncio.timeout(SECONDS):
        while (await get(node, "/status.json"))["limits"]["mode"] != "redis":
            await asyncio.sleep(0.05)
    assert node.valkey.denied() == []
    # A bucket that is evicted begins anew, and its team with it.
    assert node.valkey.client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


async def test_the_gateways_count_each_other(node: Node) -> None:
    replicas = sum(pod.namespace == GATEWAY for pod in node.pods)
    assert replicas > 1
    assert (await get(node, "/status.json"))["replicas"] == replicas


async def test_a_pod_that_is_told_to_go_gets_no_new_work_and_a_stream_there_ends_in_peace(node: Node) -> None:
    pod = next(pod for pod in node.pods if pod.namespace == POOLS and pool_of(pod))
    pod.object.delete(grace=640)
    async with asyncio.timeout(SECONDS):
        while True:
            states = {each["name"]: each["state"] for each in (await get(node, "/status.json"))["pods"]}
            if states[pod.name] == "draining":
                return
            await asyncio.sleep(0.05)
