"""`poolgate check` before what a configuration points to: what is away is a warning, what says no is an error."""

import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import reach
from gateway.cli.reach import Trouble, troubles
from gateway.config.reading import load_config
from loadtest.simulator import PodSettings, SimulatedPod
from tests.apiserver.access import Account, Grant, service_account
from tests.apiserver.server import ApiServer
from tests.discovering import HOME, NAMESPACE, OddPod, appear, kubeconfig
from tests.integration.test_pods_command import Ended, command
from tests.issuer import CONFIGURATION, Hang, IssuerServer
from tests.turns import within
from tests.valkey import Valkey

PASSWORD = "hunter2-hunter2"
PATIENT = 60.0
"""For what answers: a machine may be busy."""


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port on which nobody listens."""
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield unheard.getsockname()[1]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """A Redis with a password, of the user `default` and of one who may do nothing."""
    server = Valkey()
    server.start_now()
    server.client.acl_setuser("idle", enabled=True, passwords=[f"+{PASSWORD}"], reset=True)
    server.client.config_set("requirepass", PASSWORD)
    yield server
    server.stop_now()


async def asked(
    settings: Mapping[str, Any], environment: Mapping[str, str] | None = None, seconds: float = PATIENT
) -> list[Trouble]:
    """What is told of a configuration."""
    return list(await troubles(load_config(None, {}, settings), environment or {}, seconds))


async def test_who_trusts_everybody_as_a_proxy_is_warned(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text("server:\n  trusted_proxies:\n    - 10.0.0.0/8\n    - ::/0\n")
    ended = await command("check", str(file), "--offline")
    assert ended.code == 0
    assert ended.err.startswith(f"{file}:4: warning: server.trusted_proxies.1: ::/0 is everybody")
    assert ended.err.count("warning") == 1


def pods(*urls: str) -> dict[str, Any]:
    return {"discovery.pods": [{"url": url, "pool": "chat"} for url in urls]}


STATIC = {"discovery.mode": "static"}


# Pods.


async def test_pods_that_answer_are_not_told_of() -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod:
        assert await asked(pods(pod.url)) == []


async def test_each_pod_that_is_away_is_told_of_by_its_name(nobody: int) -> None:
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        async with SimulatedPod(PodSettings(model="m")) as pod:
            urls = (f"http://127.0.0.1:{nobody}", pod.url, f"http://127.0.0.1:{unheard.getsockname()[1]}")
            first, last = await asked(pods(*urls))
    why = "is not reachable now: /v1/models: the pod takes no connection"
    assert first == Trouble("discovery.pods.0", f"chat-0 {why}")
    assert last == Trouble("discovery.pods.2", f"chat-2 {why}")


async def test_a_pod_that_hangs_is_told_of_when_its_time_is_over() -> None:
    async with OddPod() as silent:
        (hanging,) = await asked(pods(f"http://127.0.0.1:{silent.port}"), seconds=0.5)
    assert hanging == Trouble("discovery.pods.0", "chat-0 is not reachable now: /v1/models: no answer in 0.5 s")


async def test_what_hangs_is_waited_for_together() -> None:
    async with OddPod() as silent:
        settings = pods(f"http://127.0.0.1:{silent.port}") | {"limits.redis_url": f"redis://127.0.0.1:{silent.port}"}
        settings["auth.jwt"] = {"issuer": f"http://127.0.0.1:{silent.port}", "audience": "x"}
        # One after the other they would take 1.8 s.
        async with within(1.7):
            assert len(await asked(settings, seconds=0.6)) == 3


async def test_a_pod_that_lists_nothing_or_nothing_that_is_admitted_is_told_of() -> None:
    async with OddPod() as empty, SimulatedPod(PodSettings(model="llama")) as other:
        empty.list_models(b'{"data": []}')
        settings = pods(f"http://127.0.0.1:{empty.port}", other.url) | {"pools": {"chat": {"models": ["qwen*"]}}}
        nothing, not_admitted = await asked(settings)
    assert "chat-0 lists no model" in nothing.text
    assert "chat-1 lists llama, which no glob of pools.chat.models admits" in not_admitted.text
    assert (nothing.lasting, not_admitted.lasting) == (False, False)


async def test_a_pod_that_refuses_our_key_does_not_heal() -> None:
    async with SimulatedPod(PodSettings(model="m", api_key="right")) as pod:
        assert await asked(pods(pod.url) | {"upstream.api_key": "right"}) == []
        (trouble,) = await asked(pods(pod.url) | {"upstream.api_key": "wrong"})
    assert trouble.lasting
    assert "does not accept our key: set upstream.api_key" in trouble.text


# Redis.


async def redis(url: str, seconds: float = PATIENT) -> Trouble:
    (trouble,) = await asked(STATIC | {"limits.redis_url": url}, seconds=seconds)
    assert trouble.key == "limits.redis_url"
    assert PASSWORD not in trouble.text
    return trouble


async def test_a_redis_that_answers_is_not_told_of(valkey: Valkey) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}/0"
    assert await asked(STATIC | {"limits.redis_url": url}) == []


@pytest.mark.parametrize("user", ["", f":{PASSWORD}x@", f"nobody:{PASSWORD}@", f"idle:{PASSWORD}@"])
async def test_a_redis_that_does_not_let_us_in_does_not_heal(valkey: Valkey, user: str) -> None:
    trouble = await redis(f"redis://{user}127.0.0.1:{valkey.port}/0")
    assert trouble.lasting
    assert trouble.text.startswith("Redis does not let us in")
    assert "correct the user and the password in the URL" in trouble.text


async def test_a_redis_that_is_away_may_come(nobody: int) -> None:
    trouble = await redis(f"redis://:{PASSWORD}@127.0.0.1:{nobody}/0")
    assert not trouble.lasting
    assert trouble.text == "Redis cannot be reached (ConnectionError): is it running, and is this its host and port?"


async def test_a_redis_that_hangs_is_not_waited_for() -> None:
    async with OddPod() as silent:
        trouble = await redis(f"redis://127.0.0.1:{silent.port}", seconds=0.3)
    assert (trouble.text, trouble.lasting) == ("Redis does not answer in time (TimeoutError)", False)


async def test_a_url_that_redis_library_cannot_use_does_not_heal() -> None:
    trouble = await redis(f"redis://:{PASSWORD}@127.0.0.1:x/0")
    assert (trouble.text, trouble.lasting) == ("Redis' URL cannot be used", True)


# The issuer.


async def test_an_issuer_is_asked_for_its_keys() -> None:
    async with IssuerServer() as server:
        settings = STATIC | {"auth.jwt": {"issuer": server.url, "audience": "x"}}
        assert await asked(settings) == []
        server.instead[CONFIGURATION] = Hang
        (trouble,) = await asked(settings, seconds=0.3)
    assert trouble == Trouble(
        "auth.jwt.issuer", "the issuer's keys cannot be read now: there is no whole answer within 0.3 seconds"
    )


# Kubernetes.


@asynccontextmanager
async def cluster(account: Account) -> AsyncIterator[tuple[ApiServer, dict[str, str]]]:
    """An API server, and the environment in which it is found."""
    async with ApiServer(accounts={"token": account}) as server:
        with kubeconfig(server, "token") as file:
            yield server, {"KUBECONFIG": str(file)}


IN_CLUSTER = {"discovery.namespaces": [NAMESPACE, "more"]}


async def test_who_may_list_and_watch_is_not_told_of() -> None:
    async with cluster(service_account(NAMESPACE, "more", HOME)) as (server, environment):
        appear(server, "a", ip="10.1.1.1", namespace=NAMESPACE)
        appear(server, "b", ip="10.1.1.2", namespace="more")
        assert await asked(IN_CLUSTER, environment) == []


@pytest.mark.parametrize(("has", "lacks"), [("list", "watch"), ("watch", "list")])
async def test_a_verb_that_is_missing_is_named_with_its_namespace(has: str, lacks: str) -> None:
    grants = service_account(NAMESPACE, HOME).grants or frozenset()
    account = Account("system:serviceaccount:default:gw", grants | {Grant(has, "pods", "more")})
    async with cluster(account) as (server, environment):
        appear(server, "a", ip="10.1.1.1", namespace=NAMESPACE)
        (trouble,) = await asked(IN_CLUSTER, environment)
    assert (trouble.key, trouble.lasting) == ("discovery.namespaces.1", True)
    assert f"we may not {lacks} pods in the namespace more (403): bind a Role" in trouble.text


async def test_a_namespace_without_a_candidate_is_told_of() -> None:
    async with cluster(service_account(NAMESPACE, "more", HOME)) as (server, environment):
        appear(server, "a", ip="10.1.1.1", namespace=NAMESPACE)
        (trouble,) = await asked(IN_CLUSTER, environment)
    assert trouble == Trouble("discovery.namespaces.1", "no pod in more bears poolgate.dev/pool now")


async def test_credentials_that_are_not_accepted_do_not_heal() -> None:
    async with cluster(service_account(NAMESPACE, "more", HOME)) as (server, environment):
        server.accounts.clear()
        told = await asked(IN_CLUSTER, environment)
    assert [trouble.lasting for trouble in told] == [True] * 3
    assert "does not accept our credentials (401)" in told[0].text


async def test_where_there_is_no_cluster_it_is_not_asked(tmp_path: Path) -> None:
    (trouble,) = await asked({"discovery.namespaces": ["x"]}, {"HOME": str(tmp_path)})
    assert trouble.text.startswith("not asked: discovery.mode is kubernetes, but there is no cluster")
    assert not trouble.lasting


async def test_an_api_server_that_hangs_is_not_waited_for() -> None:
    async with OddPod() as silent, ApiServer() as server:
        with kubeconfig(server) as file:
            file.write_text(file.read_text().replace(str(server.port), str(silent.port)))
            told = await asked({"discovery.namespaces": ["x"]}, {"KUBECONFIG": str(file)}, seconds=0.3)
    assert "the API server gave no list of the pods in x within 0.3 s" in told[0].text


def test_each_is_given_seconds_and_not_minutes() -> None:
    assert reach.ASK_SECONDS <= 3


# The command.


def write(folder: Path, settings: Mapping[str, Any]) -> Path:
    file = folder / "poolgate.yaml"
    file.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    return file


async def check(*arguments: str, more: Mapping[str, str] | None = None) -> Ended:
    return await command("check", *arguments, more=more)


def listed(*urls: str) -> dict[str, Any]:
    return {"discovery": {"pods": [{"url": url, "pool": "chat"} for url in urls]}, "auth": {"mode": "none"}}


async def test_what_is_away_is_a_warning_with_its_line(tmp_path: Path, nobody: int) -> None:
    file = write(tmp_path, listed(f"http://127.0.0.1:{nobody}"))
    ended = await check(str(file))
    assert (ended.code, ended.out) == (0, f"{file}: valid; 1 pod, 0 keys\n")
    assert ended.err.startswith(f"{file}:3: warning: discovery.pods.0: chat-0 is not reachable now")


async def test_what_says_no_is_an_error_and_exit_2(tmp_path: Path, valkey: Valkey) -> None:
    file = write(tmp_path, {"limits": {"redis_url": f"redis://:{PASSWORD}x@127.0.0.1:{valkey.port}"}} | listed())
    file.write_text(file.read_text().replace("pods: []", "mode: static"))
    ended = await check(str(file))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"poolgate: {file}:2: limits.redis_url: Redis does not let us in")
    assert PASSWORD not in ended.err


async def test_faults_warnings_and_figures_are_told_to_machines(tmp_path: Path, nobody: int) -> None:
    file = write(tmp_path, listed(f"http://127.0.0.1:{nobody}"))
    ended = await check(str(file), "--json")
    told = json.loads(ended.out)
    assert (ended.code, ended.err, told["valid"]) == (0, "", True)
    assert [(each["level"], each["line"], each["key"]) for each in told["problems"]] == [
        ("warning", 3, "discovery.pods.0")
    ]
    file.write_text("server: {prot: 1}\nsever: {}\n")
    ended = await check(str(file), "--json")
    told = json.loads(ended.out)
    assert (ended.code, ended.err, told["valid"]) == (2, "", False)
    assert [(each["level"], each["file"], each["line"], each["key"]) for each in told["problems"]] == [
        ("error", str(file), 1, "server.prot"),
        ("error", str(file), 2, "sever"),
    ]


async def test_the_keys_file_is_told_of_beside_the_rest(tmp_path: Path, nobody: int) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n- {id: a, taem: b}\n")
    file = write(tmp_path, listed(f"http://127.0.0.1:{nobody}") | {"auth": {"keys_file": str(keys)}})
    ended = await check(str(file))
    assert ended.code == 2
    assert f"poolgate: {keys}:2: keys.0.taem: this key does not exist: did you mean team?" in ended.err
    assert "warning: discovery.pods.0: " in ended.err


async def test_where_tokens_let_people_in_the_keys_file_may_be_empty_but_not_missing(
    tmp_path: Path, nobody: int
) -> None:
    keys = tmp_path / "keys.yaml"
    jwt = {"issuer": f"http://127.0.0.1:{nobody}", "audience": "x"}
    file = write(tmp_path, listed(f"http://127.0.0.1:{nobody}") | {"auth": {"keys_file": str(keys), "jwt": jwt}})
    ended = await check(str(file))
    assert ended.code == 2
    assert f"poolgate: {file}:6: auth.keys_file: {keys} does not exist: make one with" in ended.err
    keys.write_text("keys: []\n")
    ended = await check(str(file))
    assert (ended.code, "holds no key" in ended.err) == (0, False)


async def test_offline_nothing_but_the_file_is_looked_at(tmp_path: Path) -> None:
    async with OddPod() as pod:
        settings = listed(f"http://127.0.0.1:{pod.port}") | {
            "auth": {"keys_file": "/etc/poolgate/no/keys.yaml", "jwt": {"issuer": "${ISSUER}", "audience": "x"}},
            "limits": {"redis_url": "file:/run/secrets/redis", "replicas": "${REPLICAS}"},
            "upstream": {"api_key": "${VLLM_API_KEY}"},
        }
        file = write(tmp_path, settings)
        ended = await check(str(file), "--offline", more={"POOLGATE_SERVER__PROT": "1"})
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == f"{file}: valid; 1 pod; nothing but this file was read\n"
        assert pod.asked == []
    online = await check(str(file))
    assert online.code == 2
    assert [line.split(": ")[2] for line in online.err.splitlines()] == [
        "auth.jwt.issuer",
        "limits.redis_url",
        "limits.replicas",
        "upstream.api_key",
    ]


async def test_a_variable_with_one_underscore_is_warned_of(tmp_path: Path) -> None:
    file = write(tmp_path, {"discovery": {"mode": "static"}, "auth": {"mode": "none"}})
    ended = await check(str(file), more={"POOLGATE_SERVER_PORT": "1"})
    assert (ended.code, ended.err) == (0, "POOLGATE_SERVER_PORT: warning: is not read: write POOLGATE_SERVER__PORT\n")
