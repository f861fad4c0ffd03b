"""Referees are told the very load that ours plays."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.referees.__main__ import LOADS, in_words, load_named
from loadtest.referees.aiperf import AIPerf
from loadtest.referees.guidellm import GuideLLM
from loadtest.referees.player import Load, Referee, Target

TARGET = Target("http://127.0.0.1:8000", "sk-key", "sim-chat")


def option(command: Sequence[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.fixture(params=LOADS)
def load(request: pytest.FixtureRequest) -> Load:
    return load_named(request.param)


def test_aiperf_sends_our_bodies(load: Load, tmp_path: Path) -> None:
    command = AIPerf().command(load, TARGET, tmp_path)
    sent = Path(option(command, "--input-file")).read_bytes().splitlines()
    assert sent == [planned.body for planned in load.schedule.requests]
    assert option(command, "--request-count") == str(len(sent))
    assert option(command, "--dataset-sampling-strategy") == "sequential"
    assert {"--streaming", "--use-server-token-count"} <= {*command}


def test_guidellm_says_what_ours_says_for_answers_as_long(load: Load, tmp_path: Path) -> None:
    command = GuideLLM().command(load, TARGET, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert option(command, "--data") == f"kind=json_file,path={tmp_path / 'prompts.jsonl'}"
    for row, planned in zip(rows, load.schedule.requests, strict=True):
        body = json.loads(planned.body)
        assert [row["prompt"]] == [message["content"] for message in body["messages"]]
        assert row["output_tokens_count"] == body["max_tokens"]
    assert option(command, "--constraint") == f"kind=max_requests,count={len(rows)}"


def test_an_open_loop_is_told_by_its_rate_and_a_closed_one_by_its_callers(tmp_path: Path) -> None:
    def words(referee: Referee, name: str) -> Sequence[str]:
        folder = tmp_path / f"{referee.name}-{name}"
        folder.mkdir()
        return referee.command(load_named(name), TARGET, folder)

    open_loop, closed = (words(AIPerf(), name) for name in ("constant", "closed"))
    assert (option(open_loop, "--request-rate"), option(open_loop, "--arrival-pattern")) == ("6", "constant")
    assert "--concurrency" not in open_loop
    assert option(closed, "--concurrency") == "8"
    assert "--request-rate" not in closed
    open_loop, closed = (words(GuideLLM(), name) for name in ("constant", "closed"))
    assert option(open_loop, "--profile") == "kind=constant,rate=6"
    assert option(closed, "--profile") == "kind=concurrent,streams=8"


def test_a_load_has_no_objective_and_one_caller(load: Load) -> None:
    """What a referee could not be told is not in it."""
    [entry] = load.scenario.mix
    assert len(entry.caller_names) == 1
    assert entry.prompt.turns == 1
    assert entry.leave is None
    assert not load.scenario.faults
    assert len(load.schedule.requests) == 150
    assert in_words(load).startswith("150 requests, ")
