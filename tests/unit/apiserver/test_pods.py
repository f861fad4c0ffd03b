"""What the recordings show only once, or as times."""

from datetime import UTC, datetime

from tests.apiserver.cluster import Cluster
from tests.apiserver.pods import container

NOW = datetime(2026, 11, 23, 18, 44, 9, tzinfo=UTC)


class Days:
    """A calendar whose moment a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def test_a_graceful_delete_names_a_future_time_and_leaves_the_pod_ready() -> None:
    """Recording 02: deletionTimestamp 18:44:39 with grace 30 at 18:44:09, then 18:44:10 with grace 0."""
    days = Days()
    cluster = Cluster(now=days)
    pod = cluster.create_ready("a")
    pod.delete()
    metadata = pod.object["metadata"]
    assert (metadata["deletionTimestamp"], metadata["deletionGracePeriodSeconds"]) == ("2026-11-23T18:44:39Z", 30)
    assert metadata["generation"] == 2
    assert {"type": "Ready", "status": "True"}.items() <= pod.object["status"]["conditions"][-1].items()
    days.now = NOW.replace(second=10)
    pod.delete(grace=0)
    metadata = pod.object["metadata"]
    assert (metadata["deletionTimestamp"], metadata["deletionGracePeriodSeconds"]) == ("2026-11-23T18:44:10Z", 0)
    assert metadata["generation"] == 2


def test_a_replaced_pod_has_its_name_and_labels_and_another_uid() -> None:
    pod = Cluster().create_ready("chat-0", labels={"app": "x"})
    before = pod.uid
    pod.replace()
    assert pod.uid != before
    assert pod.object["metadata"]["labels"] == {"app": "x"}
    assert pod.object["status"]["phase"] == "Pending"


def test_pods_of_a_deployment_name_their_replica_set_and_their_ports() -> None:
    ports = [{"name": "api", "containerPort": 9000, "protocol": "TCP"}]
    pod = Cluster().create("chat-1", owner="chat", containers=[container("main", ports), container("side", [])])
    assert pod.object["metadata"]["ownerReferences"][0]["name"] == "chat"
    assert [held.get("ports") for held in pod.object["spec"]["containers"]] == [ports, None]


def test_failures_look_as_kubelets_report_them() -> None:
    cluster = Cluster()
    evicted, crashing, lost = (cluster.create_ready(name) for name in ("evicted", "crashing", "lost"))
    evicted.evict()
    crashing.crash()
    lost.set_conditions(Ready="Unknown")
    assert (evicted.object["status"]["phase"], evicted.object["status"]["reason"]) == ("Failed", "Evicted")
    waiting = crashing.object["status"]["containerStatuses"][0]
    assert (waiting["state"]["waiting"]["reason"], waiting["restartCount"]) == ("CrashLoopBackOff", 1)
    assert lost.object["status"]["conditions"][-1]["status"] == "Unknown"
