"""The simulator as a process: what it prints, what signals do to it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from tests.unit.loadtest.talking import chat, post


@contextmanager
def simulator(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, str]]]]:
    """A running simulator on free ports, and the pods it announced."""
    command = [sys.executable, "-m", "loadtest.simulator", "--port-base", "0", "--step-ms", "1", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["ready"]
        finally:
            process.kill()


SECONDS = 60.0
"""For whatever a process has to do: a machine may be busy."""


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"content-type": "application/json"})
    with urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


@contextmanager
def open_stream(url: str) -> Iterator[socket.socket]:
    """An endless stream whose first event has come."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as stream:
        stream.sendall(post({**chat(model="sim"), "stream": True, "ignore_eos": True}))
        while b"data: " not in stream.recv(65536):
            pass
        yield stream


def read_out(stream: socket.socket) -> None:
    """Read to the end, or raise TimeoutError after half a second of silence."""
    stream.settimeout(0.5)
    while stream.recv(65536):
        pass


def until_nobody_listens(url: str) -> None:
    give_up_at = time.monotonic() + SECONDS
    while time.monotonic() < give_up_at:
        try:
            fetch(url + "/health")
        except URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return
        except ConnectionResetError:
            # It came in the last moment.
            pass
    raise AssertionError("somebody listens still")


def test_pools_of_several_models_are_announced_and_serve() -> None:
    with simulator("--pool", "org/chat:2", "--pool", "other:1") as (_, pods):
        listed = [fetch(pod["url"] + "/v1/models")["data"][0]["id"] for pod in pods]

    assert [pod["name"] for pod in pods] == ["org-chat-0", "org-chat-1", "other-0"]
    assert listed == [pod["model"] for pod in pods] == ["org/chat", "org/chat", "other"]


def test_further_names_are_served_by_the_same_pods() -> None:
    with simulator("--pods", "2", "--model", "a", "--model", "b") as (_, pods):
        cards = fetch(pods[1]["url"] + "/v1/models")["data"]

    assert len(pods) == 2
    assert [card["id"] for card in cards] == ["a", "b"]


def test_the_key_may_be_in_the_environment_as_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-environment")
    with simulator() as (_, pods), pytest.raises(HTTPError, match="401") as refused:
        fetch(pods[0]["url"] + "/v1/models")
    refused.value.close()
    with simulator("--api-key=") as (_, pods):
        assert fetch(pods[0]["url"] + "/v1/models")["data"]


def test_sigterm_closes_the_port_and_leaves_streams_hanging_and_a_second_one_ends_it() -> None:
    with simulator() as (process, pods), open_stream(pods[0]["url"]) as stream:
        process.send_signal(signal.SIGTERM)
        until_nobody_listens(pods[0]["url"])
        # What it said before that is read first.
        with pytest.raises(TimeoutError):
            read_out(stream)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=SECONDS) == 0


def test_sigterm_ends_an_idle_simulator_at_once() -> None:
    with simulator() as (process, _):
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=SECONDS) == 0


def test_a_silent_shutdown_has_a_bound() -> None:
    with simulator("--silence-seconds", "0.2") as (process, pods), open_stream(pods[0]["url"]):
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=SECONDS) == 0


def test_ctrl_c_ends_it_at_once_open_streams_or_not() -> None:
    with simulator() as (process, pods), open_stream(pods[0]["url"]):
        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=SECONDS) == 0


def test_a_pod_that_dies_is_announced_and_the_process_goes_on_with_the_others() -> None:
    with simulator("--pods", "2", "--announce") as (process, pods):
        fetch(pods[0]["url"] + "/sim/pods/sim-1/fault", {"kind": "die"})
        assert process.stdout is not None

        assert json.loads(process.stdout.readline()) == {"pod": "sim-1", "stage": "down"}
        assert fetch(pods[0]["url"] + "/sim/state")["stage"] == "serving"


def test_a_fault_can_be_set_from_the_start() -> None:
    with (
        simulator("--fault", "status:status=503,path=/version") as (_, pods),
        pytest.raises(HTTPError, match="503") as refused,
    ):
        fetch(pods[0]["url"] + "/version")
    refused.value.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "explode"], "unknown fault kind"),
        (["--pool", "chat"], "MODEL:COUNT"),
        (["--pool", "chat:1", "--model", "m"], "leave out --model"),
        (["--pods", "0"], "at least 1"),
        (["--natural-tokens", "9"], "FROM-TO"),
        (["--max-model-len", "0"], "max_model_len_tokens must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(arguments: list[str], says: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.simulator", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert run.returncode == 2
    assert says in run.stderr


def test_a_taken_port_is_said_plainly() -> None:
    with simulator() as (_, pods):
        port = pods[0]["url"].rpartition(":")[2]
        run = subprocess.run(
            [sys.executable, "-m", "loadtest.simulator", "--port-base", port],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    assert run.returncode == 1
    assert "--port-base" in run.stderr
    assert "Traceback" not in run.stderr
