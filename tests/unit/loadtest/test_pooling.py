"""Embeddings, scores and rerankings where captures do not reach."""

from __future__ import annotations

import json
from base64 import b64decode
from math import isclose
from struct import unpack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import PodSettings, SimulatedPod, Task
from loadtest.simulator.pooling import embed
from tests.unit.loadtest.talking import Heard, ask, get, post, talk_to

EMBED = PodSettings(model="m", task=Task.EMBED, embedding_dimensions=8)
SCORE = PodSettings(model="m", task=Task.SCORE)
PATH = "/v1/embeddings"


async def answer(given: dict[str, object], path: str = PATH, settings: PodSettings = EMBED) -> Heard:
    async with SimulatedPod(settings) as pod:
        return await ask(pod, post(given, path))


async def vectors(given: object, settings: PodSettings = EMBED, **more: object) -> list[Any]:
    data: Any = (await answer({"input": given, **more}, settings=settings)).json["data"]
    return [item["embedding"] for item in data]


@given(text=st.binary(max_size=200), length=st.integers(1, 1024), seed=st.integers(0, 5))
def test_an_embedding_is_a_unit_vector_of_the_asked_length(text: bytes, length: int, seed: int) -> None:
    vector = embed(text, length=length, seed=seed)

    assert len(vector) == length
    assert isclose(sum(number * number for number in vector), 1.0, abs_tol=1e-9)
    assert vector == embed(text, length=length, seed=seed)


async def test_the_same_text_has_the_same_embedding_on_every_pod() -> None:
    other = PodSettings(model="another", task=Task.EMBED, embedding_dimensions=8)

    assert await vectors(["one", "two", "one"]) == await vectors(["one", "two", "one"], other)
    one, two, again = await vectors(["one", "two", "one"])
    assert one == again != two


async def test_base64_and_bytes_hold_the_floats_in_single_precision() -> None:
    (floats,) = await vectors("Hi")
    (text,) = await vectors("Hi", encoding_format="base64")
    raw = await answer({"input": "Hi", "encoding_format": "bytes_only"})

    assert unpack("8f", b64decode(text)) == pytest.approx(floats)
    assert raw.chunks == [b64decode(text)]
    assert ("content-type", "application/octet-stream") in raw.headers


async def test_where_each_vector_lies_in_the_bytes_is_told_in_a_header() -> None:
    heard = await answer({"input": ["Hi", "Ho"], "encoding_format": "bytes"})
    told = json.loads(dict(heard.headers)["metadata"])

    assert [(item["start"], item["end"]) for item in told["data"]] == [(0, 32), (32, 64)]
    assert told["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_fewer_dimensions_are_given_where_the_model_can() -> None:
    able = PodSettings(model="m", task=Task.EMBED, embedding_dimensions=8, matryoshka=True)
    (short,) = await vectors("Hi", able, dimensions=3)
    too_many = await answer({"input": "Hi", "dimensions": 9}, settings=able)

    assert len(short) == 3
    assert b"only supports dimensions in range [1, 8], got 9." in too_many.body


async def test_a_prompt_is_cut_where_the_caller_says() -> None:
    usage: Any = (await answer({"input": "word " * 100, "truncate_prompt_tokens": 16})).json["usage"]

    assert usage["prompt_tokens"] == 16


async def test_the_input_of_a_chat_is_embedded_as_a_chat() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    usage: Any = (await answer({"messages": messages})).json["usage"]

    assert usage["prompt_tokens"] > 1


async def test_results_are_ranked_and_the_best_kept() -> None:
    documents = [f"document {ordinal}" for ordinal in range(9)]
    given: dict[str, object] = {"query": "which?", "documents": documents, "top_n": 4}
    for settings in (EMBED, SCORE):
        results: Any = (await answer(given, "/v1/rerank", settings)).json["results"]
        scores = [result["relevance_score"] for result in results]

        assert len(results) == 4
        assert scores == sorted(scores, reverse=True)
        assert all(result["document"]["text"] == documents[result["index"]] for result in results)


async def test_a_score_does_not_depend_on_what_else_is_scored() -> None:
    alone: Any = (await answer({"text_1": "q", "text_2": "b"}, "/score", SCORE)).json["data"]
    together: Any = (await answer({"text_1": "q", "text_2": ["a", "b"]}, "/score", SCORE)).json["data"]

    assert alone[0]["score"] == together[1]["score"]
    assert 0 <= alone[0]["score"] < 1


async def test_an_embedding_model_computes_each_text_once_a_cross_encoder_each_pair() -> None:
    given: dict[str, object] = {"text_1": "12345678", "text_2": ["1234", "1234"]}
    usages: list[Any] = [(await answer(given, "/score", settings)).json["usage"] for settings in (EMBED, SCORE)]

    assert [usage["prompt_tokens"] for usage in usages] == [2 + 1 + 1, 3 + 3]


async def test_a_pooling_request_takes_a_place_in_the_engine_and_makes_no_token() -> None:
    async with SimulatedPod(EMBED) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post({"input": ["a", "b", "c"]}, PATH))
        await pod.until(lambda p: p.waiting == 3)
        in_flight = pod.in_flight
        pod.resume()
        await talk.hear_out()
        metrics = (await ask(pod, get("/metrics"))).body
        stats = pod.engine.stats

    assert in_flight == 1
    assert stats.generation_tokens == 0
    assert stats.prompt_tokens == 3
    assert b'finished_reason="stop",model_name="m"} 3.0' in metrics


async def test_a_client_that_leaves_takes_its_prompts_out_of_the_engine() -> None:
    async with SimulatedPod(EMBED) as pod:
        pod.pause()
        async with talk_to(pod) as talk:
            talk.send(post({"input": ["a", "b"]}, PATH))
            await pod.until(lambda p: p.waiting == 2)
        await pod.until(lambda p: p.aborts == 1)

        assert (pod.waiting, pod.in_flight) == (0, 0)


async def test_a_full_pod_refuses_to_embed() -> None:
    async with SimulatedPod(PodSettings(model="m", task=Task.EMBED, max_num_queued_reqs=1)) as pod:
        pod.pause()
        async with talk_to(pod) as talk:
            talk.send(post({"input": "a"}, PATH))
            await pod.until(lambda p: p.waiting == 1)
            heard = await ask(pod, post({"input": "b"}, PATH))

    assert heard.status == 503


@pytest.mark.parametrize(
    ("fault", "status"), [("status:502", 502), ("error_event", 500), ("draining", 500), ("garbage:junk_body", 200)]
)
async def test_faults_strike_embeddings_too(fault: str, status: int) -> None:
    async with SimulatedPod(EMBED) as pod:
        pod.set_fault(fault)
        heard = await ask(pod, post({"input": "a"}, PATH))
        in_flight = pod.in_flight

    assert heard.status == status
    assert b"embedding" not in heard.body
    assert in_flight == 0


async def test_a_stalled_embedding_is_counted_once() -> None:
    async with SimulatedPod(EMBED) as pod:
        pod.set_fault("stall")
        async with talk_to(pod) as talk:
            talk.send(post({"input": "a"}, PATH))
            await pod.until(lambda p: p.served == 1)
        await pod.until(lambda p: p.aborts == 1)

        assert (pod.served, pod.in_flight) == (1, 0)


async def test_a_cut_embedding_is_half_a_body() -> None:
    async with SimulatedPod(EMBED) as pod:
        pod.set_fault("cut")
        heard = await ask(pod, post({"input": "a"}, PATH))

    assert 0 < len(heard.body) < int(dict(heard.headers)["content-length"])


async def test_the_engine_s_death_is_told_to_who_waits_for_an_embedding() -> None:
    async with SimulatedPod(EMBED) as pod:
        pod.set_fault("engine_death:1")
        heard = await ask(pod, post({"input": "a"}, PATH))

    assert heard.status == 500
    assert b"EngineCore encountered an issue" in heard.body


async def test_a_fault_in_the_body_strikes_this_one_request() -> None:
    heard = await answer({"input": "a", "sim_fault": {"kind": "status", "status": 429}})

    assert heard.status == 429


async def test_request_ids_name_the_answer_and_come_back_in_the_header() -> None:
    settings = PodSettings(model="m", task=Task.EMBED, request_id_headers=True)
    async with SimulatedPod(settings) as pod:
        heard = await ask(pod, post({"input": "a"}, PATH, {"X-Request-Id": "abc"}))

    assert heard.json["id"] == "embd-abc"
    assert ("x-request-id", "abc") in heard.headers
