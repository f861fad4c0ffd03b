"""The parsers of others, each as a server in a process of its own."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.stand.ports import lasting_ports
from tests.smuggling.recorder import ANSWER, MODELS

HERE = Path(__file__).parent
FUZZERS = HERE.parents[1] / ".fuzzers" / "bin" / "python"
IN_FUZZERS = ("gunicorn", "waitress")
PARSERS = ("h11", "httptools", "aiohttp", "gunicorn", "waitress", "node", "nginx")
"""httptools is what the gateway is built on, without what it adds; nginx passes what it takes on to aiohttp."""
PROGRAMS = {"gunicorn": "fuzzers", "waitress": "fuzzers", "node": "node", "nginx": "nginx"}
"""What a machine must have for it, as `tests.conftest` names it."""
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_set_header x-real-port $remote_port;
    }}
  }}
}}
"""


@dataclass
class Recorded:
    """A server of another make."""

    port: int
    file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[tuple[int, str, bytes]]:
        """(the client's port, method, body) of each, in order."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        told = (json.loads(line) for line in lines)
        return [(each["port"], each["method"], each["body"].encode("latin-1")) for each in told]


@asynccontextmanager
async def recorder(kind: str, folder: Path) -> AsyncIterator[Recorded]:
    """A server that notes what its parser made of what came, ready to be spoken to."""
    with lasting_ports(1) as (port,):
        async with _recorder(kind, folder, port) as recorded:
            yield recorded


@asynccontextmanager
async def _recorder(kind: str, folder: Path, port: int) -> AsyncIterator[Recorded]:
    file = folder / f"{kind}.jsonl"
    if kind == "nginx":
        async with recorder("aiohttp", folder) as behind:
            conf = folder / "nginx.conf"
            conf.write_text(NGINX.format(folder=folder, port=port, behind=behind.port))
            async with process([shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(conf)], port):
                yield Recorded(port, behind.file)
        return
    if kind == "node":
        command = ["node", str(HERE / "recorder.mjs"), str(port), str(file), MODELS.decode(), ANSWER.decode()]
    else:
        python = str(FUZZERS) if kind in IN_FUZZERS else sys.executable
        command = [python, str(HERE / "recorder.py"), kind, str(port), str(file)]
    async with process(command, port):
        yield Recorded(port, file)


@asynccontextmanager
async def process(command: list[str], port: int) -> AsyncIterator[None]:
    """A process that listens, until it is not needed."""
    running = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                assert running.returncode is None, f"{command[0]} ended with {running.returncode}"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield
    finally:
        if running.returncode is None:
            running.terminate()
        try:
            async with asyncio.timeout(20):
                await running.wait()
        except TimeoutError:
            running.kill()
            await running.wait()
