"""What one request may ask of a pod, beside tokens: more is refused before any pod is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import ScriptedPod, answer
from tests.raw import ask, chat, request
from tests.running import Side, running

WHOLE = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS, RERANK, SCORE = "/v1/messages", "/v1/embeddings", "/v1/rerank", "/v1/score"
INSIDE = "http://169.254.169.254/latest/meta-data"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


async def asked(side: Side, path: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, error) of one request; it reached a pod if there is no error."""
    raw = body if isinstance(body, bytes) else json.dumps({"model": "m", **body}).encode()
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(raw, key=gateway.key, path=path))
        assert len(pod.requests) == (came.status == 200)
        return came.status, {} if came.status == 200 else came.error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"n": 9}, "n"),
        (CHAT, {"n": 1_000_000}, "n"),
        # What vLLM would make a number of, and what only looks like a small one.
        (CHAT, {"n": "1000000"}, "n"),
        (CHAT, {"n": 1e6}, "n"),
        (CHAT, b'{"model":"m","n":1E6}', "n"),
        (CHAT, {"n": 8.0}, "n"),
        (CHAT, {"n": True}, "n"),
        (CHAT, {"n": [8]}, "n"),
        (COMPLETIONS, {"prompt": "x", "best_of": 9}, "best_of"),
        (COMPLETIONS, {"prompt": "x", "best_of": "9"}, "best_of"),
        (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "x", "logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"prompt": "x", "logprobs": "-1"}, "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"top_logprobs": "21"}, "top_logprobs"),
        (CHAT, {"prompt_logprobs": 1000, "stream": True}, "prompt_logprobs"),
        (CHAT, {"prompt_logprobs": -1}, "prompt_logprobs"),
        (RESPONSES, {"input": "x", "top_logprobs": 21}, "top_logprobs"),
        (COMPLETIONS, {"prompt": ["x"] * 129}, "prompt"),
        (COMPLETIONS, {"prompt": [[1]] * 129}, "prompt"),
        (COMPLETIONS, {"prompt_embeds": ["AAAA"] * 129}, "prompt_embeds"),
        (EMBEDDINGS, {"input": ["x"] * 2049}, "input"),
        (EMBEDDINGS, {"input": [[1]] * 2049}, "input"),
        (CHAT, {"stop": ["x"] * 17}, "stop"),
        (MESSAGES, {"stop_sequences": ["x"] * 17}, "stop_sequences"),
        (CHAT, {"stop_token_ids": [1] * 129}, "stop_token_ids"),
        (CHAT, {"bad_words": ["x"] * 129}, "bad_words"),
        (CHAT, {"logprob_token_ids": [1] * 129}, "logprob_token_ids"),
        (CHAT, {"tools": [{}] * 129}, "tools"),
        (MESSAGES, {"tools": [{}] * 129}, "tools"),
        (RESPONSES, {"tools": [{}] * 129}, "tools"),
        (RERANK, {"query": "x", "documents": ["x"] * 2049}, "documents"),
        (SCORE, {"text_1": "x", "text_2": ["x"] * 2049}, "text_2"),
        (SCORE, {"queries": ["x"] * 2049, "items": ["x"]}, "queries"),
        (CHAT, {"logit_bias": {str(each): 1 for each in range(3000)}}, "logit_bias"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": "x" * 131_072}}, "response_format"),
        (CHAT, {"structured_outputs": {"regex": "x" * 131_072}}, "structured_outputs"),
        (CHAT, {"guided_regex": "x" * 16_384}, "guided_regex"),
    ],
)
async def test_what_is_beyond_a_cap_is_refused(side: Side, path: str, body: bytes | dict[str, Any], param: str) -> None:
    status, error = await asked(side, path, body)
    told = error if path != MESSAGES else {**error, "param": param, "type": "invalid_request_error"}
    assert (status, told["code"], told["param"]) == (400, "invalid_request", param)
    assert f"'{param}'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(n=8, logprobs=True, top_logprobs=20, prompt_logprobs=0, stop=["x"] * 16, tools=[{}] * 128)),
        (CHAT, chat(n=None, logprobs=False, top_logprobs=None, stop="x" * 999, tools=None, logit_bias={"5": -100})),
        (COMPLETIONS, {"prompt": list(range(5000)), "logprobs": 5}),
        (COMPLETIONS, {"prompt": ["x"] * 128, "n": 8, "best_of": 8}),
        (EMBEDDINGS, {"input": ["x"] * 2048}),
        (EMBEDDINGS, {"input": list(range(5000))}),
        (RERANK, {"query": "x", "documents": ["x"] * 2048}),
    ],
)
async def test_what_is_at_a_cap_passes(side: Side, path: str, body: dict[str, Any]) -> None:
    assert await asked(side, path, body) == (200, {})


def in_chat(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, in_chat({"type": "image_url", "image_url": {"url": INSIDE}}), "messages"),
        (CHAT, in_chat({"type": "image_url", "image_url": INSIDE}), "messages"),
        (CHAT, in_chat({"image_url": INSIDE}), "messages"),
        (CHAT, in_chat({"type": "video_url", "video_url": {"url": INSIDE}}), "messages"),
        (CHAT, in_chat({"type": "audio_url", "audio_url": {"url": INSIDE}, "uuid": "x"}), "messages"),
        (CHAT, in_chat({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "messages"),
        (CHAT, in_chat({"type": "image_url", "image_url": {"url": "file:/etc/passwd"}}), "messages"),
        (COMPLETIONS, in_chat({"type": "image_url", "image_url": {"url": INSIDE}}), "messages"),
        ("/tokenize", in_chat({"type": "image_url", "image_url": {"url": INSIDE}}), "messages"),
        (EMBEDDINGS, in_chat({"type": "image_url", "image_url": {"url": INSIDE}}), "messages"),
        (EMBEDDINGS, {"input": in_chat({"image_url": INSIDE})["messages"]}, "input"),
        (RESPONSES, {"input": [{"content": [{"type": "input_image", "image_url": INSIDE}]}]}, "input"),
        (RESPONSES, {"input": [{"content": [{"type": "input_file", "file_url": INSIDE}]}]}, "input"),
        (RESPONSES, {"input": [{"type": "computer_call_output", "output": {"image_url": INSIDE}}]}, "input"),
        (RERANK, {"query": "x", "documents": {"content": [{"image_url": {"url": INSIDE}}]}}, "documents"),
        (SCORE, {"data_1": {"content": [{"image_url": {"url": INSIDE}}]}, "data_2": "x"}, "data_1"),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": INSIDE}}]}]},
            "messages",
        ),
        (
            MESSAGES,
            {
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"source": {"type": "url", "url": INSIDE}}]}]}
                ]
            },
            "messages",
        ),
        # Keys and the URL itself in disguise, and of two the last.
        (CHAT, b'{"model":"m","messages":[{"content":[{"image\\u005furl":"http:\\/\\/evil\\/"}]}]}', "messages"),
        (CHAT, b'{"model":"m","messages":[{"content":[{"image_ur\\u006c":"\\u0068ttp://evil/"}]}]}', "messages"),
        (
            CHAT,
            b'{"model":"m","messages":[{"content":[{"image_url":"data:,","image_url":"http\\u003a//evil/"}]}]}',
            "messages",
        ),
    ],
)
async def test_no_pod_fetches_from_a_host_that_the_operator_did_not_name(
    side: Side, path: str, body: bytes | dict[str, Any], param: str
) -> None:
    status, error = await asked(side, path, body)
    assert (status, error["code"]) == (400, "invalid_request")
    assert path == MESSAGES or error["param"] == param
    assert "requests.media_url_hosts" in error["message"]
    assert "169.254" not in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, in_chat({"type": "image_url", "image_url": {"url": PIXEL}})),
        (CHAT, in_chat({"type": "image_url", "image_url": {"url": PIXEL.replace("data", "DATA")}})),
        (CHAT, in_chat({"type": "text", "text": f'see {INSIDE} and {{"image_url": "{INSIDE}"}}, file:///etc/passwd'})),
        (CHAT, {"messages": [{"role": "user", "content": "curl"}, {"role": "user", "content": INSIDE}]}),
        (CHAT, {"messages": [{"role": "user", "content": INSIDE}], "metadata": {"image_url": INSIDE}}),
        (CHAT, {"tools": [{"function": {"parameters": {"properties": {"image_url": {"url": INSIDE}}}}}]}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"url": INSIDE}}}]}]}),
        (MESSAGES, {"messages": [{"content": [{"type": "tool_use", "input": {"image_url": INSIDE}}]}]}),
        (COMPLETIONS, {"prompt": f'"image_url": "{INSIDE}"'}),
        (RESPONSES, {"input": INSIDE, "instructions": INSIDE}),
    ],
)
async def test_text_that_names_urls_is_text(side: Side, path: str, body: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", **body}).encode()
    async with ScriptedPod([[WHOLE]]) as pod, running([pod], side=side) as gateway:
        await ask(gateway.port, request(raw, key=gateway.key, path=path))
        assert [each.partition(b"\r\n\r\n")[2] for each in pod.requests] == [raw]


async def test_a_large_body_is_looked_at_as_well(side: Side) -> None:
    """Away from the loop, with what is large set aside."""
    far = [{"role": "user", "content": "once upon a time " * 30_000}, {"content": [{"image_url": INSIDE}]}]
    status, error = await asked(side, CHAT, {"messages": far})
    assert (status, error["param"]) == (400, "messages")
    assert await asked(side, CHAT, {"messages": far[:1], "metadata": {"messages": far}}) == (200, {})


async def test_the_operator_names_hosts_and_raises_caps_while_requests_run(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    many = chat(n=9)
    image = in_chat({"type": "image_url", "image_url": {"url": "https://images.example.com/a.png"}}) | {"model": "m"}
    async with ScriptedPod([[WHOLE], [WHOLE]]) as pod:
        before = {"discovery": {"pods": [{"url": pod.url, "pool": "chat"}]}}
        file.write_text(json.dumps(before))
        async with running([pod], side=side, file=file) as gateway:
            for body in (many, image):
                assert (await ask(gateway.port, request(body, key=gateway.key))).status == 400
            loaded = gateway.gateway.config_state.value
            file.write_text(json.dumps({**before, "requests": {"max_n": 9, "media_url_hosts": ["*.Example.com"]}}))
            while gateway.gateway.config_state.value is loaded:
                await gateway.gateway.config_state.wait_changed()
            for body in (many, image):
                assert (await ask(gateway.port, request(body, key=gateway.key))).status == 200
            worse = chat(n=10)
            assert (await ask(gateway.port, request(worse, key=gateway.key))).error["param"] == "n"
