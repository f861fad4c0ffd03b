"""What the Roles of a build let a ServiceAccount do."""

from typing import NamedTuple

from tests.manifests.building import Build, namespace_of, of_kind


class Right(NamedTuple):
    """One verb on one kind of object in one namespace; with a name, on that object alone."""

    verb: str
    resource: str
    namespace: str
    name: str = ""
    group: str = ""


def granted(built: Build, namespace: str, account: str) -> set[Right]:
    """By Roles; what is bound by a ClusterRole is a finding of its own."""
    rules = {(namespace_of(each), each["metadata"]["name"]): each["rules"] for each in of_kind(built, "Role")}
    return {
        Right(verb, resource, where, name, group)
        for each in of_kind(built, "RoleBinding")
        if {"kind": "ServiceAccount", "name": account, "namespace": namespace} in each["subjects"]
        for where in [namespace_of(each)]
        for rule in rules[where, each["roleRef"]["name"]]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
