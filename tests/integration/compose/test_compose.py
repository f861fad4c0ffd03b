"""What `docker compose up` would start works together: secrets, simulated pods, Redis, the gateway and Prometheus."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from openai import AuthenticationError, OpenAI
from redis import Redis

from tests.integration.compose.playing import SECONDS, Stage, gateway_ready, played, socket_of


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with played("gateway") as stage:
        stage.until("chat-0", lambda: stage.healthy("chat-0"))
        stage.until("chat-1", lambda: stage.healthy("chat-1"))
        stage.until("gateway", lambda: gateway_ready(stage) and pods(stage)["ready"] == 2)
        yield stage


def pods(stage: Stage) -> dict[str, int]:
    """How many there are, by state, as the status page has it."""
    counted: dict[str, int] = {"ready": 0}
    for pod in status(stage)["pods"]:
        counted[pod["state"]] = counted.get(pod["state"], 0) + 1
    return counted


def status(stage: Stage) -> Any:
    with urlopen(f"http://127.0.0.1:{stage.ports['gateway:9090']}/status.json", timeout=SECONDS) as answer:
        return json.load(answer)


def secret(stage: Stage, path: str) -> str:
    return (stage.volume("secrets") / path).read_text()


def ask(stage: Stage, key: str, **more: Any) -> str:
    """One chat; the answer's text."""
    client = OpenAI(base_url=f"http://127.0.0.1:{stage.ports['gateway:8000']}/v1", api_key=key, max_retries=0)
    with client:
        asked = client.chat.completions.create(
            model="qwen3-8b", messages=[{"role": "user", "content": "hi"}], max_tokens=8, **more
        )
    return asked.choices[0].message.content or ""


def test_a_chat_with_the_key_of_the_secrets_folder_is_answered(stage: Stage) -> None:
    assert ask(stage, secret(stage, "poolgate-first-key/key"))


def test_nobody_is_answered_without_a_key(stage: Stage) -> None:
    with pytest.raises(AuthenticationError):
        ask(stage, "sk-nobody")


def test_limits_are_counted_in_redis_by_a_socket_that_only_its_user_may_open(stage: Stage) -> None:
    ask(stage, secret(stage, "poolgate-first-key/key"))
    with Redis(unix_socket_path=str(socket_of(stage))) as client:
        # A bucket that is full again is forgotten: what is left to see is that the gateway's script has run.
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] > 0
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert stat.S_IMODE(socket_of(stage).stat().st_mode) == 0o700

    def counts_in_redis() -> bool:
        # On a busy machine it leaves one that is slow, and comes back.
        with urlopen(f"http://127.0.0.1:{stage.ports['gateway:9090']}/metrics", timeout=SECONDS) as answer:
            return 'poolgate_limit_mode{mode="redis"} 1.0' in answer.read().decode()

    stage.until("gateway", counts_in_redis)


def test_open_webuis_key_speaks_for_its_users_and_each_has_a_limit(stage: Stage) -> None:
    key = secret(stage, "open-webui/api-key")
    assert ask(stage, key, extra_headers={"X-OpenWebUI-User-Id": "ana"})
    rule = yaml.safe_load((stage.places("gateway")["/etc/poolgate"] / "gateway.yaml").read_text())["limits"]["rules"][0]
    with OpenAI(base_url=f"http://127.0.0.1:{stage.ports['gateway:8000']}/v1", api_key=key) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="qwen3-8b",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=1,
            extra_headers={"X-OpenWebUI-User-Id": "ben"},
        )
    assert raw.headers["x-ratelimit-limit-requests"] == str(rule["requests_per_minute"])


def test_a_second_up_leaves_the_secrets_as_they_are(stage: Stage) -> None:
    folder = stage.volume("secrets")
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    stage.start("secrets")
    stage.finish("secrets")
    assert before
    assert {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()} == before
    log = stage.log("secrets").read_text()
    assert all(value.decode() not in log for value in before.values())


def test_a_key_that_is_added_by_the_service_secrets_opens_within_seconds(stage: Stage) -> None:
    # `docker compose run secrets keys create …`, as README.md has it: another command for the same service.
    file = "/secrets/poolgate-keys/keys.yaml"
    command = stage.command("secrets", ["poolgate", "keys", "create", "--team", "acme", "--file", file, "--json"])
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=SECONDS, check=True)
    key = json.loads(done.stdout)["key"]

    def opens() -> bool:
        try:
            return bool(ask(stage, key))
        except AuthenticationError:
            return False

    stage.until("gateway", opens)


def test_without_the_profile_cpu_its_pod_is_shown_and_keeps_nobody_waiting(stage: Stage) -> None:
    assert pods(stage)["ready"] == 2
    others = [(pod["name"], pod["state"]) for pod in status(stage)["pods"] if pod["state"] != "ready"]
    assert others == [("small-0", "starting")]


@pytest.mark.program("prometheus")
def test_prometheus_sees_every_target_up_with_the_names_that_the_gateway_has(stage: Stage) -> None:
    stage.start("prometheus")
    meant = [("poolgate", "", ""), ("vllm", "chat", "chat-0"), ("vllm", "chat", "chat-1")]
    stage.until("prometheus", lambda: up(stage) == meant)
    groups = answer_of(stage, "rules")["groups"]
    assert {Path(group["file"]).name for group in groups} == {"poolgate.yaml"}


def up(stage: Stage) -> list[tuple[str, str, str]]:
    """(Job, pool, pod) of each target that is up."""
    try:
        targets = answer_of(stage, "targets?state=active")["activeTargets"]
    except URLError:
        return []
    seen = [(each["labels"], each["health"]) for each in targets]
    return sorted((of["job"], of.get("pool", ""), of.get("pod", "")) for of, health in seen if health == "up")


def answer_of(stage: Stage, path: str) -> Any:
    with urlopen(f"http://127.0.0.1:{stage.ports['prometheus:9090']}/api/v1/{path}", timeout=SECONDS) as answer:
        return json.load(answer)["data"]


def test_all_end_in_the_time_that_the_file_gives_them(stage: Stage) -> None:
    """The last of this file: nothing is left of the stage."""
    processes = dict(stage.running)
    stage.stop()
    assert processes.keys() - {"prometheus"} == {"gateway", "redis", "chat-0", "chat-1"}
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(processes, 0)
    assert all(not os.path.exists(f"/proc/{process.pid}") for process in processes.values())
