"""Open WebUI runs as deploy/kustomize/components/open-webui has it run: that environment, that user, those volumes.

In place of the image is the same version from its package, started as the image's start.sh does when it is given a
secret key: by uvicorn, with no writing of its own.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.contained import entering
from tests.e2e.vllm.server import REPOSITORY, answers_200, free_port
from tests.e2e.webui.front import Front, gateway_before, simulated_pods
from tests.e2e.webui.server import Webui, installation, running
from tests.manifests.kubelet import variables_of

pytestmark = [pytest.mark.webui, pytest.mark.program("namespaces")]

MANIFEST = REPOSITORY / "deploy" / "kustomize" / "components" / "open-webui" / "open-webui.yaml"
DEPLOYMENT: dict[str, Any] = next(
    each for each in yaml.safe_load_all(MANIFEST.read_text("utf-8")) if each["kind"] == "Deployment"
)
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
GATEWAY = "http://poolgate:8000"
PASSWORD = "only here, on loopback"
MEMORY_REQUESTED_KIB = 512 * 1024


def environment(gateway: str, secret: Mapping[str, str]) -> dict[str, str]:
    """The container's, with these entries in the Secret, and the gateway where it is here."""
    found = variables_of(CONTAINER, lambda _, entry: secret.get(entry))
    return {name: value.replace(GATEWAY, gateway) for name, value in found.items()}


@contextmanager
def as_in_the_pod(folder: Path, front: Front, secret: Mapping[str, str]) -> Iterator[Webui]:
    """Open WebUI. What is kept of it is in `folder`; all else it may write to is new."""
    home = installation()
    (package,) = (home / "venv").glob("lib/python*/site-packages/open_webui")
    began = folder / str(time.monotonic_ns())
    kept = {each["name"] for each in POD["volumes"] if "persistentVolumeClaim" in each}
    volumes = {
        mount["mountPath"]: (folder if mount["name"] in kept else began) / mount["name"]
        for mount in CONTAINER["volumeMounts"]
    }
    for path in (began / "root", *volumes.values()):
        path.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), began / "log"
    # What the image itself says: how to find programs, and the pages.
    image = {"PATH": "/usr/bin:/bin", "FRONTEND_BUILD_DIR": str(package / "frontend")}
    python = str(home / "venv" / "bin" / "python")
    command = [python, "-m", "uvicorn", "open_webui.main:app", "--host=127.0.0.1", f"--port={port}"]
    enter = entering(
        began / "root",
        user=POD["securityContext"]["runAsUser"],
        group=POD["securityContext"]["runAsGroup"],
        volumes=volumes,
        readable=[home / "venv"],
    )
    variables = image | environment(front.url, secret)
    with running([*enter, *command, "--forwarded-allow-ips=*", "--workers=1"], variables, port, log) as started:
        yield started


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    keys = {"first": {"forwards_user": True}, "second": {"forwards_user": True}}
    with (
        simulated_pods(chat=1) as pods,
        gateway_before(pods, tmp_path_factory.mktemp("gateway"), keys, {}) as front,
    ):
        yield front


def secret(front: Front, key: str, **more: str) -> dict[str, str]:
    return {"api-key": front.keys[key], "secret-key": "0123456789abcdef0123456789abcdef", **more}


def ask(webui: Webui) -> dict[str, Any]:
    """One answer to the administrator of the manifest."""
    (email,) = [each["value"] for each in CONTAINER["env"] if each["name"] == "WEBUI_ADMIN_EMAIL"]
    token = webui.post("/api/v1/auths/signin", {"email": email, "password": PASSWORD})["token"]
    message = {"role": "user", "content": "Tell me about the sea."}
    answer: dict[str, Any] = webui.post("/api/chat/completions", {"model": "chat", "messages": [message]}, token)
    return answer


def test_it_runs_where_nothing_but_its_volumes_can_be_written_and_answers_by_the_gateway(
    front: Front, tmp_path: Path
) -> None:
    before = len(front.lines(model="chat"))
    with as_in_the_pod(tmp_path, front, secret(front, "first", **{"admin-password": PASSWORD})) as webui:
        assert ask(webui)["choices"][0]["message"]["content"]
        assert front.next_line(before, model="chat")["tenant"] == "first"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert answers_200(webui.port, CONTAINER[probe]["httpGet"]["path"])
        assert answers_200(webui.port, "/static/favicon.png")
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{webui.pid}/status").read_text().splitlines())
        assert int(status["VmHWM"].split()[0]) < MEMORY_REQUESTED_KIB, "more than the manifest asks for"
        refused = [line for line in webui.log.read_text().splitlines() if "Read-only" in line or "denied" in line]
        assert refused == []
    assert (tmp_path / "data" / "webui.db").exists()


def test_a_new_key_in_the_secret_holds_after_a_restart_and_accounts_are_kept(front: Front, tmp_path: Path) -> None:
    with as_in_the_pod(tmp_path, front, secret(front, "first", **{"admin-password": PASSWORD})):
        pass
    before = len(front.lines(model="chat"))
    # The account is in the volume: the password in the Secret is not looked at any more.
    with as_in_the_pod(tmp_path, front, secret(front, "second", **{"admin-password": "another"})) as webui:
        ask(webui)
    assert front.next_line(before, model="chat")["tenant"] == "second"


def test_the_settings_are_json_where_open_webui_reads_json() -> None:
    variables = environment(GATEWAY, {"api-key": "", "secret-key": "", "admin-password": ""})
    assert json.loads(variables["OPENAI_API_CONFIGS"])["0"]["headers"] == {"X-OpenWebUI-Task": "{{TASK}}"}
    assert json.loads(variables["DEFAULT_MODEL_METADATA"])
