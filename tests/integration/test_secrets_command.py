"""`poolgate secrets` as a process: in a cluster, before an API server with TLS, tokens and rights; and in a folder."""

import asyncio
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gateway import __version__
from gateway.cli.secrets_cluster import ClusterSecrets
from gateway.cli.secrets_plan import NotMade, Place
from loadtest.simulator import PodSettings, SimulatedPod
from tests.apiserver import statuses
from tests.apiserver.access import Account, Grant
from tests.apiserver.server import ApiServer, CutBody, Misbehaviour
from tests.discovering import Certificate
from tests.integration.test_process import ENDLESS, ROOT, SECONDS, environment, run, serving
from tests.raw import ask, chat, request
from tests.turns import within
from tests.unit.config.test_secrets import SHIPPED

ROLES = SHIPPED.with_name("roles.yaml")
NAMES = {
    "poolgate": ("vllm-api-key", "redis", "open-webui", "grafana", "poolgate-first-key", "poolgate-keys"),
    "vllm": ("vllm-api-key",),
}
ALL = [(namespace, name) for namespace, names in NAMES.items() for name in names]
RIGHTS = frozenset(
    Grant(verb, resource, role["metadata"]["namespace"], name)
    for role in yaml.safe_load_all(ROLES.read_text())
    if role["kind"] == "Role"
    for rule in role["rules"]
    for verb in rule["verbs"]
    for resource in rule["resources"]
    for name in rule.get("resourceNames", [""])
)
"""What the component's Roles give."""
TOKEN = "canary-token-77aa"
CANARY = b"canary-value-77aa"
# Kubernetes mounts the service account at one fixed place, and tests may not write there.
IN_CLUSTER = """\
import sys
from pathlib import Path
from gateway.cli import main, secrets_cluster
secrets_cluster.SERVICE_ACCOUNT = Path(sys.argv.pop(1))
main.main()
"""


@dataclass(frozen=True)
class Ended:
    """A run, to its end."""

    code: int
    out: str
    err: str

    @property
    def states(self) -> dict[str, str]:
        """What it said of each Secret."""
        rows = [line.split(": ") for line in self.out.splitlines() if not line.startswith("to read")]
        return dict(rows)


@dataclass
class InCluster:
    """An API server as a pod sees it."""

    server: ApiServer
    account: Path

    async def start(self, *more: str, spec: Path = SHIPPED, **variables: str) -> asyncio.subprocess.Process:
        """`poolgate secrets SPEC --in-cluster`."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", IN_CLUSTER, str(self.account), "secrets", str(spec), "--in-cluster", *more),
            cwd=ROOT,
            env=environment()
            | {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.server.port)}
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def end(self, process: asyncio.subprocess.Process) -> Ended:
        """Wait for it. None of the secrets, and no token, is in what it said."""
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
        said = out + err
        assert not [value for value in self.values if value in said], said
        assert TOKEN.encode() not in said
        assert b"Traceback" not in said
        return Ended(process.returncode or 0, out.decode(), err.decode())

    async def run(self, *more: str, spec: Path = SHIPPED, **variables: str) -> Ended:
        return await self.end(await self.start(*more, spec=spec, **variables))

    @property
    def values(self) -> list[bytes]:
        """Everything secret that there is now: the keys file is not, but its digests are nobody's business either."""
        held = self.server.secrets
        found = [value for key in held.objects for value in held.content(*key).values()]
        return [line.strip() for value in found for line in value.splitlines() if len(line.strip()) > 12]

    def content(self, namespace: str, name: str) -> dict[str, bytes]:
        return self.server.secrets.content(namespace, name)

    @property
    def made(self) -> list[tuple[str, str]]:
        """(verb, namespace) of the creations that were asked for."""
        return [(each.verb, each.namespace) for each in self.server.requests if each.verb != "get"]


@asynccontextmanager
async def in_cluster(folder: Path) -> AsyncIterator[InCluster]:
    """A server with TLS that knows one token, which may do what the component's Roles say."""
    certificate = Certificate.make(folder, "api")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.file, certificate.key)
    account = folder / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(f"{TOKEN}\n")
    (account / "ca.crt").write_bytes(certificate.file.read_bytes())
    user = Account("system:serviceaccount:poolgate:first-secrets", RIGHTS)
    async with ApiServer(tls=tls, accounts={TOKEN: user}) as server:
        server.secrets.namespaces = set(NAMES)
        yield InCluster(server, account)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[InCluster]:
    async with in_cluster(tmp_path) as found:
        yield found


# In a cluster.

needs_certificate = pytest.mark.program("openssl")


@needs_certificate
async def test_the_first_run_makes_every_secret_and_says_how_to_read_the_first_key(pod: InCluster) -> None:
    ended = await pod.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.states == {f"{namespace}/{name}": "made" for namespace, name in ALL}
    assert ended.out.splitlines()[-1] == (
        "to read the key of demo: kubectl get secret poolgate-first-key --namespace poolgate "
        "--output go-template='{{index .data \"key\" | base64decode}}'"
    )
    assert set(pod.server.secrets.objects) == set(ALL)
    for made in pod.server.secrets.objects.values():
        assert made["type"] == "Opaque"
        assert made["metadata"]["labels"] == {
            "app.kubernetes.io/part-of": "poolgate",
            "app.kubernetes.io/managed-by": "poolgate-secrets",
        }
    assert set(pod.content("poolgate", "open-webui")) == {"api-key", "secret-key", "admin-password"}
    assert pod.content("poolgate", "vllm-api-key") == pod.content("vllm", "vllm-api-key")


@needs_certificate
async def test_it_asks_for_nothing_but_to_get_and_create_secrets(pod: InCluster) -> None:
    await pod.run()
    gets, creates = (
        {Grant("get", "secrets", *place) for place in ALL},
        {Grant("create", "secrets", each) for each in NAMES},
    )
    assert gets | creates == RIGHTS
    assert pod.server.verbs() == {(verb, "secrets", where) for verb in ("get", "create") for where in NAMES}
    assert {asking.user_agent for asking in pod.server.requests} == {f"poolgate/{__version__}"}


@needs_certificate
async def test_the_second_run_changes_nothing_and_says_so(pod: InCluster) -> None:
    first = await pod.run()
    before = {key: dict(made) for key, made in pod.server.secrets.objects.items()}
    begun = len(pod.made)
    second = await pod.run()
    assert (second.code, second.err) == (0, "")
    assert second.states == dict.fromkeys(first.states, "was there")
    assert pod.server.secrets.objects == before
    assert len(pod.made) == begun


@needs_certificate
@pytest.mark.parametrize("count", range(1, len(ALL)))
async def test_a_run_that_died_half_way_is_finished_by_the_next_one(pod: InCluster, count: int) -> None:
    first = await pod.run()
    order = [(place.split("/")[0], place.split("/")[1]) for place in first.states]
    kept = {key: pod.content(*key) for key in order[:count]}
    for key in order[count:]:
        del pod.server.secrets.objects[key]
    second = await pod.run()
    assert (second.code, second.err) == (0, "")
    assert list(second.states.values()) == ["was there"] * count + ["made"] * (len(ALL) - count)
    assert {key: pod.content(*key) for key in kept} == kept
    assert (await pod.run()).code == 0


@needs_certificate
async def test_two_jobs_at_once_agree_on_one_set(pod: InCluster) -> None:
    pod.server.secrets.together = asyncio.Barrier(2)
    first, second = await asyncio.gather(pod.run(), pod.run())
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    assert len(pod.made) == 2 * len(ALL)  # both had seen nothing
    for place in ("poolgate/vllm-api-key", "poolgate/redis", "poolgate/open-webui"):
        assert {first.states[place], second.states[place]} == {"made", "was there"}
    assert pod.content("poolgate", "vllm-api-key") == pod.content("vllm", "vllm-api-key")
    pod.server.secrets.together = None
    third = await pod.run()
    assert set(third.states.values()) == {"was there"}


@needs_certificate
@pytest.mark.parametrize("here", NAMES)
async def test_a_value_that_is_in_one_namespace_is_copied_to_the_other(pod: InCluster, here: str) -> None:
    pod.server.secrets.put(here, "vllm-api-key", {"api-key": CANARY})
    ended = await pod.run()
    assert (ended.code, ended.states[f"{here}/vllm-api-key"]) == (0, "was there")
    assert [pod.content(each, "vllm-api-key") for each in NAMES] == [{"api-key": CANARY}] * 2


@needs_certificate
async def test_a_secret_of_somebody_else_that_lacks_an_entry_stays_as_it_is_and_nothing_is_made(pod: InCluster) -> None:
    pod.server.secrets.put("poolgate", "open-webui", {"api-key": CANARY})
    ended = await pod.run()
    assert (ended.code, ended.out, pod.made) == (1, "", [])
    assert ended.err.startswith(
        "poolgate: the Secret poolgate/open-webui has no entry secret-key, and what is there is "
    )
    assert pod.content("poolgate", "open-webui") == {"api-key": CANARY}


@needs_certificate
@pytest.mark.parametrize(
    ("without", "says"),
    [
        (
            Grant("get", "secrets", "vllm", "vllm-api-key"),
            "in the namespace vllm: vllm-api-key: we may not get it (403)",
        ),
        (Grant("create", "secrets", "poolgate"), "in the namespace poolgate: vllm-api-key: we may not create it (403)"),
    ],
    ids=["get", "create"],
)
async def test_a_right_that_is_missing_is_named(pod: InCluster, without: Grant, says: str) -> None:
    assert without in RIGHTS
    pod.server.accounts = {TOKEN: Account("system:serviceaccount:poolgate:first-secrets", RIGHTS - {without})}
    ended = await pod.run()
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"poolgate: secrets {says}: bind a Role to the pod's service account that allows ")


@needs_certificate
async def test_a_namespace_that_is_not_there_is_named(pod: InCluster) -> None:
    pod.server.secrets.namespaces = {"poolgate"}
    ended = await pod.run()
    assert ended.code == 1
    assert ended.err == "poolgate: the namespace vllm does not exist: create it, and run this again\n"


@needs_certificate
async def test_a_token_that_is_refused_is_told(pod: InCluster) -> None:
    pod.server.accounts = {"another": Account("admin")}
    ended = await pod.run()
    assert ended.code == 1
    assert ended.err.endswith("the API server does not accept the service account's token (401)\n")


@needs_certificate
async def test_an_api_server_that_comes_late_is_waited_for(pod: InCluster) -> None:
    await pod.server.kill()
    process = await pod.start()
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        said = (await process.stderr.readline()).decode()
    assert said == (
        f"WARNING poolgate.secrets: the API server at https://127.0.0.1:{pod.server.port} cannot be reached "
        "(ConnectError); it is asked again\n"
    )
    await pod.server.start()
    ended = await pod.end(process)
    assert (ended.code, ended.err) == (0, "")
    assert set(pod.server.secrets.objects) == set(ALL)


@needs_certificate
@pytest.mark.parametrize(
    "instead",
    [statuses.too_many_requests(), statuses.internal_error(), statuses.gateway_timeout(), CutBody(0)],
    ids=["429", "500", "504", "cut"],
)
@pytest.mark.parametrize("verb", ["get", "create"])
async def test_what_heals_by_itself_is_asked_again(pod: InCluster, instead: Misbehaviour, verb: str) -> None:
    pod.server.answer_with(instead, verb)
    ended = await pod.run()
    assert (ended.code, "it is asked again" in ended.err) == (0, True)
    # A creation whose answer was lost is done, and it is ours.
    assert set(ended.states.values()) == {"made"}


@needs_certificate
async def test_patience_has_an_end(pod: InCluster) -> None:
    pod.server.answer_with(statuses.internal_error(), times=None)
    variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(pod.server.port)}
    for patience_seconds, asked in ((0.0, 1), (ENDLESS, 2)):
        pod.server.requests.clear()
        async with ClusterSecrets.opened(variables, pod.account, patience_seconds=patience_seconds) as store:
            reading = asyncio.create_task(store.read(Place("vllm", "vllm-api-key")))
            if asked > 1:
                # It has asked once, and waits before it asks again; then its patience is at an end.
                async with within(5):
                    while not store._told:
                        await asyncio.sleep(0.001)
                store._until -= patience_seconds
            with pytest.raises(NotMade, match="answers with status 500: run this again when it is well"):
                async with within(10):
                    await reading
        assert len(pod.server.requests) == asked


@needs_certificate
async def test_a_server_that_another_authority_vouches_for_is_told_nothing(pod: InCluster, tmp_path: Path) -> None:
    (pod.account / "ca.crt").write_bytes(Certificate.make(tmp_path, "other").file.read_bytes())
    ended = await pod.run()
    assert (ended.code, pod.server.requests) == (1, [])
    assert "is not vouched for by the service account's ca.crt" in ended.err


@needs_certificate
async def test_no_proxy_of_the_environment_is_asked(pod: InCluster) -> None:
    dead = "http://127.0.0.1:1"
    assert (await pod.run(HTTPS_PROXY=dead, https_proxy=dead, ALL_PROXY=dead)).code == 0


@needs_certificate
async def test_as_json_it_tells_the_same(pod: InCluster) -> None:
    told = json.loads((await pod.run("--json")).out)
    assert [(row["namespace"], row["secret"], row["state"]) for row in told["secrets"]][-1] == (
        "poolgate",
        "poolgate-keys",
        "made",
    )
    assert {tuple(sorted(row)) for row in told["secrets"]} == {("entries", "namespace", "secret", "state")}
    assert told["first_key"]["team"] == "demo"
    assert told["first_key"]["read_by"].startswith("kubectl get secret poolgate-first-key ")


@needs_certificate
async def test_the_gateway_lets_in_whoever_has_the_key_that_the_secret_holds(pod: InCluster, tmp_path: Path) -> None:
    await pod.run()
    file = tmp_path / "keys.yaml"
    file.write_bytes(pod.content("poolgate", "poolgate-keys")["keys.yaml"])
    keys = {
        "demo": pod.content("poolgate", "poolgate-first-key")["key"].decode(),
        "open-webui": pod.content("poolgate", "open-webui")["api-key"].decode(),
    }
    async with SimulatedPod(PodSettings(model="m")) as simulated, serving(tmp_path, (file, ""), [simulated]) as gateway:
        await gateway.until_ready()
        for key in keys.values():
            assert (await ask(gateway.port, request(chat(), key=key))).status == 200
        assert (await ask(gateway.port, request(chat(), key=keys["demo"][:-1] + "x"))).status == 401
        gateway.signal(signal.SIGINT)
        await gateway.ended_well()
        assert [line["tenant"] for line in gateway.lines][:2] == list(keys)


@pytest.mark.parametrize("lacking", ["token", "ca.crt", "KUBERNETES_SERVICE_HOST"])
@needs_certificate
async def test_outside_of_a_cluster_it_says_what_is_missing(pod: InCluster, lacking: str) -> None:
    if lacking != "KUBERNETES_SERVICE_HOST":
        (pod.account / lacking).unlink()
        ended = await pod.run()
    else:
        ended = await pod.run(KUBERNETES_SERVICE_HOST="")
    assert (ended.code, ended.out) == (2, "")
    assert ("KUBERNETES_SERVICE_HOST is not set" if lacking.isupper() else "cannot be used") in ended.err


# In a folder.


def in_folder(folder: Path, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A run. Nothing that is there afterwards is in what it said."""
    ended = run("secrets", str(SHIPPED), "--folder", str(folder), *more)
    assert ended.returncode == code, ended.stderr
    for content in held(folder).values():
        assert not [line for line in content.split() if len(line) > 12 and line.decode() in ended.stdout + ended.stderr]
    return ended


def held(folder: Path) -> dict[str, bytes]:
    """What each file holds."""
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.exists() else []
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = in_folder(folder)
    before = held(folder)
    assert set(before) == {
        "grafana/admin-password",
        "open-webui/admin-password",
        "open-webui/api-key",
        "open-webui/secret-key",
        "poolgate-first-key/key",
        "poolgate-keys/keys.yaml",
        "redis/password",
        "vllm-api-key/api-key",
    }
    assert first.stdout.splitlines()[0] == "vllm-api-key: made"
    assert first.stdout.splitlines()[-1] == f"to read the key of demo: cat {folder}/poolgate-first-key/key"
    second = in_folder(folder)
    assert held(folder) == before
    assert {line.split(": ")[1] for line in second.stdout.splitlines()[:-1]} == {"was there"}


def test_its_key_is_good(tmp_path: Path) -> None:
    in_folder(tmp_path)
    command = [sys.executable, "-m", "gateway", "keys", "verify", "--file", f"{tmp_path}/poolgate-keys/keys.yaml"]
    with (tmp_path / "poolgate-first-key" / "key").open() as key:
        ended = subprocess.run(command, stdin=key, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "team demo" in ended.stdout
    more = run("keys", "create", "--team", "acme", "--file", f"{tmp_path}/poolgate-keys/keys.yaml")
    assert more.returncode == 0, more.stderr
    in_folder(tmp_path)


def test_containers_of_any_user_can_read_it_and_nobody_finds_half_of_a_secret(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    before = os.umask(0o077)
    try:
        in_folder(folder)
    finally:
        os.umask(before)
    assert {mode(file) for file in folder.rglob("*") if file.is_file()} == {0o444}
    assert {mode(each) for each in (folder, *folder.iterdir())} == {0o755}


def test_what_a_dead_run_left_is_taken_away_and_the_rest_is_made(tmp_path: Path) -> None:
    in_folder(tmp_path)
    kept = (tmp_path / "vllm-api-key" / "api-key").read_bytes()
    for name in ("open-webui", "poolgate-keys"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / ".unfinished-abc").mkdir()
    (tmp_path / ".unfinished-abc" / "api-key").write_bytes(CANARY)
    in_folder(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(NAMES["poolgate"])
    assert (tmp_path / "vllm-api-key" / "api-key").read_bytes() == kept
    in_folder(tmp_path)


def test_several_at_once_fill_a_folder_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "secrets", str(SHIPPED), "--folder", str(tmp_path)]
    several = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=SECONDS) for process in several]
    assert [err for _, err in said] == [""] * 3
    assert "".join(out for out, _ in said).count(": made") == len(NAMES["poolgate"])


def test_a_secret_of_somebody_else_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "open-webui").mkdir()
    (tmp_path / "open-webui" / "api-key").write_bytes(CANARY)
    ended = in_folder(tmp_path, code=1)
    assert ended.stderr.startswith(
        "poolgate: the Secret open-webui has no entry secret-key, and what is there is never"
    )
    assert held(tmp_path) == {"open-webui/api-key": CANARY}


AS_ANOTHER = """\
import os
import sys
import gateway.cli.main, gateway.cli.secrets_folder, gateway.cli.secrets_making, gateway.config.secrets
if os.geteuid() == 0:
    # Now, and not for the whole process: another user may not be able to read these modules.
    os.setgroups([])
    os.setgid(65532)
    os.setuid(65532)


def watch(event, arguments):
    written = event in ("os.mkdir", "os.rename", "os.link", "os.symlink")
    if event == "open":
        written = isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if written and not os.fsdecode(arguments[0]).startswith(sys.argv[-1]):
        os.write(2, f"writes {arguments[0]}".encode())


sys.addaudithook(watch)
gateway.cli.main.main()
"""


def test_a_user_who_may_write_into_the_folder_alone_fills_it() -> None:
    with tempfile.TemporaryDirectory() as name:
        spec, folder = Path(name) / "secrets.yaml", Path(name) / "volume"
        spec.write_bytes(SHIPPED.read_bytes())
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 65532, 65532)
            Path(name).chmod(0o755)
        command = [sys.executable, "-c", AS_ANOTHER, "secrets", str(spec), "--folder", str(folder)]
        for state in ("made", "was there"):
            # As on a read-only root: there is no other place for files.
            variables = environment() | {"HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
            ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=SECONDS)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert f"grafana: {state}" in ended.stdout
        owners = {file.stat().st_uid for file in folder.rglob("*")}
        assert owners == {65532 if os.geteuid() == 0 else os.geteuid()}


def test_a_folder_that_cannot_be_written_is_told_in_words() -> None:
    ended = run("secrets", str(SHIPPED), "--folder", "/proc/canary")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "poolgate: No such file or directory: /proc/canary\n"


@pytest.mark.parametrize("flags", [(), ("--in-cluster", "--folder", "x")])
def test_where_they_are_kept_has_to_be_said(flags: tuple[str, ...]) -> None:
    ended = run("secrets", str(SHIPPED), *flags)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "poolgate: say where they are kept: either --in-cluster or --folder DIR\n"


def test_a_faulty_file_is_told_with_line_and_mend(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yaml"
    file.write_text("random:\n- {secret: a, entry: b, namespace: x}\n")
    ended = run("secrets", str(file), "--folder", str(tmp_path / "out"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"poolgate: {file}:2: random.0.namespace: this key does not exist: did you mean namespaces?" in ended.stderr
    assert not (tmp_path / "out").exists()
