"""Whatever a client makes of our documents, the answers are the ones that stand there.

schemathesis reads a document, makes requests of it (good ones, broken ones, other methods, without a key), and holds
each answer to it: status, content type, headers, the shape of the error. It runs in an environment of its own.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from scripts.write_openapi import MODEL, PAGE, document, page
from tests.conftest import FUZZERS
from tests.fakes import ScriptedPod
from tests.integration.test_simulator import simulator
from tests.running import running

EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "8")
"""For each operation; `make fuzz` asks for many more."""
OPS_TOKEN = "ops"
UNJUDGED = "positive_data_acceptance,negative_data_rejection"
"""Whether a body is a good one is for its pod to say."""


def test_the_document_is_what_the_code_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "run .venv/bin/python -m scripts.write_openapi"


async def check(told: dict[str, Any], port: int, token: str, folder: Path) -> None:
    """Hold a server to its document."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(told))
    command = (
        *(str(FUZZERS / "bin" / "schemathesis"), "run", str(file), "--url", f"http://127.0.0.1:{port}"),
        *("--header", f"Authorization: Bearer {token}", "--seed", "1", "--max-examples", EXAMPLES),
        *("--request-timeout", "60"),  # a machine may be busy
        *("--exclude-checks", UNJUDGED, "--phases", "examples,coverage,fuzzing", "--warnings", "off"),
        "--continue-on-failure",
    )
    ran = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await ran.communicate()
    assert ran.returncode == 0, said.decode("utf-8", "replace")[-8000:]
    assert b"passed" in said


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """The ops port's application on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@pytest.mark.program("fuzzers")
async def test_the_public_port_keeps_to_its_document(tmp_path: Path) -> None:
    told = document()
    for operations in told["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                # Of all strings hardly one is a model.
                content["schema"]["properties"]["model"]["enum"] = [MODEL, "nobody"]
    with simulator("--model", MODEL) as (_, pods):
        async with running([SimpleNamespace(url=pod["url"]) for pod in pods]) as gateway:
            await check(told, gateway.port, gateway.key, tmp_path)
            assert {line["status"] for line in gateway.lines()} >= {200, 400, 401, 404, 405}


@pytest.mark.program("fuzzers")
async def test_the_ops_port_keeps_to_its_document(tmp_path: Path) -> None:
    async with ScriptedPod() as pod, running([pod], server={"ops_token": OPS_TOKEN}) as gateway:
        told = gateway.gateway.ops.openapi()
        # A stream without an end.
        del told["paths"]["/status/events"]
        async with served(gateway.gateway.ops) as port:
            await check(told, port, OPS_TOKEN, tmp_path)
