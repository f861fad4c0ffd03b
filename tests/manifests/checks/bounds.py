"""What the API server bounds and no schema does: sizes, numbers, words of a closed set.

Source: Kubernetes' `pkg/apis/*/validation`, as of 1.37; what we use of it. Custom resources have schemas of their own
beside this, but for the pods and autoscalers that their operators make of them.
"""

import json
from collections.abc import Iterator
from typing import Any

from tests.manifests.building import Build, Manifest, templates, title

MAX_DATA_BYTES = 1 << 20
MAX_ANNOTATION_BYTES = 256 << 10
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def objects_fit(built: Build) -> list[str]:
    """A ConfigMap holds 1 MiB, annotations 256 KiB; and `kubectl apply` writes the whole object into one of them."""
    found = []
    for each in built:
        entries = {**each.get("data", {}), **each.get("binaryData", {}), **each.get("stringData", {})}
        if each["kind"] in ("ConfigMap", "Secret") and (size := _bytes(entries.values())) > MAX_DATA_BYTES:
            found.append(f"{title(each)}: {size} bytes are more than it may hold")
        applied = {LAST_APPLIED: as_kubectl_writes(each)}
        for holder, more in ((each, applied), *((template, {}) for template in templates(each))):
            annotations = {**((holder.get("metadata") or {}).get("annotations") or {}), **more}
            if (size := _bytes([*annotations, *annotations.values()])) > MAX_ANNOTATION_BYTES:
                found.append(f"{title(each)}: {size} bytes of annotations, with what `kubectl apply` adds")
    return found


def as_kubectl_writes(manifest: Manifest) -> str:
    """As JSON on one line, in which Go writes out what HTML would read."""
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")) + "\n"
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _bytes(texts: Any) -> int:
    return sum(len(str(text).encode()) for text in texts)


MOST = (1 << 31) - 1
NUMBERS = {
    "activeDeadlineSeconds": (1, MOST),
    "averageUtilization": (1, MOST),
    "backoffLimit": (0, MOST),
    "completions": (0, MOST),
    "containerPort": (1, 65535),
    "defaultMode": (0, 0o777),
    "endPort": (1, 65535),
    "failureThreshold": (1, MOST),
    "fsGroup": (0, MOST),
    "hostPort": (1, 65535),
    "initialDelaySeconds": (0, MOST),
    "maxReplicas": (1, MOST),
    "maxSkew": (1, MOST),
    "minDomains": (1, MOST),
    "minReadySeconds": (0, MOST),
    "mode": (0, 0o777),
    "nodePort": (1, 65535),
    "number": (1, 65535),
    "parallelism": (0, MOST),
    "periodSeconds": (1, MOST),
    "port": (1, 65535),
    "progressDeadlineSeconds": (1, MOST),
    "replicas": (0, MOST),
    "revisionHistoryLimit": (0, MOST),
    "runAsGroup": (0, MOST),
    "runAsUser": (0, MOST),
    "stabilizationWindowSeconds": (0, 3600),
    "successThreshold": (1, MOST),
    "targetPort": (1, 65535),
    "terminationGracePeriodSeconds": (0, MOST),
    "timeoutSeconds": (1, MOST),
    "ttlSecondsAfterFinished": (0, MOST),
    "weight": (1, 100),
}
"""Least and most. A mode is a number here: `defaultMode: 0440` is 288, and 440 is more than a file may have."""


def numbers_are_in_range(built: Build) -> list[str]:
    """Ports, modes, seconds, shares."""
    return [
        f"{whose}: {key}: {value} is not from {NUMBERS[key][0]} to {NUMBERS[key][1]}"
        for whose, _, key, value in _fields(built)
        if key in NUMBERS
        and isinstance(value, int)
        and not isinstance(value, bool)
        and not NUMBERS[key][0] <= value <= NUMBERS[key][1]
    ]


WORDS = {
    "accessModes": {"ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"},
    "completionMode": {"Indexed", "NonIndexed"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "effect": {"NoExecute", "NoSchedule", "PreferNoSchedule"},
    "externalTrafficPolicy": {"Cluster", "Local"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "internalTrafficPolicy": {"Cluster", "Local"},
    "ipFamilyPolicy": {"PreferDualStack", "RequireDualStack", "SingleStack"},
    "medium": {"", "HugePages", "Memory"},
    "operator": {"DoesNotExist", "Equal", "Exists", "Gt", "In", "Lt", "NotIn"},
    "pathType": {"Exact", "ImplementationSpecific", "Prefix"},
    "policyTypes": {"Egress", "Ingress"},
    "protocol": {"SCTP", "TCP", "UDP"},
    "restartPolicy": {"Always", "Never", "OnFailure"},
    "scheme": {"HTTP", "HTTPS"},
    "selectPolicy": {"Disabled", "Max", "Min"},
    "sessionAffinity": {"ClientIP", "None"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "volumeMode": {"Block", "Filesystem"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
}
TYPES = {
    "appArmorProfile": {"Localhost", "RuntimeDefault", "Unconfined"},
    "metrics": {"ContainerResource", "External", "Object", "Pods", "Resource"},
    "policies": {"Percent", "Pods"},
    "seccompProfile": {"Localhost", "RuntimeDefault", "Unconfined"},
    "spec": {"ClusterIP", "ExternalName", "LoadBalancer", "NodePort"},
    "strategy": {"Recreate", "RollingUpdate"},
    "target": {"AverageValue", "Utilization", "Value"},
}
"""Of `type`, by what it stands in."""


def words_are_known(built: Build) -> list[str]:
    """The schemas say `string`, whatever the words that Kubernetes knows there."""
    return [
        f"{whose}: {key}: {word} is not one of {', '.join(sorted(known))}"
        for whose, within, key, value in _fields(built)
        if (known := TYPES.get(within) if key == "type" else WORDS.get(key)) is not None
        for word in (value if isinstance(value, list) else [value])
        if isinstance(word, str) and word not in known
    ]


BUILT_IN = {"", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}


def _fields(built: Build) -> Iterator[tuple[str, str, str, Any]]:
    """Whose, in what, the field, its value: of all that Kubernetes itself defines."""
    for each in built:
        group = str(each["apiVersion"]).rpartition("/")[0]
        own = {key: value for key, value in each.items() if key not in ("metadata", "data")}
        scales = ((each.get("spec") or {}).get("advanced") or {}).get("horizontalPodAutoscalerConfig")
        for part in [own] if group in BUILT_IN else [*templates(each), scales or {}]:
            for within, key, value in _inside("", part):
                yield title(each), within, key, value


def _inside(name: str, part: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(part, list):
        for each in part:
            yield from _inside(name, each)
    if isinstance(part, dict):
        for key, value in part.items():
            yield name, str(key), value
            if key not in ("annotations", "labels", "matchLabels", "nodeSelector", "selector", "limits", "requests"):
                yield from _inside(str(key), value)
            elif key == "selector" and isinstance(value, dict) and "matchExpressions" in value:
                yield from _inside("selector", {"matchExpressions": value["matchExpressions"]})
