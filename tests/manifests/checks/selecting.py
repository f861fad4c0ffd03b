"""Selectors: each finds its own pods, and no other's."""

from itertools import combinations
from typing import Any

from tests.manifests.building import Build, Manifest, labels_of, namespace_of, of_kind, pod_labels, pods, selects, title
from tests.manifests.checks.naming import NAME

OWNING = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


def selected(built: Build, namespace: str, selector: dict[str, Any]) -> list[Manifest]:
    """The workloads some of whose pods a selector finds in a namespace."""
    return [
        each
        for each, template in pods(built)
        if namespace_of(each) == namespace and selects(selector, pod_labels(each, template))
    ]


def workloads_select_their_own_pods(built: Build) -> list[str]:
    """The API server refuses a workload that does not."""
    return [
        f"{title(each)}: its selector does not find its own pods"
        for each, template in pods(built)
        if each["kind"] in OWNING and not selects(each["spec"]["selector"], labels_of(template))
    ]


def no_two_workloads_select_the_same_pods(built: Build) -> list[str]:
    """Each would take the other's pods for its own."""
    return [
        f"{title(one)} and {title(other)}: the selector of one finds pods of the other"
        for (one, its), (other, others) in combinations(pods(built), 2)
        if namespace_of(one) == namespace_of(other) and one is not other and (_owns(one, others) or _owns(other, its))
    ]


def _owns(workload: Manifest, template: Manifest) -> bool:
    return workload["kind"] in OWNING and selects(workload["spec"]["selector"], labels_of(template))


def services_find_pods_of_one_kind(built: Build) -> list[str]:
    """At least one, and all of the same application."""
    found = []
    for each in of_kind(built, "Service"):
        selector = {"matchLabels": each["spec"].get("selector") or {}}
        if not selector["matchLabels"]:
            found.append(f"{title(each)}: selects nothing")
            continue
        found += _of_one_kind(built, each, selector)
    return found


def budgets_find_pods_of_one_kind(built: Build) -> list[str]:
    """A disruption budget over two applications lets neither move."""
    return [
        fault
        for each in of_kind(built, "PodDisruptionBudget")
        for fault in _of_one_kind(built, each, each["spec"]["selector"])
    ]


def _of_one_kind(built: Build, manifest: Manifest, selector: dict[str, Any]) -> list[str]:
    names = {
        labels_of(template).get(NAME)
        for each, template in pods(built)
        if namespace_of(each) == namespace_of(manifest) and selects(selector, labels_of(template))
    }
    if not names:
        return [f"{title(manifest)}: its selector finds no pod"]
    return [] if len(names) == 1 else [f"{title(manifest)}: its selector finds pods of {sorted(map(str, names))}"]


def budgets_do_not_overlap(built: Build) -> list[str]:
    """A pod under two budgets can never be evicted: the API server refuses to."""
    budgets = of_kind(built, "PodDisruptionBudget")
    return [
        f"{title(each)}: {len(over)} disruption budgets find its pods"
        for each, template in pods(built)
        if len(
            over := [
                budget
                for budget in budgets
                if namespace_of(budget) == namespace_of(each)
                and selects(budget["spec"]["selector"], labels_of(template))
            ]
        )
        > 1
    ]


def pods_spread_from_their_own(built: Build) -> list[str]:
    """A spread or anti-affinity that counts other pods does nothing."""
    return [
        f"{title(each)}: {what} does not find its own pods"
        for each, template in pods(built)
        for what, selector in _spreads(template)
        if not selects(selector, labels_of(template))
    ]


def _spreads(template: Manifest) -> list[tuple[str, dict[str, Any]]]:
    spec = template["spec"]
    against = ((spec.get("affinity") or {}).get("podAntiAffinity")) or {}
    terms = [
        *against.get("requiredDuringSchedulingIgnoredDuringExecution", []),
        *(each["podAffinityTerm"] for each in against.get("preferredDuringSchedulingIgnoredDuringExecution", [])),
    ]
    return [
        *(("its topology spread", each["labelSelector"]) for each in spec.get("topologySpreadConstraints", [])),
        *(("its anti-affinity", each["labelSelector"]) for each in terms),
    ]


def network_policies_find_pods(built: Build) -> list[str]:
    """One that finds none guards nothing, and most often was meant to."""
    return [
        f"{title(each)}: finds no pod"
        for each in of_kind(built, "NetworkPolicy")
        if each["spec"]["podSelector"] and not selected(built, namespace_of(each), each["spec"]["podSelector"])
    ]
