"""Pods from the Kubernetes API: one reflector for each namespace, and one that counts the gateway's own replicas.

The `kubernetes` package gives the configuration (in a cluster, or a kubeconfig), TLS, tokens and HTTP; what is asked
and what is made of the answers is ours (`discovery.reflector`). It takes a third of a second and some 20 MiB to import:
this module is imported in this mode only. Verbs used: list and watch on pods, in the named namespaces and our own.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from ssl import get_default_verify_paths
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_kube_config
from kubernetes.aio.config.incluster_config import (
    SERVICE_HOST_ENV_NAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)
from kubernetes.aio.config.kube_config import KubeConfigMerger

from gateway import __version__
from gateway.core.fleet import Address, Pod, RefusedPod
from gateway.discovery.pods import Network, Refused, Rules, is_live, pods_of, shown_name
from gateway.discovery.reflector import ApiFailed, Pace, Reflector
from gateway.discovery.source import Sighting

PAGE_PODS = 100
"""A page of a list: a third of a megabyte, parsed in 4 ms."""
MAX_PAGE_BYTES = 64 << 20
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""For a page of a list, whole, and for a watch to be opened."""
MAX_ERROR_BYTES = 4096

T = TypeVar("T")


class NoCluster(Exception):
    """There is no API server to ask; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """How the API server is reached: a kubeconfig, or in a pod its service account's folder."""

    kubeconfig: str | None
    service_account: Path = Path(SERVICE_TOKEN_FILENAME).parent
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """In a pod: where the API server is."""

    @classmethod
    def find(cls, environment: Mapping[str, str], service_account: Path | None = None) -> "Cluster":
        """`KUBECONFIG`, else the pod's service account, else `~/.kube/config`: the order of kubectl's relatives.

        Raises `NoCluster`.
        """
        account = service_account or Path(SERVICE_TOKEN_FILENAME).parent
        named = environment.get("KUBECONFIG", "")
        if named:
            if not any(Path(file).is_file() for file in named.split(os.pathsep)):
                raise NoCluster("KUBECONFIG names no file that exists: correct or unset it")
            return cls(named)
        if environment.get(SERVICE_HOST_ENV_NAME):
            for name in ("token", "ca.crt"):
                if not (account / name).is_file():
                    raise NoCluster(
                        f"this is a pod, but {account / name} does not exist: give it a service account, with "
                        "automountServiceAccountToken: true"
                    )
            return cls(None, account, environment)
        home = Path(environment.get("HOME", "")) / ".kube" / "config"
        if not home.is_file():
            raise NoCluster(
                "discovery.mode is kubernetes, but there is no cluster: neither KUBECONFIG, nor a pod's service "
                "account, nor ~/.kube/config. Without a cluster list the pods under discovery.pods"
            )
        return cls(str(home))

    def own_namespace(self) -> str:
        """Where this process' own pod lives, or the kubeconfig's current context points.

        Raises `NoCluster`.
        """
        if self.kubeconfig is None:
            with suppress(OSError):
                return (self.service_account / "namespace").read_text("utf-8").strip() or "default"
            return "default"
        try:
            merged = KubeConfigMerger(self.kubeconfig).config
            context = merged["contexts"].get_with_name(merged["current-context"])["context"]
            return context.safe_get("namespace") or "default"
        except Exception as error:
            raise NoCluster(f"the kubeconfig cannot be used: {_why(error)}") from None

    async def configuration(self) -> Configuration:
        """Addresses and credentials, read from the files now. Raises whatever an unusable file makes its reader do."""
        made = Configuration()
        if self.kubeconfig is not None:
            await load_kube_config(self.kubeconfig, client_configuration=made)
            return made
        token_file, ca_file = str(self.service_account / "token"), str(self.service_account / "ca.crt")
        loader = InClusterConfigLoader(token_file, ca_file, try_refresh_token=False, environ=self.environment)
        loader.load_and_set(made)

        def read_token(configuration: Configuration) -> None:
            # For each request, of which there are a few in five minutes: a rotated token is used at once.
            try:
                token = Path(token_file).read_text("utf-8").strip()
            except (OSError, ValueError):
                raise ConfigException("the service account's token cannot be read") from None
            configuration.api_key["BearerToken"] = f"Bearer {token}"

        made.refresh_api_key_hook = read_token  # type: ignore[assignment]  # its only annotation is its first value
        return made


@dataclass(frozen=True, slots=True)
class _Trust:
    """What a client reads only when it is made: how TLS is spoken, and through which proxy."""

    files: tuple[bytes, ...]
    rest: tuple[Any, ...]

    @classmethod
    def of(cls, told: Configuration) -> "_Trust":
        """Raises OSError where a file cannot be read."""
        authority = told.ssl_ca_cert or ("" if told.ca_cert_data else get_default_verify_paths().cafile)
        named = [Path(name).read_bytes() for name in (authority, told.cert_file, told.key_file) if name]
        # A digest each: roots are a quarter of a megabyte, and a key is better not kept.
        files = tuple(sha256(content).digest() for content in named)
        return cls(files, (told.ca_cert_data, told.verify_ssl, told.proxy, told.proxy_headers, told.retries))


class KubernetesApi:
    """Lists and watches the pods of one namespace. See `discovery.reflector.PodsApi`."""

    def __init__(self, cluster: Cluster, namespace: str, selector: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._selector = selector
        self._client: ApiClient | None = None
        """With which is spoken now."""
        self._kept: tuple[_Trust, ApiClient] | None = None
        """The last one that was made, and of what."""
        self._connector: aiohttp.TCPConnector | None = None
        self._sockets: list[socket.socket] = []
        self.ends: frozenset[tuple[Address, Address]] = frozenset()
        """Of the connections that brought the last answer: (the API server's address, our own)."""

    async def list_page(self, token: str) -> bytes:
        """See `PodsApi`."""
        query = [("limit", str(PAGE_PODS))] + ([("continue", token)] if token else [])
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._get("list", query) as answer:
                body = bytearray()
                async for piece in answer.content.iter_any():
                    body += piece
                    if len(body) > MAX_PAGE_BYTES:
                        raise ApiFailed(0, "a page of pods is larger than 64 MiB")
                return bytes(body)
        except TimeoutError:
            raise ApiFailed(0, f"the API server gave no list in {ANSWER_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None

    @asynccontextmanager
    async def watch(self, version: str, seconds: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `PodsApi`."""
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(seconds)),
        ]
        try:
            async with self._get("watch", query) as answer:
                yield answer.content.iter_any()
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        connector, self._connector = self._connector, None
        self._sockets.clear()
        if client is not None:
            await client.close()
            client.rest_client.pool_manager = None
        if connector is not None:
            await connector.close()

    @asynccontextmanager
    async def _get(self, verb: str, query: list[tuple[str, str]]) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200, its body still to come. Raises `ApiFailed` for any other."""
        answer = await self._ask(query)
        if answer.status == 401:
            # Perhaps the credentials were just exchanged: once more, with what the files say now.
            answer.close()
            await self.close()
            answer = await self._ask(query)
        try:
            if answer.status != 200:
                raise await self._failure(verb, answer)
            self._note_ends()
            yield answer
        finally:
            answer.close()

    async def _ask(self, query: list[tuple[str, str]]) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                client = self._client or await self._connect()
                # The parts of `list_namespaced_pod` that put a request together, less its models of the answer.
                request = await client.param_serialize(
                    "GET",
                    "/api/v1/namespaces/{namespace}/pods",
                    path_params={"namespace": self._namespace},
                    query_params=[("labelSelector", self._selector), *query],
                    header_params={"Accept": "application/json"},
                    auth_settings=["BearerToken"],
                )
                deadlines = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
                answer = await client.call_api(*request, _request_timeout=deadlines)
                response: aiohttp.ClientResponse = answer.response
                return response
        except TimeoutError:
            await self.close()
            raise ApiFailed(0, f"the API server did not answer in {ANSWER_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            await self.close()
            raise _unreachable(error) from None
        except (ConfigException, ValueError) as error:
            await self.close()
            raise _unusable(error) from None

    async def _connect(self) -> ApiClient:
        """A client that does what the files say now. After a 401, and where no connection comes about, they are read
        again: an exchanged certificate authority or kubeconfig needs no restart.

        A client is made anew for another trust only. Where the kubeconfig names no authority its TLS context holds all
        that the system trusts: a MiB, and 20 ms in which the loop stands still, at every try of an outage.
        """
        try:
            configuration = await self._cluster.configuration()
            # As Go's clients: Python 3.13 would refuse the certificate authorities of many clusters for their form.
            configuration.disable_strict_ssl_verification = True
            trust = _Trust.of(configuration)
            if self._kept is None or self._kept[0] != trust:
                self._kept = (trust, ApiClient(configuration))
            client = self._kept[1]
            client.configuration = client.rest_client.configuration = configuration
        except Exception as error:
            # A kubeconfig is the operator's, its plugins are anybody's: what they raise is nowhere listed.
            raise _unusable(error) from None
        client.user_agent = f"poolgate/{__version__}"
        self._connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, socket_factory=self._socket)
        # A proxy is used if the kubeconfig names one, not because a variable of the environment does.
        configuration.client_session_kwargs = {"connector": self._connector, "trust_env": False}
        self._client = client
        return client

    def _socket(self, told: Any) -> socket.socket:
        family, kind, protocol, _, _ = told
        made = socket.socket(family, kind, protocol)
        self._sockets = [*(each for each in self._sockets if each.fileno() >= 0), made]
        return made

    def _note_ends(self) -> None:
        ends = set()
        for each in self._sockets:
            # One that is closed by now has none any more.
            with suppress(OSError):
                ends.add((each.getpeername()[:2], each.getsockname()[:2]))
        if ends != self.ends:
            self.ends = frozenset(ends)

    async def _failure(self, verb: str, answer: aiohttp.ClientResponse) -> ApiFailed:
        status = answer.status
        body = b""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with asyncio.timeout(CONNECT_SECONDS):
                body = await answer.content.read(MAX_ERROR_BYTES)
        where = f"{verb} pods in the namespace {self._namespace}"
        if status == 401:
            why = f"the API server does not accept our credentials (401), to {where}"
        elif status == 403:
            why = f"we may not {where} (403): bind a Role with the verbs list and watch on pods to our service account"
        else:
            why = f"the API server answered {status}{_reason_in(body)} to: {where}"
        return ApiFailed(status, why, _retry_after(answer.headers.get("Retry-After", "")))


async def may_follow(cluster: Cluster, namespace: str, selector: str) -> int:
    """List and watch a namespace's pods once, as discovery does. How many the list's first page has.

    Raises `ApiFailed`, whose text names the verb that is missing.
    """
    api = KubernetesApi(cluster, namespace, selector)
    try:
        page = json.loads(await api.list_page(""))
        async with api.watch(page["metadata"]["resourceVersion"], 1):
            return len(page["items"] or ())
    except (ValueError, KeyError, TypeError):
        raise ApiFailed(0, "what the API server answers is no list of pods") from None
    finally:
        await api.close()


def _unreachable(error: Exception) -> ApiFailed:
    # Their texts hold addresses.
    return ApiFailed(0, f"the API server cannot be reached ({type(error).__name__})")


def _unusable(error: Exception) -> ApiFailed:
    return ApiFailed(0, f"the configuration for the API server cannot be used: {_why(error)}")


def _why(error: Exception) -> str:
    # Other texts than their own may quote what stands in the file.
    return " ".join(str(error).split())[:200] if isinstance(error, ConfigException) else type(error).__name__


def _reason_in(body: bytes) -> str:
    """The Status object's reason, a word such as `TooManyRequests`."""
    with suppress(ValueError, RecursionError, AttributeError):
        reason = json.loads(body).get("reason")
        if isinstance(reason, str) and reason.isalnum():
            return f" {reason[:64]}"
    return ""


def _retry_after(value: str) -> float:
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0


Kept = tuple[Pod, ...] | RefusedPod


class Namespace:
    """The pods of one namespace."""

    def __init__(self, api: KubernetesApi, rules: Rules, listens_on: tuple[Address, ...]) -> None:
        self._api = api
        self._ends = api.ends
        self._rules = rules.reserving(listens_on)
        self._own_ports = tuple(port for _, port in listens_on)

    def read(self, told: Mapping[str, Any]) -> Kept:
        """What is kept of a pod object."""
        if self._api.ends is not self._ends:
            self._reserve(self._api.ends)
        try:
            return pods_of(told, self._rules)
        except Refused as refused:
            return RefusedPod(shown_name(told, self._rules), refused.reason, str(refused))

    def _reserve(self, ends: frozenset[tuple[Address, Address]]) -> None:
        """Known from the very connections that bring the pods, and kept when they go."""
        self._ends = ends
        own = ((host, port) for _, (host, _) in ends for port in self._own_ports)
        self._rules = self._rules.reserving((*(server for server, _ in ends), *own))


class KubernetesSource:
    """See the module's text, and `discovery.source.Source`."""

    mode = "kubernetes"
    following: type[Reflector[Any]] = Reflector
    reading: type[Namespace] = Namespace

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespaces: tuple[str, ...],
        selector: str,
        self_selector: str,
        networks: tuple[Network, ...],
        listens_on: tuple[Address, ...],
        relisted: Callable[[str], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        """Raises `NoCluster` when the kubeconfig cannot be read."""
        self._changed: Callable[[], None] = lambda: None
        self._apis: list[KubernetesApi] = []

        def reflector(what: str, api: KubernetesApi, read: Callable[[Mapping[str, Any]], T]) -> Reflector[T]:
            self._apis.append(api)
            return self.following(what, api, read, self._tell_changed, relisted, clock, chance, pace)

        self._reflectors: list[Reflector[Kept]] = []
        for namespace in namespaces:
            api = KubernetesApi(cluster, namespace, selector)
            reader = self.reading(api, Rules(namespace, len(namespaces) > 1, networks), listens_on)
            self._reflectors.append(reflector(f"pods in {namespace}", api, reader.read))
        own = cluster.own_namespace()
        self._own = reflector(f"our replicas in {own}", KubernetesApi(cluster, own, self_selector), is_live)

    async def run(self, changed: Callable[[], None]) -> None:
        """See `Source`."""
        self._changed = changed
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in self._reflectors:
                    group.create_task(reflector.run())
                group.create_task(self._own.run())
        finally:
            for api in self._apis:
                await api.close()

    def _tell_changed(self) -> None:
        self._changed()

    def seen(self) -> Sighting:
        """See `Source`."""
        pods: list[Pod] = []
        refused: list[RefusedPod] = []
        for reflector in self._reflectors:
            for kept in reflector.held():
                if isinstance(kept, RefusedPod):
                    refused.append(kept)
                else:
                    pods += kept
        return Sighting(tuple(pods), tuple(refused), all(reflector.listed for reflector in self._reflectors))

    def stale_seconds(self) -> float:
        """See `Source`."""
        return max(reflector.stale_seconds() for reflector in self._reflectors)

    def replicas(self) -> int:
        """See `Source`. While nobody can be counted, there is one."""
        return max(1, sum(self._own.held()))
