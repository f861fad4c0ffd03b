"""The law that every watch rests on: a list at any version and the events since are the list now."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.apiserver.asked import Asked, read_asked
from tests.apiserver.cluster import Cluster, Pod
from tests.apiserver.http import Request
from tests.apiserver.log import Log, key_of
from tests.apiserver.watching import seen_by

DEEDS = ("come", "ready", "unready", "leave", "enter", "delete", "kill", "vanish", "replace")


def asked_for(namespace: str = "", **query: str) -> Asked:
    return read_asked(Request("GET", "", query, {}), namespace)


def do(cluster: Cluster, deed: str, name: str) -> None:
    """What can be done to this pod now; else nothing."""
    namespace = "a" if name < "m" else "b"
    there = (namespace, name) in cluster.log.pods
    if deed == "come" and not there:
        cluster.create(name, namespace)
    elif deed != "come" and there:
        pod = Pod(cluster, namespace, name)
        {
            "ready": pod.become_ready,
            "unready": pod.become_unready,
            "leave": lambda: pod.relabel(app=None),
            "enter": lambda: pod.relabel(app="vllm"),
            "delete": pod.delete,
            "kill": pod.kill,
            "vanish": pod.vanish,
            "replace": pod.replace,
        }[deed]()


@given(
    st.lists(st.tuples(st.sampled_from(DEEDS), st.sampled_from("kxyz")), max_size=30),
    st.sampled_from(["", "a", "b"]),
    st.floats(0, 1),
)
def test_a_list_and_the_events_since_are_the_list_now(
    deeds: list[tuple[str, str]], namespace: str, where: float
) -> None:
    cluster = Cluster()
    first = cluster.log.version
    for deed, name in deeds:
        do(cluster, deed, name)
    asked = asked_for(namespace, labelSelector="app=vllm")
    version = first + round(where * (cluster.log.version - first))
    known: dict[Any, Any] = {key_of(pod): pod for pod in cluster.log.at(version) if asked.wants(pod)}
    for change in cluster.log.since(version):
        if (line := seen_by(asked, change)) is None:
            continue
        event = json.loads(line)
        key, pod = key_of(event["object"]), event["object"]
        assert (event["type"] == "ADDED") is (key not in known)
        assert int(pod["metadata"]["resourceVersion"]) == change.version
        if event["type"] == "DELETED":
            del known[key]
        else:
            known[key] = {name: held for name, held in pod.items() if name not in ("kind", "apiVersion")}
    assert known == {key_of(pod): pod for pod in cluster.log.at(cluster.log.version) if asked.wants(pod)}


def test_versions_of_one_namespace_have_holes() -> None:
    cluster = Cluster()
    pods = [cluster.create("a", "mine"), cluster.create("b", "yours"), cluster.create("c", "mine")]
    versions = [int(pod.object["metadata"]["resourceVersion"]) for pod in pods]
    assert versions == sorted(versions)
    assert all(later - earlier > 1 for earlier, later in pairwise(versions))


def test_a_backup_does_not_learn_what_comes_after() -> None:
    cluster = Cluster(Log())
    cluster.create("a")
    backup = cluster.log.backup()
    cluster.create("b")
    Pod(cluster, "models", "a").vanish()
    assert list(backup.pods) == [("models", "a")]
    assert backup.version < cluster.log.version
