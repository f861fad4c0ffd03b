"""Open WebUI before the gateway, as a person sees it in a browser, with simulated pods behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.vllm.server import REPOSITORY
from tests.e2e.webui.front import gateway_before
from tests.e2e.webui.server import Connection, Person, WebuiFailed, open_webui
from tests.e2e.webui.sitting import Sitting, sitting
from tests.e2e.webui.stage import ANSWER, FOLLOW_UP, TITLE, Stage

pytestmark = [pytest.mark.webui, pytest.mark.program("chromium"), pytest.mark.program("playwright")]

STOP_SECONDS = 1.5
"""From the click to a pod that is free: two servers and a browser on a machine that may be busy."""
SECRET = "open webui's and the gateway's"


@pytest.fixture
def ana(stage: Stage) -> Iterator[Sitting]:
    with sitting(stage.webui, stage.ana) as person:
        yield person


@pytest.fixture
def ben(stage: Stage) -> Iterator[Sitting]:
    with sitting(stage.webui, stage.ben) as person:
        yield person


def test_the_models_to_choose_from_are_those_of_the_gateway_and_its_keys(ana: Sitting) -> None:
    assert sorted(ana.models()) == ["chat", "personal", "scarce", "tasks"]
    assert ana.elsewhere() == []


def test_an_answer_appears_word_by_word_and_its_tasks_come_with_their_name_and_user(stage: Stage, ana: Sitting) -> None:
    chats, tasks = len(stage.front.lines(model="chat")), len(stage.front.lines(model="tasks"))
    ana.ask("chat", "Tell me about the sea.")
    answer = ana.answer()
    assert answer.text == ANSWER
    assert len(answer.texts) > 10
    assert all(ANSWER.startswith(text) for text in answer.texts)
    line = stage.front.next_line(chats, model="chat")
    assert (line["status"], line["outcome"], line["stream"], line["finish"]) == (200, "completed", True, "stop")

    ana.titled(TITLE)
    lines = [stage.front.next_line(tasks + index, model="tasks") for index in range(3)]
    assert {(line["status"], line["stream"]) for line in lines} == {(200, False)}
    heads = stage.tap.heads(b"POST /v1/chat/completions ")
    assert {head["x-openwebui-task"] for head in heads} == {
        "title_generation",
        "tags_generation",
        "follow_up_generation",
    }
    assert all(head["x-openwebui-user-id"] and head["x-openwebui-chat-id"] for head in heads)
    ana.proposed(FOLLOW_UP)
    if picture := os.environ.get("POOLGATE_WEBUI_PICTURE"):
        ana.screenshot(REPOSITORY / picture)
    assert ana.elsewhere() == []


def test_the_stop_button_frees_the_pod(stage: Stage, ana: Sitting) -> None:
    before, aborts = len(stage.front.lines(model="chat")), stage.front.pods.aborts("chat")
    ana.ask("chat", "Tell me about the sea, slowly.")
    ana.words(5)
    assert stage.front.pods.running("chat") == 1
    ana.stop()
    start = time.monotonic()
    while stage.front.pods.running("chat"):
        assert time.monotonic() < start + STOP_SECONDS, "the pod still runs what nobody waits for"
        time.sleep(0.01)
    assert stage.front.pods.aborts("chat") == aborts + 1
    line = stage.front.next_line(before, model="chat")
    assert (line["status"], line["outcome"]) == (200, "client_left")
    left = ana.stopped()
    assert len(left.split()) >= 5
    assert ANSWER.startswith(left)


def test_a_keys_limit_is_told_in_words(stage: Stage, ana: Sitting, ben: Sitting) -> None:
    ana.ask("scarce", "Tell me about the sea.")
    assert ana.answer().text == ANSWER
    ben.ask("scarce", "Tell me about the sea, please.")
    told = "Rate limit reached: requests per minute of this key: limit 1, used 1, asked 1. Wait "
    assert ben.answer().text.startswith(told)
    assert stage.front.next_line(0, model="scarce", code="rate_limit_exceeded")["status"] == 429


def test_each_person_has_a_limit_of_their_own(ana: Sitting, ben: Sitting) -> None:
    ana.ask("personal", "Tell me about the sea.")
    assert ana.answer().text == ANSWER
    ana.ask("personal", "Tell me more about the sea.")
    assert ana.answer().text.startswith("Rate limit reached: requests per day of this user, ")
    ben.ask("personal", "Tell me about the sea.")
    assert ben.answer().text == ANSWER


def test_what_breaks_in_the_middle_of_an_answer_is_told_in_words_below_it(stage: Stage, ana: Sitting) -> None:
    before = len(stage.front.lines(model="chat"))
    with stage.front.pods.broken("chat", {"kind": "cut", "after": 8}):
        ana.ask("chat", "Tell me about the sea, and break off.")
        answer = ana.answer()
    come, _, told = answer.text.partition("\n")
    assert ANSWER.startswith(come)
    assert told.strip() == "the pod closed inside its answer"
    assert stage.front.next_line(before, model="chat")["outcome"] == "truncated"


def test_that_no_pod_has_room_is_told_in_words(stage: Stage, ana: Sitting) -> None:
    with stage.front.pods.broken("chat", {"kind": "status", "status": 503}):
        ana.ask("chat", "Tell me about the sea, if you can.")
        assert ana.answer().text == "the pods of this model are busy, try again shortly"


def test_a_signed_user_has_a_limit_too(stage: Stage, tmp_path: Path) -> None:
    """The same without a browser: only Open WebUI can say who asks."""
    settings = {
        "auth": {"forwarded_user_secret": SECRET},
        "limits": {"rules": [{"per": "user", "requests_per_day": 1}]},
    }
    keys = {"people": {"forwards_user": True}}
    signing = {"ENABLE_FORWARD_USER_INFO_HEADERS": "true", "FORWARD_USER_INFO_HEADER_JWT_SECRET": SECRET}
    with (
        gateway_before(stage.front.pods, tmp_path, keys, settings) as front,
        open_webui(tmp_path, [Connection(f"{front.url}/v1", front.keys["people"])], **signing) as webui,
    ):
        ana, ben = webui.person("ana"), webui.person("ben")

        def ask(person: Person) -> None:
            message = {"role": "user", "content": "Tell me about the sea."}
            webui.post("/api/chat/completions", {"model": "chat", "messages": [message]}, person.token)

        ask(ana)
        with pytest.raises(WebuiFailed, match="requests per day of this user: limit 1, used 1"):
            ask(ana)
        ask(ben)
