"""Whether what a configuration points to can be reached from here, now: asked by the same code as the gateway's, all at
once, each for a few seconds at most.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.config.whole import Config
from gateway.core.clock import Clock
from gateway.core.fleet import Pod, Pool
from gateway.core.ports import FetchFailed
from gateway.core.words import HOW_TO_INSTALL_EXTRAS
from gateway.discovery.models import models_of
from gateway.discovery.static import pods_of
from gateway.upstream.pool import Pools

ASK_SECONDS = 3.0
"""For each of them."""
AT_ONCE = 64
"""Pods asked at the same time."""
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is not as it must be."""

    key: str
    """That points to it."""
    text: str
    lasting: bool = False
    """It does not heal by itself."""


async def troubles(config: Config, environment: Mapping[str, str], seconds: float = ASK_SECONDS) -> Sequence[Trouble]:
    """What is not there, or says no, in the order of the file's sections."""
    asking = (_pods(config, seconds), _kubernetes(config, environment, seconds), _tokens(config, seconds))
    told = await asyncio.gather(*(_all(each) for each in (*asking, _redis(config, seconds))))
    return [trouble for each in told for trouble in each]


async def _all(asked: AsyncIterator[Trouble]) -> list[Trouble]:
    return [trouble async for trouble in asked]


async def _pods(config: Config, seconds: float) -> AsyncIterator[Trouble]:
    if config.discovery.mode != "static":
        return
    upstream, known = config.upstream, config.pool_values()
    pools = Pools(connect_seconds=seconds, idle_seconds=1.0, clock=Clock().monotonic, api_key=upstream.api_key)
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(at: int, pod: Pod) -> Trouble | None:
        async with room:
            return await _pod(f"discovery.pods.{at}", pod, known.get(pod.pool, Pool(pod.pool)), pools, seconds)

    try:
        found = pods_of(config.static_pods())
        for trouble in await asyncio.gather(*(ask(at, pod) for at, pod in enumerate(found))):
            if trouble is not None:
                yield trouble
    finally:
        pools.close()


async def _pod(key: str, pod: Pod, pool: Pool, pools: Pools, seconds: float) -> Trouble | None:
    """One pod, asked for its models."""
    try:
        models = models_of(await pools.fetch(pod, b"/v1/models", seconds)).models
    except FetchFailed as error:
        if error.status in (401, 403):
            why = "does not accept our key: set upstream.api_key to what its vLLM has as --api-key"
            return Trouble(key, f"{pod.name} {why} (status {error.status})", lasting=True)
        return Trouble(key, f"{pod.name} is not reachable now: {error}")
    if not models:
        return Trouble(key, f"{pod.name} lists no model, and gets no requests until it does")
    if not any(pool.admits(model.name) for model in models):
        names = ", ".join(model.name for model in models[:NAMES_SHOWN])
        return Trouble(key, f"{pod.name} lists {names}, which no glob of pools.{pool.name}.models admits")
    return None


async def _redis(config: Config, seconds: float) -> AsyncIterator[Trouble]:
    url, key = config.limits.redis_url, "limits.redis_url"
    if url is None:
        return
    try:
        from gateway.limits.redis_store import NoRedis, ping
    except ModuleNotFoundError as error:
        yield _missing(key, error)
        return
    try:
        await ping(url, seconds)
    except ValueError as error:
        yield Trouble(key, str(error), lasting=True)
    except NoRedis as error:
        mend = {
            "denied": ": correct the user and the password in the URL, or what that user may do (ACL)",
            "refused": ": is it running, and is this its host and port?",
        }
        yield Trouble(key, f"{error}{mend.get(error.reason, '')}", lasting=error.reason == "denied")


async def _tokens(config: Config, seconds: float) -> AsyncIterator[Trouble]:
    section = config.auth.jwt
    if section is None and config.auth.forwarded_user_secret is None:
        return
    key = "auth.forwarded_user_secret" if section is None else "auth.jwt.issuer"
    try:
        from gateway.limits.issuer import Published, Unread
    except ModuleNotFoundError as error:
        yield _missing(key, error)
        return
    if section is None:
        return
    try:
        await Published(section.issuer, section.jwks_url, seconds=seconds).keys()
    except Unread as error:
        yield Trouble(key, f"the issuer's keys cannot be read now: {error}")


async def _kubernetes(config: Config, environment: Mapping[str, str], seconds: float) -> AsyncIterator[Trouble]:
    discovery = config.discovery
    if discovery.mode != "kubernetes":
        return
    try:
        from gateway.discovery.kubernetes import Cluster, NoCluster, may_follow
        from gateway.discovery.reflector import ApiFailed
    except ModuleNotFoundError as error:
        yield _missing("discovery.mode", error)
        return
    try:
        cluster = Cluster.find(environment)
        own = cluster.own_namespace()
    except NoCluster as error:
        yield Trouble("discovery.mode", f"not asked: {error}")
        return

    async def ask(key: str, namespace: str, selector: str) -> Trouble | None:
        try:
            async with asyncio.timeout(seconds):
                count = await may_follow(cluster, namespace, selector)
        except TimeoutError:
            return Trouble(key, f"the API server gave no list of the pods in {namespace} within {seconds:g} s")
        except ApiFailed as error:
            return Trouble(key, str(error), lasting=error.status in (401, 403))
        if not count and key != "discovery.self_selector":
            return Trouble(key, f"no pod in {namespace} bears {selector} now")
        return None

    asking = [
        ask(f"discovery.namespaces.{at}", each, discovery.selector) for at, each in enumerate(discovery.namespaces)
    ]
    asking.append(ask("discovery.self_selector", own, discovery.self_selector))
    for trouble in await asyncio.gather(*asking):
        if trouble is not None:
            yield trouble


def _missing(key: str, error: ModuleNotFoundError) -> Trouble:
    return Trouble(key, f"wants the package {error.name}, which is missing: {HOW_TO_INSTALL_EXTRAS}", lasting=True)
