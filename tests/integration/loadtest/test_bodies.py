"""What the schedules hold is what pods understand: each kind of request of each scenario is sent to a simulated one.

To pods of its task, started as a process for all scenarios together, that serve every model that is asked for.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import pytest

from loadtest.load.drawing import draw
from loadtest.load.reading import load, names
from loadtest.load.schedule import Planned

TASK_OF = {"/v1/embeddings": "embed"}
SIMULATOR = (
    sys.executable,
    "-m",
    "loadtest.simulator",
    "--port-base",
    "0",
    "--step-ms",
    "0",
    "--max-model-len",
    "200000",
)


def one_of_each_kind() -> Iterator[tuple[str, Planned]]:
    for name in names():
        seen: set[str] = set()
        for planned in draw(load(name)).requests:
            if planned.kind not in seen:
                seen.add(planned.kind)
                yield name, planned


@contextmanager
def pod(task: str, models: set[str]) -> Iterator[HTTPConnection]:
    """A connection to a simulated pod that serves all these models."""
    flags = ["--task", task, *(word for model in sorted(models) for word in ("--model", model))]
    with subprocess.Popen([*SIMULATOR, *flags], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            [ready] = json.loads(process.stdout.readline())["ready"]
            with closing(HTTPConnection(ready["url"].removeprefix("http://"), timeout=30)) as connection:
                yield connection
        finally:
            process.kill()


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_a_pod_answers_each_kind_of_request_whole(task: str) -> None:
    asked = [each for each in one_of_each_kind() if TASK_OF.get(each[1].path, "generate") == task]
    models = {json.loads(planned.body)["model"] for _, planned in asked}
    with pod(task, models) as connection:
        for name, planned in asked:
            connection.request("POST", planned.path, planned.body, {"content-type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            where = f"{name}: {planned.kind}"
            assert answer.status == 200, f"{where}: {body[:300]!r}"
            streamed = (answer.headers["content-type"] or "").startswith("text/event-stream")
            assert streamed == planned.stream, where
            assert counted(body, "prompt", "input") == pytest.approx(planned.prompt_tokens, rel=0.1, abs=10), where
            if planned.max_tokens:
                assert counted(body, "completion", "output") == planned.max_tokens, where


def counted(body: bytes, *names: str) -> int:
    """Tokens of an answer, by the pod's own count."""
    told = [re.findall(rb'"%b_tokens":(\d+)' % name.encode(), body) for name in names]
    return max(int(count) for found in told for count in found)
