"""The Pod Security Standard `restricted`, as the admission controller computes it: all rules, `baseline`'s among them.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/, as of Kubernetes 1.37. Rules for Windows
are left out: `hostProcess` aside, they only ever allow more.
"""

from collections.abc import Iterator
from typing import Any

from tests.manifests.building import Build, Manifest, containers, labels_of, namespace_of, of_kind, pods, title

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP = {"RuntimeDefault", "Localhost"}
HANDLERS = ("startupProbe", "readinessProbe", "livenessProbe")


def pods_are_restricted(built: Build) -> list[str]:
    """In each namespace that enforces it: the API server would not create the pod, and the workload stands still."""
    enforcing = {
        each["metadata"]["name"]
        for each in of_kind(built, "Namespace")
        if labels_of(each).get("pod-security.kubernetes.io/enforce") == "restricted"
    }
    return [
        f"{title(each)}: {fault}"
        for each, template in pods(built)
        if namespace_of(each) in enforcing
        for fault in violations(template)
    ]


def violations(template: Manifest) -> list[str]:
    """What the standard refuses in a pod."""
    return [*_of_pod(template["spec"], template), *_of_containers(template["spec"], containers(template))]


def _of_pod(spec: Manifest, template: Manifest) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        for source in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is of the kind {source}"
    context = spec.get("securityContext") or {}
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_context(context, "the pod")
    for key, value in ((template.get("metadata") or {}).get("annotations") or {}).items():
        allowed = value in ("", "runtime/default") or value.startswith("localhost/")
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and not allowed:
            yield f"AppArmor {value}"


def _of_context(context: dict[str, Any], whose: str) -> Iterator[str]:
    """What holds for the pod's security context and for each container's."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"hostProcess of {whose}"
    linux = context.get("seLinuxOptions") or {}
    if linux.get("type", "") not in SELINUX_TYPES or linux.get("user") or linux.get("role"):
        yield f"SELinux options of {whose}"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield f"AppArmor profile of {whose}"
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield f"seccomp profile of {whose}"
    if context.get("runAsNonRoot") is False:
        yield f"runAsNonRoot: false of {whose}"
    if context.get("runAsUser") == 0:
        yield f"runAsUser: 0 of {whose}"


def _of_containers(spec: Manifest, listed: list[Manifest]) -> Iterator[str]:
    pod = spec.get("securityContext") or {}
    for container in listed:
        name, context = container["name"], container.get("securityContext") or {}
        yield from _of_context(context, name)
        if context.get("privileged"):
            yield f"{name} is privileged"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name} has no allowPrivilegeEscalation: false"
        if context.get("procMount", "Default") != "Default":
            yield f"{name} has a procMount"
        if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"{name} has no runAsNonRoot: true, nor has the pod"
        if "seccompProfile" not in context and "seccompProfile" not in pod:
            yield f"{name} has no seccompProfile, nor has the pod"
        capabilities = context.get("capabilities") or {}
        if "ALL" not in capabilities.get("drop", []):
            yield f"{name} does not drop all capabilities"
        if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name} adds capabilities"
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"{name} has a hostPort"
        for asked in (*(container.get(probe) for probe in HANDLERS), *(container.get("lifecycle") or {}).values()):
            for way in ("httpGet", "tcpSocket"):
                if ((asked or {}).get(way) or {}).get("host"):
                    yield f"{name} has a probe or hook of another host"
