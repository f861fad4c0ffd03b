"""What is started from the image, as it is started there: entry point, health check, user, no place to write to."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from gateway import __version__
from tests.integration.image.conftest import Image
from tests.integration.image.dockerfile import DOCKERFILE, parse
from tests.integration.image.sandbox import KINDS, USER, Kind, Sandbox
from tests.integration.test_process import DONE, SECONDS, Process, Served, run
from tests.raw import chat

pytestmark = pytest.mark.program("ldd")

LAST = parse(DOCKERFILE.read_text("utf-8"))[-1]
ENTRY = LAST.last("ENTRYPOINT").words
USUAL = LAST.last("CMD").words
SELF_TEST = [step.words for step in LAST.all("RUN")]
SIMULATOR = ("python", "-m", "loadtest.simulator", "--model", "m", "--port-base", "0", "--step-ms", "20")
# glibc asks for it by name when a thread is ended from outside, and aborts the process without it.
FOR_THREADS = 'import ctypes; ctypes.CDLL("libgcc_s.so.1")'
AUTHORITIES = """
import ssl
assert ssl.create_default_context().cert_store_stats()["x509_ca"] > 50
"""
WRITING = """
import os, pathlib
assert (os.getuid(), os.getgid()) == ({user}, {user}), os.getuid()
for place in ("/", "/tmp", "/etc/poolgate", "/home/nonroot", "/usr/local/bin"):
    try:
        pathlib.Path(place, "written").write_text("x")
    except OSError as error:
        pass
    else:
        raise SystemExit(f"{{place}} can be written to")
"""
UNCOMPILED = """
import os, sys
import gateway.app, gateway.cli.serve, gateway.cli.process, gateway.discovery.kubernetes, gateway.limits.redis_store
import gateway.limits.jwt, gateway.telemetry.tracing, gateway.api.ops, loadtest.simulator.cli
files = [module.__cached__ for module in list(sys.modules.values()) if getattr(module, "__cached__", None)]
assert len(files) > 500
raise SystemExit("\\n".join(file for file in files if not os.path.exists(file)) or 0)
"""
LATER = {"a library for threads": FOR_THREADS, "authorities": AUTHORITIES, "byte code": UNCOMPILED}


def health_check(port: int) -> list[str]:
    """The image's own words; but its port is the usual one, and a test's is any that is free."""
    step = LAST.last("HEALTHCHECK")
    words: list[str] = json.loads(step.rest.removeprefix("CMD "))
    return [word.replace("9090", str(port)) for word in words]


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """The key of a keys file in the folder that is mounted."""
    folder = tmp_path / "configuration"
    folder.mkdir()
    made = run("keys", "create", "--team", "acme", "--file", str(folder / "keys.yaml"), "--json")
    key: str = json.loads(made.stdout)["key"]
    # As a Secret is mounted, and as another user must be able to read it.
    (folder / "keys.yaml").chmod(0o444)
    return key


@asynccontextmanager
async def started(image: Image, *words: str, configuration: Path | None = None) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *image.sandbox.command(words, configuration),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    running = Process(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.ended()


@asynccontextmanager
async def simulated(image: Image) -> AsyncIterator[str]:
    """The URL of a simulated pod, out of the same image."""
    async with started(image, *SIMULATOR) as simulator:
        async with asyncio.timeout(SECONDS):
            while not simulator.out:
                await asyncio.sleep(0.01)
        url: str = json.loads(simulator.out[0])["ready"][0]["url"]
        yield url
        simulator.signal(signal.SIGTERM)
        assert await simulator.ended() == 0, "".join(simulator.err)


@asynccontextmanager
async def served(image: Image, folder: Path, key: str, pod: str) -> AsyncIterator[Served]:
    """The image as it is started without arguments, its configuration where it looks for one."""
    configuration = folder / "configuration"
    settings = {
        "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0},
        "discovery": {"mode": "static", "pods": [{"url": pod, "pool": "chat"}]},
        "auth": {"keys_file": str(Path(USUAL[-1]).with_name("keys.yaml"))},
    }
    if image.sandbox.kind == "in place":
        settings["auth"] = {"keys_file": str(configuration / "keys.yaml")}
    (configuration / Path(USUAL[-1]).name).write_text(yaml.safe_dump(settings))
    configuration.chmod(0o755)
    async with started(image, *ENTRY, *USUAL, configuration=configuration) as process:
        yield await Served.up(process, key)


async def test_it_serves_tells_its_health_and_drains(image: Image, tmp_path: Path, keys: str) -> None:
    async with simulated(image) as pod, served(image, tmp_path, keys, pod) as gateway:
        await gateway.until_ready()
        assert (await gateway.ops("/livez")).status == 200
        healthy = await asyncio.to_thread(image.sandbox.run, *health_check(gateway.ops_port))
        assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "", "")

        client = await gateway.client(chat(stream=True, max_tokens=100, ignore_eos=True))
        begun = await client.reader.readuntil(b"data: ")
        gateway.signal(signal.SIGTERM)
        await gateway.until_ready(503)
        drains = await asyncio.to_thread(image.sandbox.run, *health_check(gateway.ops_port))
        assert drains.returncode == 1
        came = await client.answer(SECONDS, begun)
        assert (came.status, came.clean, came.events[-1]) == (200, True, DONE)
        client.leave()
        await gateway.ended_well()
        (line,) = gateway.lines
        assert (line["tenant"], line["outcome"], line["completion_tokens"]) == ("acme", "completed", 100)


def test_the_health_check_fails_where_nothing_listens(image: Image) -> None:
    assert image.sandbox.run(*health_check(1)).returncode == 1


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_in_every_way_that_this_machine_allows(image: Image, kind: Kind) -> None:
    sandbox = Sandbox(image.tree, image.last, kind)
    if kind == image.sandbox.kind:
        assert sandbox.works
    if sandbox.works:
        assert sandbox.run(*ENTRY, "version").stdout == f"{__version__}\n"


@pytest.mark.parametrize("words", SELF_TEST)
def test_the_image_tests_itself_when_it_is_built(image: Image, words: list[str]) -> None:
    done = image.sandbox.run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for extra in ("redis", "hiredis", "kubernetes", "opentelemetry.sdk", "opentelemetry.exporter", "joserfc"):
        assert extra in words[-1]


def test_its_user_is_nobody_special_and_can_write_nowhere(image: Image) -> None:
    if image.sandbox.kind == "in place":
        return  # no user of its own: the run's last line says so
    program = WRITING.format(user=USER)
    if image.sandbox.kind == "chroot":
        program = program.replace('"/tmp", ', "")  # what makes it read-only is the mount
    done = image.sandbox.run("python", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_written_even_where_it_could_be(image: Image) -> None:
    def state() -> set[tuple[str, int, int, int]]:
        found = [(path, path.lstat()) for path in image.tree.rglob("*") if "etc/poolgate" not in path.as_posix()]
        return {(str(path), status.st_mtime_ns, status.st_size, status.st_ino) for path, status in found}

    before = state()
    for words in (*SELF_TEST, [*ENTRY, "version"], ["python", "-c", "import kubernetes.aio.client.models.v1_pod"]):
        assert image.sandbox.run(*words, writable=True).returncode == 0
    assert sorted(state() - before) == []


@pytest.mark.parametrize("what", LATER)
def test_what_would_only_be_missed_later_is_there(image: Image, what: str) -> None:
    if what == "authorities" and image.sandbox.kind == "in place":
        return  # OpenSSL looks into this machine's folders; the tree's are looked at in test_image_tree
    done = image.sandbox.run("python", "-c", LATER[what])
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_no_shell(image: Image) -> None:
    if image.sandbox.kind == "in place":
        return  # this machine's is there; the tree's programs are counted in test_image_tree
    for shell in ("sh", "/bin/sh", "/bin/bash", "busybox"):
        assert image.sandbox.run(shell, "-c", "exit 0").returncode in (126, 127)
