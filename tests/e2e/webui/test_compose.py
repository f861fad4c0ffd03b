"""Open WebUI as deploy/compose starts it, by its own command and variables, before the rest of that file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.e2e.vllm.server import answers_200
from tests.e2e.webui.server import ANSWER_SECONDS, installation
from tests.integration.compose.playing import Stage, played

pytestmark = pytest.mark.webui

USER = 65532
START = "exec {as_user}{python} -m uvicorn open_webui.main:app --host 127.0.0.1 --port {port}"
"""What stands for the image's start.sh."""
AS_USER = f"setpriv --reuid={USER} --regid=0 --clear-groups --no-new-privs "
"""Makes a user without rights of root."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with played("gateway") as stage:
        as_user = AS_USER if os.geteuid() == 0 else ""
        python = installation() / "venv" / "bin" / "python"
        start = START.format(as_user=as_user, python=python, port=stage.ports["open-webui:8080"])
        (stage.folder / "start.sh").write_text(f"export FROM_INIT_PY=true  # installed by pip\n{start}\n")
        if as_user:
            given_to(USER, stage)
        stage.start("open-webui")
        stage.until("open-webui", lambda: answers_200(stage.ports["open-webui:8080"], "/health"))
        yield stage


def given_to(user: int, stage: Stage) -> None:
    """As the service `folders` does, and an engine with a tmpfs. All else belongs to root, which is as good as a root
    that is read-only."""
    stage.folder.chmod(0o755)
    for place in stage.places("open-webui").values():
        if not place.is_relative_to(stage.volume("secrets")):
            place.mkdir(parents=True, exist_ok=True)
            os.chown(place, user, 0)


def call(stage: Stage, path: str, body: Any = None, token: str = "") -> Any:
    asked = Request(
        f"http://127.0.0.1:{stage.ports['open-webui:8080']}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urlopen(asked, timeout=ANSWER_SECONDS) as answer:
        return json.load(answer)


def test_whoever_signs_up_first_chats_with_the_key_that_was_made_for_it(stage: Stage) -> None:
    person = {"name": "ana", "email": "ana@example.com", "password": "only here, on loopback"}
    token = call(stage, "/api/v1/auths/signup", person)["token"]
    assert [model["id"] for model in call(stage, "/api/models", token=token)["data"]] == ["qwen3-8b"]

    asked = {"model": "qwen3-8b", "stream": False, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = call(stage, "/api/chat/completions", asked, token)
    assert answer["choices"][0]["message"]["content"]

    stage.until("gateway", lambda: bool(tenants(stage)))
    assert tenants(stage) == ["open-webui"]


def tenants(stage: Stage) -> list[str]:
    """Whose the chats were, by the gateway's access lines so far."""
    lines = [json.loads(line) for line in stage.log("gateway").read_text().splitlines() if line.startswith("{")]
    return [line["tenant"] for line in lines if line.get("operation") == "chat"]


def test_what_it_keeps_is_in_its_volume(stage: Stage) -> None:
    assert (stage.volume("open-webui") / "webui.db").exists()
    assert list(stage.places("open-webui")["/static"].iterdir())
    assert not Path(stage.folder / ".webui_secret_key").exists()
