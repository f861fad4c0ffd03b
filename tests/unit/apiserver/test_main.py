"""The cluster for benches is as large as asked, answers for its kubeconfig, churns, and goes when it is told to."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.apiserver.__main__ import fill, turns
from tests.apiserver.cluster import Cluster
from tests.apiserver.hearing import Caller, Heard
from tests.apiserver.pods import parse_stamp

ROOT = Path(__file__).parents[3]


@contextmanager
def running(kubeconfig: Path, *arguments: str) -> Iterator[int]:
    """The process, which must end by itself on SIGTERM. Gives its port."""
    command = [sys.executable, "-m", "tests.apiserver", "--kubeconfig", str(kubeconfig), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            assert said == {"url": said["url"], "kubeconfig": str(kubeconfig)}
            yield urlsplit(said["url"]).port or 0
        finally:
            process.terminate()
    assert process.returncode == 0


def is_ready(pod: dict[str, Any]) -> bool:
    return any(held["type"] == "Ready" and held["status"] == "True" for held in pod["status"]["conditions"])


async def listed(port: int, token: str) -> list[dict[str, Any]]:
    async with await Caller.connect(port) as caller:
        caller.get("/api/v1/namespaces/vllm/pods?labelSelector=poolgate.dev/pool%3Dbench", token=token)
        items: list[dict[str, Any]] = json.loads((await caller.whole()).plain_body)["items"]
        return items


async def watched(port: int, events: int) -> Heard:
    async with await Caller.connect(port) as caller:
        caller.get("/api/v1/namespaces/vllm/pods?watch=1")
        return await caller.until(lambda heard: len(heard.events) >= events)


def test_the_pods_are_there_ready_and_each_at_an_address_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    with running(file, "--pods", "300", "--port-of-pods", "7000", "--network", "127.2.0.0/16") as port:
        kubeconfig = json.loads(file.read_text())
        assert kubeconfig["clusters"][0]["cluster"]["server"] == f"http://127.0.0.1:{port}"
        pods = asyncio.run(listed(port, kubeconfig["users"][0]["user"]["token"]))
    assert len(pods) == 300
    assert all(is_ready(pod) and pod["metadata"]["annotations"] == {"poolgate.dev/port": "7000"} for pod in pods)
    addresses = {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 300
    assert {"127.2.0.1", "127.2.1.44"} <= addresses


def test_pods_that_churn_lose_their_readiness_and_get_it_back(tmp_path: Path) -> None:
    with running(tmp_path / "kubeconfig", "--pods", "3", "--port-of-pods", "7000", "--churn", "2") as port:
        heard = asyncio.run(watched(port, 3 + 2 + 4))  # the watch may have begun between two halves of a turn
    flips = [(event["object"]["metadata"]["name"], is_ready(event["object"])) for event in heard.events[3:]]
    turn = list(dropwhile(lambda flip: flip[1], flips))[:4]
    assert len({name for name, _ in turn}) == 2
    assert [ready for _, ready in turn] == [False, False, True, True]


def test_all_take_their_turn_to_churn() -> None:
    (pods,) = fill(Cluster(), [("bench", 3)], "vllm", IPv4Network("127.1.0.0/16"), 7000)
    names = [[pod.name[-1] for pod in chosen] for chosen in islice(turns(pods, 2), 3)]
    assert names == [["0", "1"], ["2", "0"], ["1", "2"]]


def test_the_pods_of_a_pool_are_older_than_those_of_the_next() -> None:
    cluster = Cluster()
    before = cluster.now
    few, many = fill(cluster, [("few", 2), ("many", 3)], "vllm", IPv4Network("127.1.0.0/16"), 7000)
    assert [pod.name for pod in (*few, *many)] == ["few-00000", "few-00001", *(f"many-0000{n}" for n in range(3))]
    assert {pod.object["metadata"]["labels"]["poolgate.dev/pool"] for pod in many} == {"many"}
    assert len({pod.object["status"]["podIP"] for pod in (*few, *many)}) == 5
    created = [[parse_stamp(pod.object["metadata"]["creationTimestamp"]) for pod in pods] for pods in (few, many)]
    assert max(created[0]) < min(created[1])
    assert cluster.now is before


def test_of_several_pools_the_last_one_churns(tmp_path: Path) -> None:
    arguments = ("--pool", "few:2", "--pool", "many:3", "--port-of-pods", "7000", "--churn", "3")
    with running(tmp_path / "kubeconfig", *arguments) as port:
        heard = asyncio.run(watched(port, 5 + 6))
    assert len({event["object"]["metadata"]["name"] for event in heard.events[:5]}) == 5
    assert {event["object"]["metadata"]["name"][:-1] for event in heard.events[5:]} == {"many-0000"}


@pytest.mark.parametrize(
    "wrong",
    [
        ("--pods", "300", "--network", "127.1.0.0/24"),
        ("--churn", "4", "--pods", "3"),
        ("--churn", "3", "--pool", "few:3", "--pool", "many:2"),
        ("--pool", "few"),
        ("--pool", "few:0"),
        ("--pool", ":3"),
    ],
)
def test_what_cannot_be_is_refused(wrong: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.apiserver", "--port-of-pods", "1", "--kubeconfig", str(tmp_path / "k")]
    ended = subprocess.run([*command, *wrong], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert wrong[0] in ended.stderr
