"""`poolgate usage`, fed with the access lines of a gateway that served requests: what it says is what pods reported."""

import asyncio
import csv
import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.ledger import Row
from loadtest.simulator import PodSettings, SimulatedPod
from tests.fakes import STREAM_HEAD, Close, Hang, ScriptedPod, Step, answer, chunk
from tests.integration.test_pods_command import Ended
from tests.integration.test_process import ROOT, SECONDS, environment
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Running, running

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":31,"completion_tokens":7,"total_tokens":38,'
    b'"prompt_tokens_details":{"cached_tokens":16}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"
LINE = (
    b'{"ts":"2026-11-29T12:00:00.250Z","tenant":"acme","model":"m","usage_source":"reported",'
    b'"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}\n'
)
ROW = {
    "day": "2026-11-29",
    "tenant": "acme",
    "model": "m",
    "requests": 1,
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "cached_tokens": 1,
    "estimated_requests": 0,
    "estimated_prompt_tokens": 0,
    "estimated_completion_tokens": 0,
}


async def usage(*arguments: str, stdin: bytes = b"") -> Ended:
    """The command, to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "usage", *arguments),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def rows_of(gateway: Running) -> list[dict[str, Any]]:
    """What the command makes of a gateway's lines."""
    await gateway.settled()
    gateway.lines()
    ended = await usage("--json", stdin=gateway.out.getvalue())
    assert ended.code == 0, ended.err
    told: list[dict[str, Any]] = json.loads(ended.out)
    return told


def reported(came: Answer) -> Counter[str]:
    """What a pod reported in its answer, in our words; of a stream, in the last event that has a usage."""
    assert came.status == 200
    bodies = [came.body] if came.body.startswith(b"{") else [event.partition(b"data: ")[2] for event in came.events]
    for told in [json.loads(body) for body in bodies if body.startswith(b"{")][::-1]:
        used = told.get("usage") or told.get("response", {}).get("usage")
        if used:
            details = used.get("prompt_tokens_details") or used.get("input_tokens_details") or {}
            # Anthropic leaves what was cached out of the input.
            apart = used.get("cache_read_input_tokens") or 0
            return Counter(
                prompt_tokens=used.get("prompt_tokens", used.get("input_tokens")) + apart,
                completion_tokens=used.get("completion_tokens", used.get("output_tokens")),
                cached_tokens=(details.get("cached_tokens") or 0) + apart,
                requests=1,
            )
    raise AssertionError("no usage")


async def test_the_sums_are_what_the_pods_reported_to_each_tenant() -> None:
    prompt = "The same beginning makes a prompt that is cached when it comes again. " * 8
    messages = [{"role": "user", "content": prompt}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": messages}),
        ("chat/completions", {"messages": messages, "n": 2}),
        ("chat/completions", {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}),
        ("completions", {"prompt": [prompt, "Another."]}),
        ("completions", {"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}),
        ("responses", {"input": prompt}),
        ("responses", {"input": prompt, "stream": True}),
        ("messages", {"messages": messages}),
        ("messages", {"messages": messages, "stream": True}),
    ]
    settings = PodSettings(model="m", prompt_tokens_details=True)
    wanted: dict[str, Counter[str]] = {"tests": Counter(), "others": Counter()}
    async with SimulatedPod(settings) as pod, running([pod]) as gateway:
        for tenant, key, rounds in (("tests", gateway.key, 2), ("others", gateway.other_key, 1)):
            for number, (path, body) in enumerate(bodies * rounds):
                limit = "max_output_tokens" if path == "responses" else "max_tokens"
                body = {"model": "m", limit: 3 + number} | body
                wanted[tenant] += reported(
                    await ask(gateway.port, request(body, key=key, path=f"/v1/{path}")),
                )
        told = await rows_of(gateway)
    sums = {row["tenant"]: Counter({name: row[name] for name in wanted["tests"]}) for row in told}
    assert sums == wanted
    assert wanted["tests"]["requests"] == 2 * len(bodies)
    assert wanted["tests"]["cached_tokens"] > 0
    assert all(row["model"] == "m" and not row["estimated_requests"] for row in told)


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_that_the_caller_does_not_see_is_summed_as_well(stream: bool) -> None:
    whole = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":' + USAGE.partition(b'"usage":')[2].strip()
    script = [STREAM_HEAD, *map(chunk, (ROLE, TOKEN, FINAL, USAGE, DONE)), LAST] if stream else [answer(whole)]
    async with ScriptedPod([script]) as pod, running([pod], tenant={"team": "acme"}) as gateway:
        came = await ask(gateway.port, request(chat(stream=stream), key=gateway.key))
        assert came.clean
        (row,) = await rows_of(gateway)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"]) == (31, 7, 16)
    assert (row["requests"], row["estimated_requests"]) == (1, 0)


@pytest.mark.parametrize("ending", [Close, Hang], ids=["cut by the pod", "left by its caller"])
async def test_a_stream_that_ends_before_its_usage_is_summed_as_estimated(ending: type[Close] | type[Hang]) -> None:
    script: list[Step] = [STREAM_HEAD, *map(chunk, (ROLE, TOKEN, TOKEN)), ending]
    async with ScriptedPod([script]) as pod, running([pod]) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True), key=gateway.key))
        await client.reader.readuntil(b'"a"')
        await client.reader.readuntil(b'"a"')
        if ending is Close:
            await client.reader.readuntil(DONE)
        client.leave()
        (row,) = await rows_of(gateway)
    assert row["requests"] == row["estimated_requests"] == 1
    assert row["completion_tokens"] == row["estimated_completion_tokens"] == 2
    assert row["prompt_tokens"] == row["estimated_prompt_tokens"] > 0


async def test_an_alias_is_summed_under_the_name_that_was_asked_for() -> None:
    models = {"fast": {"to": [{"model": "m"}]}}
    async with SimulatedPod(PodSettings(model="m")) as pod, running([pod], models=models) as gateway:
        await ask(gateway.port, request(chat(max_tokens=1) | {"model": "fast"}, key=gateway.key))
        (row,) = await rows_of(gateway)
    assert row["model"] == "fast"


async def test_what_no_pod_answered_is_in_no_row() -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, running([pod]) as gateway:
        await ask(gateway.port, request(chat() | {"model": '=made"up,by a caller'}, key=gateway.key))
        await ask(gateway.port, request(chat(), key="sk-wrong"))
        await ask(gateway.port, request(b"{", key=gateway.key))
        await ask(gateway.port, request(b"", key=gateway.key, path="/v1/models", method="GET"))
        await ask(gateway.port, request({"model": "m", "prompt": "a"}, key=gateway.key, path="/tokenize"))
        await gateway.settled()
        gateway.lines()
        ended = await usage("--csv", stdin=gateway.out.getvalue())
    assert ended.out.splitlines() == [",".join(Row._fields)]
    assert ended.err == "poolgate: 5 requests without tokens, such as refused ones: left out\n"


# The command.


async def test_without_a_file_lines_come_from_stdin() -> None:
    for arguments in ((), ("-",), ("-", "-")):
        ended = await usage(*arguments, "--json", stdin=LINE)
        assert (ended.code, ended.err) == (0, "")
        assert json.loads(ended.out) == [ROW]


async def test_several_files_are_one_sum(tmp_path: Path) -> None:
    (tmp_path / "now.log").write_bytes(LINE + b"INFO poolgate: words\n" + LINE[:40])
    (tmp_path / "before.log.gz").write_bytes(gzip.compress(LINE * 2))
    ended = await usage(str(tmp_path / "now.log"), "-", str(tmp_path / "before.log.gz"), "--csv", stdin=LINE)
    assert ended.code == 0
    (row,) = csv.DictReader(io.StringIO(ended.out))
    assert (row["requests"], row["prompt_tokens"]) == ("4", "12")
    assert ended.err == "poolgate: 2 lines are no access lines: left out\n"


async def test_gzip_comes_through_a_pipe_as_well() -> None:
    assert json.loads((await usage("--json", stdin=gzip.compress(LINE))).out) == [ROW]


async def test_csv_is_utf_8_in_any_locale() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "usage", "--csv"],
        cwd=ROOT,
        env=environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
        input=LINE.replace(b"acme", "模".encode()),
        capture_output=True,
        check=True,
    )
    assert done.stdout.endswith("\r\n2026-11-29,模,m,1,3,2,1,0,0,0\r\n".encode())


async def test_the_table_is_what_is_printed_else() -> None:
    ended = await usage(stdin=LINE)
    head, _, row, total = (" ".join(printed.split()) for printed in ended.out.splitlines() if printed.strip())
    assert head == "day tenant model requests prompt cached completion estimated"
    assert row == "2026-11-29 acme m 1 3 1 2 0"
    assert total == "total 1 3 1 2 0"


async def test_what_cannot_be_done_is_said_and_nothing_is_printed(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(LINE)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(LINE)[:-4])
    for arguments, words in (
        (("good", "nowhere"), "cannot read nowhere: No such file or directory"),
        (("good", "cut.gz"), "cannot read cut.gz: Compressed file ended before the end-of-stream marker was reached"),
        (("--csv", "--json"), "--csv or --json: choose one"),
    ):
        named = [str(tmp_path / name) if not name.startswith("-") else name for name in arguments]
        ended = await usage(*named)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"poolgate: {words}\n".replace("read ", f"read {tmp_path}/")


async def test_who_gives_no_lines_at_a_terminal_is_told_so() -> None:
    far, near = pty.openpty()
    with closing(os.fdopen(far, "rb", 0)), closing(os.fdopen(near, "rb", 0)) as terminal:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "usage"],
            cwd=ROOT,
            env=environment(),
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "poolgate: give files of access lines, or send lines to stdin\n"


LARGE = (
    b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"' + b"x" * (3 << 20) + b'"}}],'
    b'"usage":{"prompt_tokens":1000,"completion_tokens":5000}}'
)


@pytest.mark.parametrize("ending", [Close, Hang], ids=["cut by the pod", "left by its caller"])
async def test_all_but_the_last_byte_of_a_large_answer_is_not_free(ending: type[Close] | type[Hang]) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(LARGE)
    script: list[Step] = [head, LARGE[:-1], ending]
    async with ScriptedPod([script]) as pod, running([pod]) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(), key=gateway.key))
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(len(LARGE) - 1)
        client.leave()
        line = await gateway.last_line()
    assert (line["status"], line["usage_source"]) == (200, "estimated")
    assert line["prompt_tokens"] > 0
    # By the bytes that came of it: a few may still be unread when its caller leaves.
    assert line["completion_tokens"] == pytest.approx((len(LARGE) - 1) // 4, rel=0.1)


# Its page.

PAGE = (ROOT / "docs" / "usage.md").read_text("utf-8")
(SHOWN_LINES,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
EXAMPLES = re.findall(
    r"^```sh\npoolgate usage (access\.log[^\n]*)\n```\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
)


def test_the_page_has_examples() -> None:
    assert [arguments for arguments, _ in EXAMPLES] == ["access.log", "access.log --csv"]


@pytest.mark.parametrize(("arguments", "printed"), EXAMPLES)
async def test_an_example_of_the_page_prints_what_stands_there(arguments: str, printed: str, tmp_path: Path) -> None:
    (tmp_path / "access.log").write_text(SHOWN_LINES, "utf-8")
    ended = await usage(*arguments.replace("access.log", str(tmp_path / "access.log")).split())
    assert ended.code == 0
    assert "\n".join(line.rstrip() for line in ended.out.splitlines()).strip("\n") == printed.rstrip("\n")
    assert f"```text\n{ended.err}```" in PAGE


def test_the_page_tells_every_field() -> None:
    table = PAGE.partition("\n## What a row means\n")[2].partition("\n\n**")[0]
    told = [name for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert told == list(Row._fields)
