"""openai-node: one process makes all the calls of a script in `node/`, and each of them has a result."""

import base64
import json
import re
import subprocess
import tempfile
import threading
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from tests.clients.front import Front
from tests.clients.questions import (
    ENDLESS,
    ENDLESS_TOKENS,
    QUESTION,
    TEXTS,
    TOO_LONG,
    WEATHER_QUESTION,
    WEATHER_SCHEMA,
)
from tests.clients.sound import tone

FOLDER = Path(__file__).parent / "node"
CALLS, FAILURES = "with_openai.mjs", "failures_with_openai.mjs"
RUN_SECONDS = 240


def checks_in(script: str) -> list[str]:
    """The names of its checks, without Node.js."""
    return re.findall(r'^check\("([^"]+)",', (FOLDER / script).read_text("utf-8"), re.MULTILINE)


def checks_of(script: str) -> pytest.MarkDecorator:
    """Parametrizes a test by the checks of a script."""
    checks = checks_in(script)
    return pytest.mark.parametrize("check", checks, ids=[check.replace(" ", "_") for check in checks])


@cache
def errors_by_check(script: str, front: Front) -> dict[str, str | None]:
    """Run a script once for a front."""
    given = {
        **asdict(front),
        "question": QUESTION,
        "weather_question": WEATHER_QUESTION,
        "weather_schema": WEATHER_SCHEMA,
        "texts": TEXTS,
        "too_long": TOO_LONG,
        "wav": base64.b64encode(tone()).decode(),
        "endless": ENDLESS,
        "endless_tokens": ENDLESS_TOKENS,
    }
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            ["node", script, json.dumps(given)], cwd=FOLDER, stdout=subprocess.PIPE, stderr=words, text=True
        )
        watch = threading.Timer(RUN_SECONDS, process.kill)
        watch.start()
        with process:
            assert process.stdout is not None
            lines = [json.loads(line) for line in process.stdout]
        watch.cancel()
        words.seek(0)
        end = f"the script ended before this check, with {process.returncode}: {words.read()}"
    errors = {line["check"]: line["error"] for line in lines}
    return {check: errors.get(check, end) for check in checks_in(script)}


def play_check(script: str, check: str, front: Front) -> None:
    """What became of one check."""
    error = errors_by_check(script, front)[check]
    if error is not None:
        pytest.fail(error, pytrace=False)
