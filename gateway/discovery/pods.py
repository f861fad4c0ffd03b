"""What a Kubernetes pod object means to the gateway: a server to use, one to leave alone, or none at all.

Pure, and total: whatever stands in an object, reading it gives pods or raises `Refused`. Facts it rests on, seen on a
real API server (1.36): a deletionTimestamp means terminating by its presence (its value lies in the future, and the
Ready condition still says True); readiness is the Ready *condition*, which honours readiness gates; `podIP` is missing
until the pod runs, and the same address may later belong to another pod.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from gateway.core.fleet import Address, Pod, PodState

POOL_LABEL = "poolgate.dev/pool"
PORT_ANNOTATION = "poolgate.dev/port"
MODELS_ANNOTATION = "poolgate.dev/models"
MAX_IN_FLIGHT_ANNOTATION = "poolgate.dev/max-in-flight"
PRIORITY_ANNOTATION = "poolgate.dev/priority"
WORKER_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
"""LeaderWorkerSet numbers the pods of a group. Only number 0, the leader, serves HTTP, unless each pod is a rank of its
own (vLLM's external and hybrid load balancing)."""

PORT_NAME = "http"
DEFAULT_PORT = 8000
MAX_PORTS = 16
MAX_ALLOWED = 64
MAX_IN_FLIGHT = 100_000
MAX_WORD_CHARACTERS = 64

Network = IPv4Network | IPv6Network
IpAddress = IPv4Address | IPv6Address


class Refused(Exception):
    """A pod that is not to be a target. `reason` is one of a closed set; the text is for people, without addresses."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be a target."""

    namespace: str
    """Where the pods were asked for; one from elsewhere is refused."""
    prefixed: bool = False
    """Several namespaces are watched: names of pods are told apart by theirs."""
    networks: tuple[Network, ...] = ()
    """If there are any: where pods may live. They are admitted whatever they are, loopback too."""
    reserved: frozenset[tuple[IpAddress, int]] = frozenset()
    """The API server's addresses and our own, with their ports: never a target. See `reserving`."""

    def reserving(self, addresses: Iterable[Address]) -> "Rules":
        """The same rules with these addresses reserved too. What is no IP address reserves nothing."""
        return replace(self, reserved=self.reserved.union(*map(_parsed, addresses)))


def pods_of(told: Mapping[str, Any], rules: Rules) -> tuple[Pod, ...]:
    """The servers in a pod object: one for each of its ports; none when it has run to its end.

    Raises `Refused`.
    """
    metadata, spec, status = (_object(told, part) for part in ("metadata", "spec", "status"))
    labels, annotations = _object(metadata, "labels"), _object(metadata, "annotations")
    uid, name, pool = _text(metadata, "uid"), _text(metadata, "name"), _text(labels, POOL_LABEL)
    if not uid or not name:
        raise Refused("unreadable", "it has no uid or no name")
    if _text(metadata, "namespace") != rules.namespace:
        raise Refused("namespace", "it is not of a configured namespace")
    if _text(status, "phase") in ("Succeeded", "Failed"):
        return ()
    if not pool:
        raise Refused("no_pool", f"it has no label {POOL_LABEL}")
    if _text(labels, WORKER_LABEL) not in ("", "0") and PORT_ANNOTATION not in annotations:
        raise Refused("worker", f"it is a worker of a multi-node group; one that serves says so by {PORT_ANNOTATION}")
    host = _text(status, "podIP")
    ports = _ports(annotations, spec)
    if host:
        _check_address(host, ports, rules)
    state, reason = _state(metadata, status, host)
    shown = f"{rules.namespace}/{name}" if rules.prefixed else name
    return tuple(
        Pod(
            uid=f"{uid}/{host}:{port}",
            name=shown if len(ports) == 1 else f"{shown}:{port}",
            pool=pool,
            host=host,
            port=port,
            state=state,
            reason=reason,
            created_at=_seconds(_text(metadata, "creationTimestamp")),
            askable=state is PodState.READY,
            allowed=_allowed(annotations),
            max_in_flight=_max_in_flight(annotations),
            takes_priority=_takes_priority(annotations),
        )
        for port in ports
    )


def shown_name(told: Mapping[str, Any], rules: Rules) -> str:
    """What to call a pod that was refused."""
    name = _text(_object(told, "metadata"), "name")[:253] or "(without a name)"
    return f"{rules.namespace}/{name}" if rules.prefixed else name


def is_live(told: Mapping[str, Any]) -> bool:
    """Whether a pod is ready and stays: what counts as a replica of the gateway."""
    metadata, status = _object(told, "metadata"), _object(told, "status")
    return _state(metadata, status, _text(status, "podIP"))[0] is PodState.READY


def without_twins(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Of pods that claim the same address and port, the youngest has it: the others are about to be told gone.

    They are kept, to finish what they have, but get no work.
    """
    found = tuple(pods)
    holder: dict[Address, Pod] = {}
    for pod in found:
        if pod.askable:
            held = holder.setdefault((pod.host, pod.port), pod)
            if (pod.created_at, pod.uid) > (held.created_at, held.uid):
                holder[pod.host, pod.port] = pod
    return tuple(
        pod
        if not pod.askable or holder[pod.host, pod.port] is pod
        else replace(
            pod,
            state=PodState.STARTING,
            reason=f"its address belongs to the younger pod {holder[pod.host, pod.port].name}",
            askable=False,
        )
        for pod in found
    )


def _state(metadata: Mapping[str, Any], status: Mapping[str, Any], host: str) -> tuple[PodState, str]:
    """The state, and why it is not READY."""
    if metadata.get("deletionTimestamp") is not None:
        return PodState.DRAINING, "terminating"
    phase = _text(status, "phase")
    waiting = _waiting(status)
    if phase != "Running":
        return PodState.STARTING, f"phase {_word(phase) or 'unknown'}{waiting}"
    condition = next((each for each in _objects(status, "conditions") if each.get("type") == "Ready"), {})
    if condition.get("status") != "True":
        word = _word(_text(condition, "reason"))
        said = f"Ready is {_word(_text(condition, 'status')) or 'missing'}{f' ({word})' if word else ''}"
        return PodState.STARTING, said + waiting
    if not host:
        return PodState.STARTING, "no address yet"
    return PodState.READY, ""


def _waiting(status: Mapping[str, Any]) -> str:
    """Why a container waits: what an operator looks for first."""
    for container in (*_objects(status, "initContainerStatuses"), *_objects(status, "containerStatuses")):
        if word := _word(_text(_object(_object(container, "state"), "waiting"), "reason")):
            return f": {word}"
    return ""


def _ports(annotations: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[int, ...]:
    """From the annotation; else the first container port called http, in the spec's order; else 8000."""
    annotated = annotations.get(PORT_ANNOTATION)
    if annotated is not None:
        words = [word.strip() for word in str(annotated).split(",")]
        ports = tuple(int(word) for word in words if word.isdecimal() and word.isascii() and len(word) <= 5)
        if len(ports) != len(words) or len(set(ports)) != len(ports) or len(ports) > MAX_PORTS:
            raise Refused("port", f"its annotation {PORT_ANNOTATION} is no port, nor a list of up to {MAX_PORTS}")
        if not all(0 < port < 65536 for port in ports):
            raise Refused("port", f"its annotation {PORT_ANNOTATION} is out of range: ports go from 1 to 65535")
        return ports
    for container in _objects(spec, "containers"):
        for port in _objects(container, "ports"):
            number = port.get("containerPort")
            if port.get("name") == PORT_NAME and isinstance(number, int) and 0 < number < 65536:
                return (number,)
    return (DEFAULT_PORT,)


def _check_address(host: str, ports: Iterable[int], rules: Rules) -> None:
    try:
        address = _unmapped(ip_address(host))
    except ValueError:
        raise Refused("address", "its address is no IP address") from None
    named = any(address.version == network.version and address in network for network in rules.networks)
    if rules.networks and not named:
        raise Refused("address", "its address is outside of discovery.pod_networks")
    if not named and _is_special(address):
        raise Refused("address", "its address is loopback, link-local or multicast")
    for reserved, reserved_port in rules.reserved:
        # A range that discovery.pod_networks names may hold the API server too, but not at the port of a pod.
        if address == reserved and (reserved_port in ports or not named):
            raise Refused("address", "its address is the API server's or the gateway's own")


def _is_special(address: IpAddress) -> bool:
    return address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified


def _parsed(address: Address) -> set[tuple[IpAddress, int]]:
    try:
        return {(_unmapped(ip_address(address[0])), address[1])}
    except ValueError:
        return set()


def _unmapped(address: IpAddress) -> IpAddress:
    """An IPv4 address in IPv6's clothes is judged as what it is."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _allowed(annotations: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the annotation's allow-list; without the annotation all, with an empty one none."""
    listed = annotations.get(MODELS_ANNOTATION)
    if listed is None:
        return ("*",)
    return tuple(name for name in (word.strip() for word in str(listed).split(",")) if name)[:MAX_ALLOWED]


def _max_in_flight(annotations: Mapping[str, Any]) -> int | None:
    """The annotation's number. One that cannot be meant counts as none: the pool's own setting is a safe number, and a
    slip of the pen must not take a working pod out. The status shows what was understood.
    """
    written = _text(annotations, MAX_IN_FLIGHT_ANNOTATION).strip()
    if not (written.isdecimal() and written.isascii() and len(written) <= len(str(MAX_IN_FLIGHT))):
        return None
    return int(written) if 0 < int(written) <= MAX_IN_FLIGHT else None


def _takes_priority(annotations: Mapping[str, Any]) -> bool:
    """Only the word `true` says so. Any other counts as none: every engine takes a request without a priority."""
    return _text(annotations, PRIORITY_ANNOTATION).strip() == "true"


def _seconds(stamp: str) -> float:
    """RFC 3339, as the API writes it; what cannot be read counts as new."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        return float("inf")


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _objects(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = value.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _word(text: str) -> str:
    """A reason as Kubernetes gives them, cut and without what does not print."""
    return "".join(letter for letter in text[:MAX_WORD_CHARACTERS] if letter.isprintable())
