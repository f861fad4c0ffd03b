"""Which requests exist: raw paths from one table, slashes folded, nothing else made equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import MethodNotAllowed, NotFound
from gateway.pipeline import operations
from gateway.pipeline.dialects import ANTHROPIC, OPENAI
from gateway.pipeline.operations import MODELS, OPERATIONS, Body, Operation, dialect_at, find

PATHS = {
    b"/v1/chat/completions": (b"POST", operations.CHAT),
    b"/v1/completions": (b"POST", operations.COMPLETIONS),
    b"/v1/embeddings": (b"POST", operations.EMBEDDINGS),
    b"/v1/responses": (b"POST", operations.RESPONSES_API),
    b"/v1/messages": (b"POST", operations.MESSAGES),
    b"/v1/messages/count_tokens": (b"POST", operations.COUNT_TOKENS),
    b"/v1/rerank": (b"POST", operations.RERANK),
    b"/v1/score": (b"POST", operations.SCORE),
    b"/v1/audio/transcriptions": (b"POST", operations.TRANSCRIPTIONS),
    b"/v1/audio/translations": (b"POST", operations.TRANSLATIONS),
    b"/tokenize": (b"POST", operations.TOKENIZE),
    b"/detokenize": (b"POST", operations.DETOKENIZE),
    b"/v1/models": (b"GET", MODELS),
}
"""The contract's."""


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", [b"", b"?", b"?a=b", b"?/v1/models", b"?a?b"])
def test_a_path_of_the_table_is_found_with_any_query(path: bytes, query: bytes) -> None:
    method, operation = PATHS[path]
    assert find(method, path + query) == (operation, None)


@pytest.mark.parametrize("path", PATHS)
def test_repeated_slashes_read_as_one(path: bytes) -> None:
    method, operation = PATHS[path]
    assert find(method, path.replace(b"/", b"//")) == (operation, None)
    assert find(method, b"//" + path) == (operation, None)


@pytest.mark.parametrize(
    ("rest", "model_id"),
    [
        (b"m", "m"),
        (b"org%2Fm", "org/m"),
        (b"org%2fm", "org/m"),
        (b"org/m", "org/m"),
        (b"org//m", "org/m"),
        (b"a%252Fb", "a%2Fb"),
        (b"a+b", "a+b"),
        (b"a%20b", "a b"),
        (b"%C3%A9", "é"),
        (b"%FF", "\ufffd"),
        (b"%", "%"),
        (b"%zz", "%zz"),
        (b"..", ".."),
        (b"", ""),
        (b"m?x=y", "m"),
        (b"m%3Fx", "m?x"),
        (b"m%00", "m\x00"),
    ],
)
def test_a_models_name_is_the_rest_of_the_path_decoded_once(rest: bytes, model_id: str) -> None:
    assert find(b"GET", b"/v1/models/" + rest) == (MODELS, model_id)


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"/",
        b"*",
        b"/v1",
        b"/v1/",
        b"v1/models",
        b"/V1/models",
        b"/v1/Models",
        b"/v1%2Fmodels",
        b"/v1/%6dodels",
        b"/v1/./models",
        b"/v1/x/../models",
        b"/v1\\models",
        b"/v1/models;x",
        b"/v1/modelsx",
        b"/v1/models%00",
        b"/v1/models#x",
        b"/v1/chat/completions/",
        b"/v1/chat/completions/render",
        b"/v1/completions/x",
        b"/v1/chat",
        b"/v1/responses/resp_1",
        b"/v1/messages/batches",
        b"/v1/audio/speech",
        b"/v2/rerank",
        b"/rerank",
        b"/score",
        b"/tokenizer_info",
        b"http://x/v1/models",
        b"/metrics",
        b"/health",
        b"/sleep",
        b"/v1/load_lora_adapter",
        b"/invocations",
        b"/?/v1/models",
    ],
)
def test_anything_else_is_not_found(target: bytes) -> None:
    for method in (b"GET", b"POST"):
        with pytest.raises(NotFound):
            find(method, target)


@pytest.mark.parametrize("target", [*PATHS, b"/v1/models/m", b"//v1//completions?x"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"get", b""])
def test_another_method_is_told_which_one_it_is(target: bytes, method: bytes) -> None:
    right = b"GET" if b"models" in target else b"POST"
    if method == right:
        find(method, target)
        return
    with pytest.raises(MethodNotAllowed) as refused:
        find(method, target)
    assert refused.value.headers() == ((b"allow", right),)
    assert right.decode() in refused.value.message


@given(st.binary(max_size=20), st.binary(max_size=40))
def test_whatever_is_asked_only_what_stands_in_the_table_is_found(method: bytes, target: bytes) -> None:
    try:
        operation, model_id = find(method, target)
    except (NotFound, MethodNotAllowed):
        return
    assert isinstance(operation, Operation)
    assert operation.method == method
    assert model_id is None or operation is MODELS


def test_the_table_is_the_contracts() -> None:
    assert {operation.path: (operation.method, operation) for operation in OPERATIONS} == PATHS
    assert len({operation.label for operation in OPERATIONS}) == len(OPERATIONS)
    assert [operation for operation in OPERATIONS if operation.body is Body.NONE] == [MODELS]
    assert {operation.label for operation in OPERATIONS if operation.streams} == {
        "chat",
        "completions",
        "responses",
        "messages",
        "transcriptions",
        "translations",
    }


@pytest.mark.parametrize("target", [b"/v1/messages", b"//v1/messages?x", b"/v1/messages/x"])
def test_refusals_below_messages_are_told_in_anthropics_words(target: bytes) -> None:
    assert dialect_at(target) is ANTHROPIC


@pytest.mark.parametrize("target", [b"/v1/completions", b"/v1/messagesx", b"/x/v1/messages", b""])
def test_all_others_in_openais(target: bytes) -> None:
    assert dialect_at(target) is OPENAI
