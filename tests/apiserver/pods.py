"""Pods as JSON, in the shape and the order in which kube-apiserver 1.36 writes them. Pure: object in, object out."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.apiserver.log import Object

_METADATA_ORDER = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "managedFields",
)
_STATUS_ORDER = (
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "qosClass",
)
VLLM_PORTS = ({"name": "http", "containerPort": 8000, "protocol": "TCP"},)


def stamp(moment: datetime) -> str:
    """A time as the API writes it: whole seconds, UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_stamp(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def container(name: str = "vllm", ports: Sequence[Mapping[str, Any]] = VLLM_PORTS, **more: Any) -> Object:
    """A container of a pod's spec, with the server's defaults filled in."""
    return {
        "name": name,
        "image": "vllm/vllm-openai:v0.11.0",
        "args": ["--model", "m"],
        **({"ports": [dict(port) for port in ports]} if ports else {}),
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        **more,
    }


def new_pod(
    name: str,
    namespace: str,
    uid: str,
    created: datetime,
    *,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    owner: str | None = None,
    containers: Sequence[Object] = (),
    spec: Mapping[str, Any] | None = None,
    node: str = "node-1",
    manager: str = "kube-controller-manager",
) -> Object:
    """A pod just created and, with a `node`, bound: Pending, without address or conditions. `owner`: a ReplicaSet."""
    return {
        "metadata": _ordered(
            {
                "name": name,
                "namespace": namespace,
                "uid": uid,
                "resourceVersion": "",  # the log's to give
                "generation": 1,
                "creationTimestamp": stamp(created),
                **({"labels": dict(labels)} if labels else {}),
                **({"annotations": dict(annotations)} if annotations else {}),
                **({"generateName": f"{owner}-", "ownerReferences": [_owned_by(owner)]} if owner else {}),
                "managedFields": [_managed(manager, created, labels)],
            },
            _METADATA_ORDER,
        ),
        "spec": {
            "containers": list(containers) or [container()],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            **({"nodeName": node} if node else {}),
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute"}
                | {"tolerationSeconds": 300}
                for trouble in ("not-ready", "unreachable")
            ],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
            **(spec or {}),
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }


def with_metadata(pod: Object, **fields: Any) -> Object:
    """Metadata changed; None takes a field away."""
    merged = {name: value for name, value in (pod["metadata"] | fields).items() if value is not None}
    return pod | {"metadata": _ordered(merged, _METADATA_ORDER)}


def with_status(pod: Object, **fields: Any) -> Object:
    """Status changed; None takes a field away. The spec's generation does not move."""
    merged = {name: value for name, value in (pod["status"] | fields).items() if value is not None}
    return pod | {"status": _ordered(merged, _STATUS_ORDER)}


def with_conditions(pod: Object, moment: datetime, **conditions: str) -> Object:
    """Conditions set, others kept: `with_conditions(pod, now, Ready="False")`."""
    held = {condition["type"]: condition for condition in pod["status"].get("conditions", [])}
    for kind, value in conditions.items():
        if held.get(kind, {}).get("status") != value:
            held[kind] = {
                "type": kind,
                "status": value,
                "lastProbeTime": None,
                "lastTransitionTime": stamp(moment),
            }
    return with_status(pod, conditions=list(held.values()))


def with_readiness(pod: Object, moment: datetime, ready: bool, started: bool = True) -> Object:
    """What a kubelet reports of a scheduled pod whose containers run."""
    word = "True" if ready else "False"
    pod = with_conditions(pod, moment, Initialized="True", PodScheduled="True", ContainersReady=word, Ready=word)
    since = pod["status"].get("startTime", stamp(moment))
    statuses = [
        {
            "name": held["name"],
            "state": {"running": {"startedAt": since}},
            "lastState": {},
            "ready": ready,
            "restartCount": 0,
            "image": "x",
            "imageID": "x",
            "started": started,
        }
        for held in pod["spec"]["containers"]
    ]
    return with_status(pod, hostIP="127.0.0.1", startTime=since, containerStatuses=statuses)


def with_address(pod: Object, *addresses: str) -> Object:
    """Running at these addresses, the first being `podIP`."""
    return with_status(pod, phase="Running", podIP=addresses[0], podIPs=[{"ip": address} for address in addresses])


def marked_for_deletion(pod: Object, moment: datetime, grace: int) -> Object:
    """Terminating. `deletionTimestamp` is when it shall be over: now + grace, a future time.

    The first mark raises the generation. A later, shorter grace moves the time forward, but never before now.
    Readiness and phase stay as they were: presence of the timestamp alone means terminating.
    """
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata:
        return with_metadata(
            pod,
            generation=metadata["generation"] + 1,
            deletionTimestamp=stamp(moment + timedelta(seconds=grace)),
            deletionGracePeriodSeconds=grace,
        )
    shorter = timedelta(seconds=metadata["deletionGracePeriodSeconds"] - grace)
    ends = max(moment, parse_stamp(metadata["deletionTimestamp"]) - shorter)
    return with_metadata(pod, deletionTimestamp=stamp(ends), deletionGracePeriodSeconds=grace)


def _ordered(fields: Mapping[str, Any], order: Sequence[str]) -> Object:
    known = {name: fields[name] for name in order if name in fields}
    return known | dict(fields)


def _owned_by(replica_set: str) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": replica_set,
        "uid": "6d4f9c1e-0000-4000-8000-000000000000",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _managed(manager: str, moment: datetime, labels: Mapping[str, str]) -> Object:
    """One entry of the size of a real one; who wrote what is of no use to a reader of pods."""
    port = 'k:{"containerPort":8000,"protocol":"TCP"}'
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": stamp(moment),
        "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}} | {f"f:{name}": {} for name in labels}},
            "f:spec": {
                "f:containers": {
                    'k:{"name":"vllm"}': {
                        ".": {},
                        **{f"f:{name}": {} for name in ("args", "image", "imagePullPolicy", "name")},
                        "f:ports": {".": {}, port: {"f:containerPort": {}, "f:name": {}, "f:protocol": {}}},
                        **{f"f:{name}": {} for name in ("resources", "terminationMessagePath")},
                    }
                },
                **{
                    f"f:{name}": {}
                    for name in ("dnsPolicy", "enableServiceLinks", "nodeName", "restartPolicy", "schedulerName")
                },
                **{f"f:{name}": {} for name in ("securityContext", "terminationGracePeriodSeconds")},
            },
        },
    }
