"""Open WebUI on loopback, for as long as a `with` block lasts: a process of its own, offline, with nothing in it yet.

It is started slim, a way of its own to run without torch and without models beside it; a chat takes the same way. It
gets none of the environment's variables but PATH, so that no key or address of a developer reaches it. What it does by
default and these tests do not want is turned off by name: calls to other machines, and tools that it offers the model
with every message.
"""

import http.client
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.vllm.server import REPOSITORY, end_of, free_port, wait_for_health

"""It imports for 10 s on a quiet machine; the first time Python compiles what it imports."""
STOP_SECONDS = 15
ANSWER_SECONDS = 60

ADMIN = {"email": "admin@example.com", "password": "only here, on loopback"}
ENVIRONMENT = {
    "USE_SLIM_DOCKER": "true",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "true",
    "SCARF_NO_ANALYTICS": "true",
    "ANONYMIZED_TELEMETRY": "false",
    "ENABLE_OLLAMA_API": "false",
    "WEBUI_ADMIN_EMAIL": ADMIN["email"],
    "WEBUI_ADMIN_PASSWORD": ADMIN["password"],
    # All people see all models: whose they are is not what is tested.
    "BYPASS_MODEL_ACCESS_CONTROL": "true",
    "DEFAULT_MODEL_METADATA": json.dumps({"capabilities": {"builtin_tools": False}}),
    "PYTHONUNBUFFERED": "1",
}


class WebuiNotInstalled(Exception):
    """There is no venv with Open WebUI where it is looked for."""


class WebuiFailed(Exception):
    """It ended, was not ready in time, or refused what was asked of it. Its last lines of log are in the message."""


@dataclass(frozen=True)
class Connection:
    """What an administrator enters for a connection to a gateway."""

    base_url: str
    key: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Person:
    """Who is signed in, and is no administrator."""

    name: str
    token: str


@dataclass(frozen=True)
class Webui:
    port: int
    log: Path
    seconds_to_start: float
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def person(self, name: str) -> Person:
        """Somebody new."""
        admin = self.post("/api/v1/auths/signin", ADMIN)["token"]
        entry = {"name": name, "email": f"{name}@example.com", "password": ADMIN["password"], "role": "user"}
        return Person(name, self.post("/api/v1/auths/add", entry, admin)["token"])

    def post(self, path: str, body: Mapping[str, Any], token: str = "") -> Any:
        """Raises WebuiFailed when it is refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise WebuiFailed(f"{path} was answered with {answer.status}: {text}; {end_of(self.log)}")
        return json.loads(text)


@contextmanager
def open_webui(folder: Path, connections: Sequence[Connection], **more: str) -> Iterator[Webui]:
    """Start it before these gateways, wait until it is ready, and leave no process of it behind.

    `more`: variables. Raises WebuiNotInstalled, WebuiFailed.
    """
    command = [str(installation() / "venv" / "bin" / "open-webui"), "serve", "--host", "127.0.0.1"]
    port, log = free_port(), folder / "open-webui.log"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DATA_DIR": str(folder / "data"),
        "WEBUI_SECRET_KEY": secrets.token_hex(32),
        "OPENAI_API_BASE_URLS": ";".join(connection.base_url for connection in connections),
        "OPENAI_API_KEYS": ";".join(connection.key for connection in connections),
        "OPENAI_API_CONFIGS": json.dumps(
            {str(index): {"headers": dict(connection.headers)} for index, connection in enumerate(connections)}
        ),
    }
    with running([*command, "--port", str(port)], {**ENVIRONMENT, **variables, **more}, port, log) as started:
        yield started


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[Webui]:
    """What the command starts, from when it is ready on; at the end nothing of it is left. Raises WebuiFailed."""
    start = time.monotonic()
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_for_health(process, port, log, start, "Open WebUI", WebuiFailed)
        yield Webui(port, log, time.monotonic() - start, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # a chat of it still runs
            process.kill()
            process.wait()


def installation() -> Path:
    """The folder that install.py filled: POOLGATE_WEBUI_HOME, or .webui in the repository."""
    home = Path(os.environ.get("POOLGATE_WEBUI_HOME") or REPOSITORY / ".webui").resolve()
    if not (home / "venv" / "bin" / "open-webui").exists():
        raise WebuiNotInstalled(
            f"Open WebUI is not in {home}. `make test-webui` installs it and runs these tests; to install it alone: "
            "python -m tests.e2e.webui.install (0.6 GB, in .webui or where POOLGATE_WEBUI_HOME says)"
        )
    return home
