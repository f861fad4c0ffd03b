"""curl, as the pages show it; and the routes that no SDK has a method for."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.clients.front import Front, needs
from tests.clients.questions import QUESTION, TEXTS
from tests.clients.sound import tone


class _Refused(Exception):
    """An answer that is no 200. Shaped as the SDKs' errors are."""

    def __init__(self, status_code: int, body: str) -> None:
        super().__init__(f"{status_code}: {body}")
        self.status_code = status_code
        self.body = body


def _curl(*arguments: str) -> str:
    """The body of the answer, if it is a 200."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "120", "--write-out", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    if status != "200":
        raise _Refused(int(status), body)
    return body


def _post(front: Front, path: str, body: Any, *flags: str) -> Any:
    sent = json.dumps(body)
    bearer = f"Authorization: Bearer {front.key}"
    return _curl(*flags, front.url + path, "-H", bearer, "-H", "Content-Type: application/json", "-d", sent)


def _ask(front: Front, **more: Any) -> dict[str, Any]:
    return {"model": front.chat, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8, **more}


def chat(front: Front) -> None:
    answer = json.loads(_post(front, "/v1/chat/completions", _ask(front)))
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8


def chat_streamed(front: Front) -> None:
    events = _post(front, "/v1/chat/completions", _ask(front, stream=True), "-N").split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    assert len(events) > 2


def responses_streamed(front: Front) -> None:
    asked = {"model": front.chat, "input": QUESTION, "max_output_tokens": 24, "stream": True}
    events = _post(front, "/v1/responses", asked, "-N").split("\n\n")
    assert events.pop() == ""
    assert events[0].startswith("event: response.created\n")
    assert events[-1].startswith(("event: response.completed\n", "event: response.incomplete\n"))


def messages_streamed(front: Front) -> None:
    key = f"x-api-key: {front.key}"
    sent = json.dumps(_ask(front, stream=True))
    text = _curl("-N", f"{front.base_url}/messages", "-H", key, "-H", "content-type: application/json", "-d", sent)
    events = text.split("\n\n")
    assert events.pop() == ""
    assert events[0].startswith("event: message_start\n")
    assert events[-1].startswith("event: message_stop\n")


def models(front: Front) -> None:
    bearer = ("-H", f"Authorization: Bearer {front.key}")
    listed = json.loads(_curl(f"{front.base_url}/models", *bearer))
    assert front.chat in [model["id"] for model in listed["data"]]
    # Slashes as they are, where the SDKs send %2F; and a base URL that ends in one.
    assert json.loads(_curl(f"{front.base_url}/models/{front.chat}", *bearer))["id"] == front.chat
    assert json.loads(_curl(f"{front.base_url}//models", *bearer)) == listed


@needs("embed")
def embeddings(front: Front) -> None:
    made = json.loads(_post(front, "/v1/embeddings", {"model": front.embed, "input": TEXTS}))
    assert [item["index"] for item in made["data"]] == [0, 1]
    assert all(isinstance(number, float) for number in made["data"][0]["embedding"])


@needs("score")
def rerank(front: Front) -> None:
    asked = {"model": front.score, "query": "What colour has the sky?", "documents": TEXTS, "top_n": 2}
    results = json.loads(_post(front, "/v1/rerank", asked))["results"]
    assert sorted(result["index"] for result in results) == [0, 1]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)


@needs("score")
def score(front: Front) -> None:
    asked = {"model": front.score, "text_1": "What colour has the sky?", "text_2": TEXTS}
    made = json.loads(_post(front, "/v1/score", asked))
    assert [item["index"] for item in made["data"]] == [0, 1]
    assert all(isinstance(item["score"], float) for item in made["data"])


def tokens_there_and_back(front: Front) -> None:
    there = json.loads(
        _post(front, "/tokenize", {"model": front.chat, "prompt": QUESTION, "add_special_tokens": False})
    )
    assert there["count"] == len(there["tokens"]) > 0
    back = json.loads(_post(front, "/detokenize", {"model": front.chat, "tokens": there["tokens"]}))
    assert isinstance(back["prompt"], str)


@needs("speech")
def a_transcription(front: Front) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hello.wav"
        file.write_bytes(tone())
        heard = _curl(
            f"{front.base_url}/audio/transcriptions",
            *("-H", f"Authorization: Bearer {front.key}"),
            *("-F", f"model={front.speech}", "-F", f"file=@{file}"),
        )
        # The model behind the file, as some clients send it, and the file as a stream of unknown length.
        streamed = _curl(
            "-N",
            f"{front.base_url}/audio/transcriptions",
            *("-H", f"Authorization: Bearer {front.key}", "-H", "Transfer-Encoding: chunked"),
            *("-F", f"file=@{file}", "-F", "stream=true", "-F", f"model={front.speech}"),
        )
    assert json.loads(heard)["text"]
    assert streamed.endswith("data: [DONE]\n\n")


def refusals(front: Front) -> None:
    for arguments, status, code in (
        (("-X", "DELETE", f"{front.base_url}/chat/completions"), 405, "method_not_allowed"),
        ((f"{front.url}/invocations", "-d", "{}"), 404, "not_found"),
        ((f"{front.url}/metrics",), 404, "not_found"),
        (
            (f"{front.base_url}/chat/completions", "-H", "Content-Type: application/json", "-d", "{"),
            400,
            "invalid_json",
        ),
    ):
        with pytest.raises(_Refused) as refused:
            _curl(*arguments, "-H", f"Authorization: Bearer {front.key}")
        assert refused.value.status_code == status
        assert json.loads(refused.value.body)["error"]["code"] == code
    with pytest.raises(_Refused) as stranger:
        _curl(f"{front.base_url}/models")
    assert stranger.value.status_code == 401
