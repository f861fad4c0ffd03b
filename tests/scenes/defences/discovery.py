"""What a gateway does against news of pods that is late, lost or false, and for pods that come, go and differ."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from math import inf
from typing import Any

from gateway.balancing.balancer import Balancer, Lease, Seat
from gateway.balancing.health import PoolHealth
from gateway.balancing.policy import Choice, Wish
from gateway.config.whole import Config
from gateway.core.clock import Clock
from gateway.core.fleet import Model, Pod, Route
from gateway.core.ports import FetchFailed
from gateway.discovery.kubernetes import Cluster, KubernetesSource, Namespace
from gateway.discovery.models import Listing
from gateway.discovery.pods import Network
from gateway.discovery.reflector import ApiFailed, Reflector
from gateway.discovery.roster import Roster
from gateway.discovery.rounds import Rounds
from gateway.discovery.source import Sighting, Source
from gateway.edge.port import Edge
from gateway.pipeline.forward import Forwarder, Request
from gateway.pipeline.relay import Failed
from gateway.upstream.pool import PodPool, Pools
from tests.discovering import QUICK
from tests.scenes.defences.replacing import but, having
from tests.scenes.scene import Defence


def cluster_source(
    kind: type[KubernetesSource] = KubernetesSource, networks: tuple[Network, ...] | None = None, **pace: float
) -> Callable[[Config, Mapping[str, str], Any, Clock, Callable[[], float]], Source]:
    """A source as `Parts` wants it; of this kind, before these networks, and quick to try again, or at this pace."""

    def made(
        config: Config, environment: Mapping[str, str], metrics: Any, clock: Clock, chance: Callable[[], float]
    ) -> Source:
        discovery, server = config.discovery, config.server
        return kind(
            Cluster.find(environment),
            namespaces=discovery.namespaces,
            selector=discovery.selector,
            self_selector=discovery.self_selector,
            networks=discovery.pod_networks if networks is None else networks,
            listens_on=((server.host, server.port), (server.ops_host, server.ops_port)),
            relisted=metrics.relisted,
            clock=clock.monotonic,
            chance=chance,
            pace=replace(QUICK, **pace),
        )

    return made


class _ListsOnce(Reflector[Any]):
    """Adds what a list has to what it knew, as one does who trusts in events."""

    async def _list(self, due: str) -> None:
        held = dict(self._held)
        await super()._list(due)
        self._held = held | self._held


FULL_LIST = Defence(
    "full_list",
    "After anything but a clean end of a watch a full list replaces all that was known.",
    having(source=cluster_source(but(KubernetesSource, following=_ListsOnce))),
)
POD_ADDRESSES = Defence(
    "pod_addresses",
    "A pod's address is judged before anything is sent there.",
    having(source=cluster_source(networks=(ip_network("0.0.0.0/0"),))),
)


class _IgnoresVersions(Reflector[Any]):
    def _apply_all(self, lines: list[bytes]) -> str:
        wrong = super()._apply_all(lines)
        return "" if wrong == "backwards" else wrong


VERSIONS = Defence(
    "versions",
    "A version that goes backwards is a reason for a full list.",
    having(source=cluster_source(but(KubernetesSource, following=_IgnoresVersions))),
)


class _EmptiesFirst(Reflector[Any]):
    async def _list(self, due: str) -> None:
        self._held = {}
        self._changed()
        await super()._list(due)


LAST_KNOWN = Defence(
    "last_known",
    "What was known stands, whole, until a list has succeeded.",
    having(source=cluster_source(but(KubernetesSource, following=_EmptiesFirst))),
)


class _TakesOpenForFresh(Reflector[Any]):
    def stale_seconds(self) -> float:
        return 0.0 if self._watching else super().stale_seconds()


STALENESS = Defence(
    "staleness",
    "What nothing has confirmed for so long is stale, though the watch is open.",
    having(source=cluster_source(but(KubernetesSource, following=_TakesOpenForFresh))),
)
SILENCE = Defence(
    "silence",
    "A watch that says nothing for so long is given up.",
    having(source=cluster_source(silence=inf)),
)


class _AsksOnce(Reflector[Any]):
    async def _pause(self, seconds: float, failure: ApiFailed | None) -> str:
        return await super()._pause(inf, failure)


TRIES_AGAIN = Defence(
    "tries_again",
    "An API server that does not answer is asked again, ever more seldom.",
    having(source=cluster_source(but(KubernetesSource, following=_AsksOnce))),
)


class _NeedsNoList(KubernetesSource):
    def seen(self) -> Sighting:
        return super().seen()._replace(listed=True)


FIRST_LIST = Defence(
    "first_list",
    "A gateway is not ready before it has a list of its pods.",
    having(source=cluster_source(_NeedsNoList)),
)


class _HearsDeletionsOnly(Reflector[Any]):
    def _apply(self, kind: str, told: Mapping[str, Any]) -> bool:
        known = told["metadata"]["name"] in self._held
        return not (kind == "MODIFIED" and known) and super()._apply(kind, told)


WHOLE_STATE = Defence(
    "whole_state",
    "Each event of a pod is judged whole: one that has failed, has no address or terminates is out.",
    having(source=cluster_source(but(KubernetesSource, following=_HearsDeletionsOnly))),
)


class _SeesNoEnd(Reflector[Any]):
    def __init__(self, name: str, api: Any, read: Callable[[Mapping[str, Any]], Any], *more: Any) -> None:
        super().__init__(name, api, lambda told: read(_without_end(told)), *more)


def _without_end(told: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = {name: value for name, value in told["metadata"].items() if name != "deletionTimestamp"}
    return {**told, "metadata": metadata}


TERMINATING = Defence(
    "terminating",
    "A pod that is to be deleted gets nothing new, though it is ready still.",
    having(source=cluster_source(but(KubernetesSource, following=_SeesNoEnd))),
)


class _CutsTheGone(Pools):
    def keep_only(self, uids: Collection[str]) -> None:
        super().keep_only(uids)
        for uid, pool in self._pools.items():
            for connection in [] if uid in uids else pool._open:
                if connection._transport is not None:
                    connection._transport.abort()


RUNNING_STREAMS = Defence(
    "running_streams",
    "What runs at a pod that is gone from the list runs to its end.",
    having(pools=_CutsTheGone),
)


class _WaitsForAll(Roster):
    def _publish(self) -> None:
        told = self._known.values()
        if any(known.made.askable and known.listed is None and not known.trouble for known in told):
            self._due = asyncio.get_running_loop().call_later(0.01, self._publish)
        else:
            super()._publish()


NOBODY_IS_AWAITED = Defence(
    "nobody_is_awaited",
    "Each pod is asked for its models in a task of its own, and nobody waits for its answer.",
    having(roster=_WaitsForAll),
)


class _NeverCloses(Edge):
    @property
    def closing(self) -> bool:
        return False

    @closing.setter
    def closing(self, value: bool) -> None:
        """Nobody is told."""


TOLD_TO_LEAVE = Defence(
    "told_to_leave",
    "Each answer of a replica on its way out tells its client to connect anew.",
    having(edge=_NeverCloses),
)


class _GoesSilently(Forwarder):
    def end_all(self) -> None:
        self.draining = True


LAST_WORDS = Defence(
    "last_words",
    "A stream that outlives the drain's limit is ended with an error event that says so.",
    having(forwarder=_GoesSilently),
)


class _HoldsForNobody(Forwarder):
    async def _room(
        self, request: Request, route: Route, excluded: Collection[str], on_budget: bool, failed: Failed | None
    ) -> Lease:
        held = replace(route, pool=replace(route.pool, hold_empty_seconds=60.0))
        return await super()._room(request, held, excluded, on_budget, failed)


NOBODY_TO_WAIT_FOR = Defence(
    "nobody_to_wait_for",
    "Where no pod is ready a request is answered at once.",
    having(forwarder=_HoldsForNobody),
)


class _NeverPanics(PoolHealth):
    def _look_around(self) -> None:
        """However few are left."""


PANIC = Defence(
    "panic",
    "Where fewer than half of a pool's pods are left, ejected ones are used like any other.",
    having(balancer=but(Balancer, healths=_NeverPanics)),
)


class _NeverEjects(PoolHealth):
    def _eject(self, *_: Any) -> Any:
        return None


EJECTION = Defence(
    "ejection",
    "A pod that fails three times in a row gets no work for a while.",
    having(balancer=but(Balancer, healths=_NeverEjects)),
)


class _CountsWhatRuns(Balancer):
    def _failed_at(self, seat: Seat, *more: Any) -> None:
        super()._failed_at(seat, *more)
        self._failed.pop()
        seat.failed -= 1


FAILURES_COUNT = Defence(
    "failures_count",
    "What failed at a pod counts as running there for a while: one that fails fast does not look idle.",
    having(balancer=_CountsWhatRuns),
)


class _Forgets(PoolHealth):
    def _eject(self, record: Any, *more: Any) -> Any:
        record.ejections = 0
        return super()._eject(record, *more)


LONGER_EACH_TIME = Defence(
    "longer_each_time",
    "Each ejection of a pod is longer than the one before.",
    having(balancer=but(Balancer, healths=_Forgets)),
)


class _TakesAllForWarm(PoolHealth):
    def weight(self, uid: str, now: float) -> float:
        return 1.0


SLOW_START = Defence(
    "slow_start",
    "A new pod gets a growing share of the work.",
    having(balancer=but(Balancer, healths=_TakesAllForWarm)),
)


class _TakesTurns(Balancer):
    least_work = staticmethod(lambda pods, tokens, view: None)

    def _choose(self, state: Any, room: Sequence[Seat], wish: Wish, retry: bool) -> Choice:
        state.view.turn += 1
        return Choice(room[state.view.turn % len(room)], "round_robin")


LEAST_WORK = Defence(
    "least_work",
    "A request goes where the least is to be done before it.",
    having(balancer=_TakesTurns),
)


class _ReservesNothing(Namespace):
    def __init__(self, api: Any, rules: Any, listens_on: Any) -> None:
        super().__init__(api, rules, ())

    def _reserve(self, ends: Any) -> None:
        self._ends = ends


RESERVED_ADDRESSES = Defence(
    "reserved_addresses",
    "The API server's address and our own, with their ports, are no pod's.",
    having(source=cluster_source(but(KubernetesSource, reading=_ReservesNothing))),
)


class _BelievesAnnotations(Roster):
    def silent(self, uid: str, trouble: str) -> None:
        self.heard(uid, Listing(tuple(Model(name) for name in self._known[uid].made.allowed), 0))


MODELS_FIRST = Defence(
    "models_first",
    "A pod gets requests only for models that it has listed itself, as vLLM does.",
    having(roster=_BelievesAnnotations),
)


class _OnePoolForAll(Roster):
    def _made(self, pod: Pod, known: Any, now: float) -> Pod:
        return super()._made(replace(pod, pool="chat"), known, now)


ONE_OWNER = Defence(
    "one_owner",
    "A model's name belongs to one pool: a pod of another one that lists it gets none of its requests.",
    having(roster=_OnePoolForAll),
)


class _BelievesListings(Roster):
    def _made(self, pod: Pod, known: Any, now: float) -> Pod:
        return super()._made(replace(pod, allowed=("*",)), known, now)


ALLOWED_MODELS = Defence(
    "allowed_models",
    "A pod serves no more than its annotation lets it.",
    having(roster=_BelievesListings),
)


class _TakesAnyName(Rounds):
    async def _ask_models(self, pod: Pod) -> bool:
        try:
            listed = json.loads(await self._fetch(pod, b"/v1/models", 5.0))["data"]
        except FetchFailed:
            return await super()._ask_models(pod)
        self._roster.heard(pod.uid, Listing(tuple(Model(str(card["id"]), card) for card in listed), 0))
        return True


MODEL_NAMES = Defence(
    "model_names",
    "A model's name has 256 printable characters at most.",
    having(rounds=_TakesAnyName),
)


SHORT_LISTINGS = Defence(
    "short_listings",
    "A pod's list of models has a megabyte at most.",
    having(pools=but(Pools, max_fetch_bytes=1 << 30)),
)


class _WithoutBrackets(PodPool):
    __slots__ = ()

    def __init__(self, pod: Pod, *more: Any) -> None:
        super().__init__(pod, *more)
        self.host = f"{pod.host}:{pod.port}".encode()


BRACKETS = Defence(
    "brackets",
    "An IPv6 address stands in brackets where a port follows.",
    having(pools=but(Pools, pool=_WithoutBrackets)),
)
