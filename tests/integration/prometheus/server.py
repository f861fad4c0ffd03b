"""Debian's Prometheus as a process, with our own examples and rules, a stated factor quicker."""

import asyncio
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.valkey import free_port

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "prometheus"
RULES = DEPLOY / "rules" / "poolgate.yaml"
EXAMPLE = DEPLOY / "prometheus.yaml"
QUICKER = 30
"""By this factor all ranges, offsets and `for` are shorter: two minutes are four seconds, so four scrapes."""
SCRAPE = "1s"
SECONDS = 60.0
"""For whatever Prometheus has to do: generous, and never slept through."""
LOOK_SECONDS = 0.1

_DURATION = re.compile(r"(?<=\[)\d+[mhd](?=\])|(?<=offset )\d+[mhd]\b|(?<=for: )\d+[mhd]$", re.MULTILINE)
_UNITS = {"m": 60, "h": 3600, "d": 86400}


def quicker(rules: str) -> str:
    """Rules with their durations divided, and nothing else changed."""
    return _DURATION.sub(lambda found: f"{int(found[0][:-1]) * _UNITS[found[0][-1]] // QUICKER}s", rules)


class Prometheus:
    """One that runs."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        answer.raise_for_status()
        return answer.json()["data"]

    async def value(self, query: str) -> float | None:
        """Of a query with one result; None where there is none."""
        found = (await self.ask("query", query=query))["result"]
        return float(found[0]["value"][1]) if found else None

    async def firing(self) -> set[tuple[str, str]]:
        """(alert, severity) of what fires now."""
        alerts = (await self.ask("alerts"))["alerts"]
        return {
            (each["labels"]["alertname"], each["labels"]["severity"]) for each in alerts if each["state"] == "firing"
        }

    async def targets(self) -> list[tuple[str, str]]:
        """(job, health) of each target."""
        found = (await self.ask("targets", state="active"))["activeTargets"]
        return sorted((each["labels"]["job"], each["health"]) for each in found)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Ask again and again: Prometheus tells nobody when something comes true."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


@asynccontextmanager
async def scraping(folder: Path, targets: Mapping[str, Sequence[str]]) -> AsyncIterator[Prometheus]:
    """One that scrapes these targets, by the example's jobs, each second, and judges by the rules, quicker."""
    config = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    for job in config["scrape_configs"]:
        for static in job["static_configs"]:
            static["targets"] = list(targets[job["job_name"]])
    async with running_with(folder, config, quicker(RULES.read_text("utf-8"))) as prometheus:
        yield prometheus


@asynccontextmanager
async def running_with(folder: Path, config: dict[str, Any], rules: str) -> AsyncIterator[Prometheus]:
    """One with this configuration, but that it scrapes and judges each second; `rules` is its rules/poolgate.yaml."""
    config = {**config, "global": dict.fromkeys(config["global"], SCRAPE)}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (folder / "rules").mkdir()
    (folder / "rules" / "poolgate.yaml").write_text(rules, "utf-8")
    address = f"127.0.0.1:{free_port()}"
    log = folder / "prometheus.log"
    program = shutil.which("prometheus")
    assert program is not None
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=SECONDS, trust_env=False) as client:

            async def ready() -> bool:
                assert process.returncode is None, log.read_text()
                try:
                    return (await client.get("/-/ready")).status_code == 200
                except httpx2.TransportError:
                    return False

            await until(ready, SECONDS, "Prometheus is ready")
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
