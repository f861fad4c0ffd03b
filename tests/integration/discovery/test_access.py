"""How the API server is reached, by whom, and with which rights: kubeconfig, service account, TLS, RBAC, proxies."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import __version__
from gateway.discovery.kubernetes import Cluster, KubernetesSource, NoCluster
from gateway.parts import CannotStart
from tests.apiserver.access import Account, service_account
from tests.apiserver.http import Answer
from tests.apiserver.server import ADMIN_TOKEN, ApiServer
from tests.discovering import (
    HOME,
    NAMESPACE,
    SOON,
    Certificate,
    appear,
    asked,
    eventually,
    followed,
    gateway,
    kubeconfig,
    source_of,
    watched,
)
from tests.turns import within

pytestmark = pytest.mark.program("openssl")


@dataclass
class InCluster:
    """An API server as a pod sees it: variables, and a folder with token, authority and namespace."""

    server: ApiServer
    folder: Path
    tls: ssl.SSLContext

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.server.port)}

    @property
    def cluster(self) -> Cluster:
        return Cluster(None, self.folder, self.environment)

    def set_token(self, token: str) -> None:
        (self.folder / "token").write_text(token)

    def trust(self, certificate: Certificate) -> None:
        (self.folder / "ca.crt").write_bytes(certificate.file.read_bytes())

    async def come_back_as(self, certificate: Certificate) -> None:
        """A restart, with another certificate."""
        self.tls.load_cert_chain(certificate.file, certificate.key)
        await self.server.restart()


@asynccontextmanager
async def in_cluster(folder: Path, token: str = "one") -> AsyncIterator[InCluster]:
    """A TLS server whose only token is the one in the folder."""
    certificate = Certificate.make(folder, "first")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.file, certificate.key)
    account = folder / "serviceaccount"
    account.mkdir()
    (account / "namespace").write_text(f"{HOME}\n")
    async with ApiServer(tls=tls, accounts={token.strip(): service_account(NAMESPACE, HOME)}) as server:
        found = InCluster(server, account, tls)
        found.set_token(token)
        found.trust(certificate)
        yield found


# --- In a cluster.


async def test_a_pod_follows_its_cluster_by_its_service_account(tmp_path: Path) -> None:
    async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
        assert pod.cluster.own_namespace() == HOME
        appear(pod.server, "a")
        await seen.sees(a="ready")
        assert {asking.user_agent for asking in pod.server.requests} == {f"poolgate/{__version__}"}
        assert {asking.token for asking in pod.server.requests} == {"one"}


async def test_a_token_that_ends_with_a_newline_is_a_token(tmp_path: Path) -> None:
    async with in_cluster(tmp_path, "one\n") as pod, followed(pod.server, cluster=pod.cluster):
        assert {asking.token for asking in pod.server.requests} == {"one"}


async def test_a_rotated_token_is_used_by_the_next_request(tmp_path: Path) -> None:
    async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
        pod.server.accounts["two"] = pod.server.accounts["one"]
        pod.set_token("two")
        begun = len(pod.server.requests)
        pod.server.end_watches()
        await pod.server.until(lambda: len(pod.server.requests) >= begun + 2)
        assert {asking.token for asking in pod.server.requests[begun:]} == {"two"}
        appear(pod.server, "a")
        await seen.sees(a="ready")


async def test_a_token_that_expires_before_its_heir_is_there_is_read_again(tmp_path: Path) -> None:
    async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
        appear(pod.server, "a")
        await seen.sees(a="ready")
        pod.server.accounts = {"two": service_account(NAMESPACE, HOME)}
        begun = len(pod.server.requests)
        pod.server.end_watches()
        await pod.server.until(lambda: len(pod.server.requests) >= begun + 4)
        assert seen.states == {"a": "ready"}
        assert {asking.token for asking in pod.server.requests[begun:]} == {"one"}
        pod.set_token("two")
        appear(pod.server, "b")
        await seen.sees(SOON, a="ready", b="ready")


async def test_a_401_is_answered_by_what_the_files_say_now_and_once(tmp_path: Path) -> None:
    async with ApiServer() as server:
        file = tmp_path / "kubeconfig"
        file.write_text(server.kubeconfig("old"))
        source = source_of(Cluster(str(file)))
        api = source._apis[0]  # the port below a reflector
        server.accounts = {"old": Account("admin")}
        await api.list_page("")
        server.accounts = {"new": Account("admin")}
        file.write_text(server.kubeconfig("new"))
        begun = len(server.requests)
        await api.list_page("")
        # A kubeconfig is read when a connection is made: the old token is refused, and the new one is at once there.
        assert [asking.token for asking in server.requests[begun:]] == ["old", "new"]
        server.accounts = {}
        begun = len(server.requests)
        with pytest.raises(Exception, match=r"does not accept our credentials \(401\)"):
            await api.list_page("")
        assert len(server.requests) == begun + 2
        await api.close()


async def test_a_new_certificate_authority_needs_no_restart(tmp_path: Path) -> None:
    async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
        appear(pod.server, "a")
        await seen.sees(a="ready")
        second = Certificate.make(tmp_path, "second")
        await pod.come_back_as(second)
        await eventually(lambda: seen.source.stale_seconds() > 0.2)
        assert seen.states == {"a": "ready"}
        pod.trust(second)
        appear(pod.server, "b")
        await seen.sees(SOON, a="ready", b="ready")


async def test_a_server_that_another_authority_vouches_for_is_told_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_cluster(tmp_path) as pod:
        pod.trust(Certificate.make(tmp_path, "other"))
        async with followed(pod.server, cluster=pod.cluster, listed=False) as seen:
            await seen.until(lambda: "the API server cannot be reached" in caplog.text)
            assert not seen.source.seen().listed
            assert pod.server.requests == []


@pytest.mark.parametrize("name", ["token", "ca.crt"])
@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
async def test_credentials_that_vanish_at_run_time_are_awaited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str | None
) -> None:
    async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
        appear(pod.server, "a")
        await seen.sees(a="ready")
        file = pod.folder / name
        before = file.read_text()
        file.unlink()
        if content is not None:
            file.write_text(content)
        # Files are read for a new client, which there is after a failure.
        await pod.server.kill()
        await seen.until(lambda: "cannot be used" in caplog.text)
        await pod.server.start()
        await eventually(lambda: seen.source.stale_seconds() > 0.1)
        assert seen.states == {"a": "ready"}
        file.write_text(before)
        appear(pod.server, "b")
        await seen.sees(SOON, a="ready", b="ready")


async def test_a_gateway_runs_in_a_cluster(tmp_path: Path) -> None:
    async with in_cluster(tmp_path) as pod:
        found = Cluster.find(pod.environment, pod.folder)
        assert found == pod.cluster
        async with followed(pod.server, cluster=found) as seen:
            await seen.sees()


# --- Which cluster.


def test_a_kubeconfig_named_goes_before_the_service_account(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("{}")
    both = {"KUBECONFIG": f"{tmp_path}/missing:{file}", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert Cluster.find(both).kubeconfig == both["KUBECONFIG"]


def test_a_home_has_a_kubeconfig_too(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    file = tmp_path / ".kube" / "config"
    file.write_text("{}")
    assert Cluster.find({"HOME": str(tmp_path)}).kubeconfig == str(file)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"KUBECONFIG": "/nowhere"}, "KUBECONFIG names no file that exists"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "token does not exist: give it a service account"),
        ({"HOME": "/nowhere"}, "there is no cluster: neither KUBECONFIG"),
        ({}, "there is no cluster: neither KUBECONFIG"),
    ],
)
def test_without_a_cluster_the_message_says_what_to_do(
    environment: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoCluster, match=says):
        Cluster.find(environment, tmp_path)


def test_a_service_account_without_an_authority_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    with pytest.raises(NoCluster, match=r"ca\.crt does not exist"):
        Cluster.find({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


async def test_a_gateway_without_a_cluster_does_not_start() -> None:
    async with ApiServer() as server:
        with pytest.raises(CannotStart, match="KUBECONFIG names no file"):
            async with gateway(server, environment={"KUBECONFIG": "/nowhere"}):
                pass


BROKEN = ["", "{", "[]", "text", "apiVersion: v1", '{"current-context": "x"}', "a: b: c", "\x00", "!!python/object:x"]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text))
def test_a_kubeconfig_that_is_none_keeps_the_gateway_from_starting_and_says_why(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(NoCluster, match="kubeconfig cannot be used"):
        source_of(Cluster(str(file)))


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text))
async def test_a_kubeconfig_that_breaks_at_run_time_takes_no_pod_away(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ApiServer() as server:
        file = tmp_path / "kubeconfig"
        file.write_text(server.kubeconfig())
        async with followed(server, cluster=Cluster(str(file))) as seen:
            appear(server, "a")
            await seen.sees(a="ready")
            file.write_text(text)
            await server.kill()
            await seen.until(lambda: "the configuration for the API server cannot be used" in caplog.text)
            await server.start()
            assert seen.states == {"a": "ready"}
            file.write_text(server.kubeconfig())
            appear(server, "b")
            await seen.sees(SOON, a="ready", b="ready")


# --- Rights.


async def test_list_and_watch_on_pods_in_the_named_namespaces_and_our_own_are_enough() -> None:
    accounts = {"gw": service_account("one", "two", HOME, home=HOME)}
    async with ApiServer(accounts=accounts) as server:
        async with followed(server, token="gw", namespaces=("one", "two")) as seen:
            pod = appear(server, "a", namespace="one")
            appear(server, "b", namespace="two")
            await seen.sees(**{"one/a": "ready", "two/b": "ready"})
            server.say(b"garbage\n")
            await seen.until(lambda: "garbage" in seen.reasons)
            await server.restart()
            pod.delete()
            await seen.sees(**{"one/a": "draining", "two/b": "ready"})
            await watched(server, namespace=HOME)
        needed = {(verb, "pods", where) for verb in ("list", "watch") for where in ("one", "two", HOME)}
        assert server.verbs() == needed
        assert {asking.path for asking in server.requests} == {
            f"/api/v1/namespaces/{where}/pods" for where in ("one", "two", HOME)
        }


@pytest.mark.parametrize("missing", ["list", "watch"])
async def test_a_right_that_is_missing_at_the_start_is_named_and_awaited(
    missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    granted = {"list", "watch"} - {missing}
    accounts = {"gw": service_account(NAMESPACE, HOME, verbs=tuple(granted))}
    async with ApiServer(accounts=accounts) as server:
        appear(server, "a")
        async with followed(server, token="gw", listed=False) as seen:
            said = f"pods in models: we may not {missing} pods in the namespace models (403): bind a Role"
            await seen.until(lambda: said in caplog.text)
            assert seen.source.seen().listed is (missing == "watch")
            refused = len(server.requests)
            await server.until(lambda: len(server.requests) >= refused + 8)
            assert caplog.text.count("pods in models: we may not") == 1
            server.accounts = {"gw": service_account(NAMESPACE, HOME)}
            await watched(server)
            await seen.sees(a="ready")


async def test_a_right_that_is_taken_away_later_takes_no_pod_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poolgate.discovery")
    async with ApiServer() as server, followed(server) as seen:
        pod = appear(server, "a")
        await seen.sees(a="ready")
        server.accounts = {ADMIN_TOKEN: service_account()}
        # The open watch outlives its rights.
        pod.become_unready()
        await seen.sees(SOON, a="starting")
        pod.become_ready()
        await seen.sees(SOON, a="ready")
        server.end_watches()
        await seen.until(lambda: "we may not watch pods in the namespace models (403)" in caplog.text)
        await eventually(lambda: seen.source.stale_seconds() > 0.1)
        assert seen.states == {"a": "ready"}
        server.accounts = {ADMIN_TOKEN: service_account(NAMESPACE, HOME)}
        appear(server, "b")
        await seen.sees(SOON, a="ready", b="ready")


async def test_a_namespace_without_rights_does_not_hold_up_the_others() -> None:
    accounts = {"gw": service_account("one", HOME)}
    async with (
        ApiServer(accounts=accounts) as server,
        followed(server, token="gw", namespaces=("one", "two"), listed=False) as seen,
    ):
        pod = appear(server, "a", namespace="one")
        await seen.sees(**{"one/a": "ready"})
        pod.vanish()
        await seen.sees(SOON)
        assert seen.source.stale_seconds() > 0


async def test_replicas_are_counted_in_the_own_namespace_and_without_that_right_there_is_one() -> None:
    accounts = {"gw": service_account(NAMESPACE)}
    async with ApiServer(accounts=accounts) as server, followed(server, token="gw") as seen:
        for name in "ab":
            server.cluster.create_ready(f"poolgate-{name}", HOME, labels={"app": "poolgate"})
        server.cluster.create("poolgate-c", HOME, labels={"app": "poolgate"})
        server.cluster.create_ready("poolgate-d", "elsewhere", labels={"app": "poolgate"})
        server.cluster.create_ready("other", HOME, labels={"app": "other"})
        await server.until(lambda: len(asked(server, "list", HOME)) >= 3)
        assert seen.source.replicas() == 1
        server.accounts = {"gw": service_account(NAMESPACE, HOME)}
        await seen.until(lambda: seen.source.replicas() == 2)
        assert seen.pods == {}


# --- Proxies.


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_a_proxy_that_the_environment_names_is_not_asked(
    secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_proxy = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_proxy.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, url)
            monkeypatch.setenv(name.lower(), url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        if secure:
            async with in_cluster(tmp_path) as pod, followed(pod.server, cluster=pod.cluster) as seen:
                await seen.sees()
        else:
            async with ApiServer() as server, followed(server) as seen:
                await seen.sees()
    assert asked_proxy == []


async def test_a_proxy_that_the_kubeconfig_names_is_asked(tmp_path: Path) -> None:
    came: asyncio.Queue[bytes] = asyncio.Queue()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with ApiServer() as server, await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        told = json.loads(server.kubeconfig())
        told["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps(told))
        async with followed(server, cluster=Cluster(str(file)), listed=False) as seen:
            async with within(5):
                line = await came.get()
            assert line.startswith(b"GET " + server.url.encode())
            assert not seen.source.seen().listed
        assert server.requests == []


# --- The end.


@pytest.mark.parametrize("doing", ["watching", "frozen", "pausing", "listing", "connecting"])
async def test_following_ends_at_once_and_leaves_nothing_open(doing: str) -> None:
    async with ApiServer() as server:
        if doing == "connecting":
            server.freeze()
        if doing == "listing":
            server.answer_with(Answer(200, b"{}"), times=None)
        with kubeconfig(server) as file:
            source: KubernetesSource = source_of(Cluster(str(file)))
            task = asyncio.create_task(source.run(lambda: None))
            if doing in ("watching", "frozen", "pausing"):
                await watched(server)
                await watched(server, namespace=HOME)
            else:
                await eventually(lambda: server.connections > 0)
            if doing == "frozen":
                server.freeze()
            if doing == "pausing":
                await server.kill()
                await eventually(lambda: source.stale_seconds() > 0.05)
            task.cancel()
            async with within(SOON):
                await asyncio.wait([task])
            assert task.cancelled()
            server.thaw()
            await server.until(lambda: server.connections == 0)
