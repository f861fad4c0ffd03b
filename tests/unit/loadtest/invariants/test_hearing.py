"""From bytes to events: however the bytes are split, and whatever a gateway may add or drop between events."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loadtest.invariants import events as e
from loadtest.invariants.errors import STATUS_OF, faulty
from loadtest.invariants.events import Event, How, Kind, RequestSent, Shape
from loadtest.invariants.hearing import ClientSide, PodSide
from loadtest.invariants.pieces import Events, shape_of
from tests.running import captured_events

JSON = {"content-type": "application/json", "x-request-id": "r"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}
STREAM = b"".join(captured_events("12-chat-stream-usage.http"))


def pieces(*parts: bytes, shape: Shape = Shape.CHAT) -> list[e.Piece]:
    splitting = Events(shape)
    return [piece for part in parts for piece, _ in splitting.feed(part)]


def client(shape: Shape = Shape.CHAT) -> tuple[list[Event], ClientSide]:
    heard: list[Event] = []
    return heard, ClientSide(heard.append, lambda: 1.0, RequestSent(1.0, "r", "g", shape))


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_has_the_same_pieces_however_it_is_split(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    assert pieces(*(STREAM[a:b] for a, b in pairwise(ends))) == pieces(STREAM)


def test_a_stream_of_vllm_has_its_finish_reason_its_usage_and_its_end() -> None:
    found = pieces(STREAM)
    assert [piece.kind for piece in found[-2:]] == [Kind.USAGE, Kind.END]
    assert [piece.finishes for piece in found if piece.finishes] == [(0,)]
    assert found[-2].tokens is not None
    assert {piece.kind for piece in found[:-2]} == {Kind.CONTENT}


def test_comments_and_blank_lines_are_no_pieces() -> None:
    plain = b'data: {"a":1}\n\ndata: [DONE]\n\n'
    assert pieces(b": hi\n\n\n\n: keep-alive\n" + plain) == pieces(plain)


def test_named_events_end_with_the_closing_one_and_errors_are_errors() -> None:
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    wrong = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m","code":"c"}}\n\n'
    assert [piece.kind for piece in pieces(stop, wrong, shape=Shape.NAMED)] == [Kind.END, Kind.ERROR]
    assert shape_of("/v1/messages", stream=True) is Shape.NAMED
    assert shape_of("/v1/chat/completions", stream=True) is Shape.CHAT
    assert shape_of("/v1/messages", stream=False) is Shape.WHOLE


def test_a_client_hears_a_body_as_one_piece_and_a_pod_says_the_same_one() -> None:
    body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    heard, side = client(Shape.WHOLE)
    side.head(200, JSON)
    side.body(body[:5])
    side.body(body[5:])
    side.ended(clean=True)
    side.left()
    told: list[Event] = []
    pod = PodSide(told.append, lambda: 1.0, "a", "r-0f-1")
    pod.head(200, JSON)
    pod.body(body)
    pod.answered()
    pod.closed(by_gateway=True)
    (mine,) = [event.piece for event in heard if isinstance(event, e.AnswerPiece)]
    (theirs,) = [event.piece for event in told if isinstance(event, e.PodPiece)]
    assert mine == theirs
    assert mine.tokens == (3, 4)
    assert isinstance(heard[-1], e.AnswerEnded)
    assert isinstance(told[-1], e.PodAnswered)


def test_a_client_hears_the_code_of_an_error_event() -> None:
    heard, side = client()
    side.head(200, SSE)
    side.body(b'data: {"error":{"message":"m","type":"t","param":null,"code":"upstream_reset"}}\n\ndata: [DONE]\n\n')
    side.ended(clean=True)
    assert isinstance(heard[-1], e.AnswerEnded)
    assert heard[-1].code == "upstream_reset"
    (said,) = [event for event in heard if isinstance(event, e.Text)]
    assert "upstream_reset" in said.text


def test_a_client_that_got_nothing_or_half_says_so() -> None:
    for status, how in ((0, How.UNANSWERED), (200, How.CUT)):
        heard, side = client()
        if status:
            side.head(status, SSE)
        side.ended(clean=False)
        assert isinstance(heard[-1], e.AnswerEnded)
        assert heard[-1].how is how


def error(code: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": code, **more}}).encode()


def test_every_error_of_the_table_is_fine_at_its_status_and_no_other() -> None:
    headers = JSON | {"retry-after": "1", "x-should-retry": "false"}
    for code, status in STATUS_OF.items():
        assert not faulty(status, headers, error(code), "r")
        assert faulty(418, headers, error(code), "r")


def test_what_is_wrong_with_an_error_is_named() -> None:
    body = error("overloaded")
    wait = JSON | {"retry-after": "1"}
    assert "x-request-id" in faulty(503, wait | {"x-request-id": "other"}, body, "r")
    assert "content-type" in faulty(503, wait | {"content-type": "text/plain"}, body, "r")
    assert "retry-after" in faulty(503, JSON, body, "r")
    assert "shape" in faulty(503, wait, b"Internal Server Error", "r")
    assert "shape" in faulty(503, wait, b'{"detail":"x"}', "r")
    assert "unknown code" in faulty(500, JSON, error("oops"), "r")
    assert "x-should-retry" in faulty(504, JSON, error("upstream_timeout"), "r")


def test_a_pods_own_refusal_keeps_its_words() -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'
    assert not faulty(400, JSON, body, "r")
    assert faulty(500, JSON, body, "r")
