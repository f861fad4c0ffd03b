"""A pod's load is read off what it says, whatever it says; and `/load` is believed only while it shows our own."""

import time

import pytest

from gateway.core.fleet import Gauges
from gateway.discovery.load import MAX_ADAPTERS, MAX_SHORTFALLS, Tracking, count_of, gauges_of
from tests.running import CAPTURES, captured

SILENT = Gauges()


def captured_moments() -> dict[str, bytes]:
    """The parts of a capture of one pod with an adapter, through all its sleeps, by their headings."""
    parts = (CAPTURES / "metrics-adapters-and-sleep.txt").read_bytes().split(b"=== ")[1:]
    return {part.partition(b"\n")[0].decode(): part.partition(b"\n")[2] for part in parts}


def sleep_lines(engine: int, **states: float | str) -> bytes:
    line = 'vllm:engine_sleep_state{{engine="{}",model_name="m",sleep_state="{}"}} {}\n'
    return "".join(line.format(engine, state, value) for state, value in states.items()).encode()


def lora_line(running: str, waiting: str, at: float) -> bytes:
    labels = f'max_lora="1",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"'
    return f"vllm:lora_requests_info{{{labels}}} {at!r}\n".encode()


# --- /metrics


def test_a_real_body_is_understood() -> None:
    body = captured("e23-metrics-overload.http")[1].partition(b"\r\n\r\n")[2]
    assert len(body) > 50_000
    assert gauges_of(body) == Gauges(
        running=1,
        waiting=2,  # not 4: those by reason are the same again
        kv_usage=0.0055248618784530246,
        prefix_queries=135.0,
        prefix_hits=0.0,
        cache_tokens=23_296,
        asleep="",
        adapters=(),
    )


def test_a_real_body_with_traffic_of_the_past_is_understood() -> None:
    body = (CAPTURES / "metrics-part.txt").read_bytes()
    told = gauges_of(body)
    assert (told.running, told.waiting, told.kv_usage) == (0, 0, 0.0)
    assert (told.prefix_queries, told.prefix_hits) == (1524.0, 0.0)


@pytest.mark.parametrize(
    ("moment", "asleep"),
    [
        ('a chat to the adapter "tuned" has been answered', ""),
        ("asleep at level 1, one chat waits", "weights_offloaded"),
        ("awake again", ""),
        ("asleep at level 2", "discard_all"),
        ("level 1 after level 2, one chat waits", "weights_offloaded"),
        ("weights awake, the KV cache asleep", "weights_offloaded"),
        ("asleep at level 0", "paused"),  # awake is 0, and no other state is 1
    ],
)
def test_a_real_pods_sleep_is_seen(moment: str, asleep: str) -> None:
    assert gauges_of(captured_moments()[moment]).asleep == asleep


def test_the_body_needs_no_more_than_its_lines() -> None:
    lines = b'vllm:num_requests_waiting{engine="0"} 3.0\nvllm:num_requests_running{engine="0"} 2'
    assert gauges_of(lines) == Gauges(running=2, waiting=3)
    assert gauges_of(lines.replace(b"\n", b"\r\n") + b"\r\n") == Gauges(running=2, waiting=3)
    assert gauges_of(b'vllm:num_requests_running{engine="0"} 2 1795458853000\n').running == 2


def test_reasons_to_wait_are_not_counted_wherever_they_stand() -> None:
    by_reason = b'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7\n'
    waiting = b'vllm:num_requests_waiting{engine="0"} 7\n'
    assert gauges_of(by_reason) == SILENT
    assert gauges_of(by_reason + waiting + by_reason).waiting == 7


def test_several_engines_are_one_pod() -> None:
    def line(family: str, engine: int, value: float, model: str = "m") -> str:
        return f'vllm:{family}{{engine="{engine}",model_name="{model}"}} {value!r}\n'

    body = "".join(
        line(family, engine, value)
        for family, values in {
            "num_requests_running": (1.0, 2.0),
            "num_requests_waiting": (0.0, 5.0),
            "kv_cache_usage_perc": (0.75, 0.25),
            "prefix_cache_queries_total": (100.0, 10.0),
            "prefix_cache_hits_total": (1.0, 2.0),
        }.items()
        for engine, value in enumerate(values)
    )
    assert gauges_of(body.encode()) == Gauges(3, 5, 0.75, 110.0, 3.0)
    two_models = line("num_requests_running", 0, 1.0) + line("num_requests_running", 0, 4.0, model="n")
    assert gauges_of(two_models.encode()).running == 5


@pytest.mark.parametrize(
    ("lines", "asleep"),
    [
        (sleep_lines(0, awake=0.0, discard_all=1.0) + sleep_lines(1, awake=1.0, discard_all=0.0), ""),
        (sleep_lines(0, awake=0.0, weights_offloaded=1.0) + sleep_lines(1, awake=0.0, discard_all=1.0), "discard_all"),
        (sleep_lines(0, awake=0.0, discard_all=1.0) + sleep_lines(1, discard_all=1.0), ""),  # who knows of engine 1?
        (sleep_lines(0, awake="NaN", discard_all=1.0), ""),
        (sleep_lines(0, awake=0.0, some_new_state=1.0), "paused"),
        (sleep_lines(0, awake=0.0, weights_offloaded=1.0, discard_all=0.5), "weights_offloaded"),
        (sleep_lines(0, weights_offloaded=1.0, awake=0.0), "weights_offloaded"),
    ],
)
def test_a_pod_sleeps_only_if_every_engine_does_and_as_deep_as_the_deepest(lines: bytes, asleep: str) -> None:
    assert gauges_of(lines).asleep == asleep


INFO = 'vllm:cache_config_info{{mamba_block_size="7",block_size="{0}",engine="{2}",num_gpu_blocks="{1}"{3}}} 1.0\n'


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (INFO.format(16, 1000, 0, ""), 16_000),
        (INFO.format(16, 1000, 0, "") + INFO.format(16, 500, 1, ""), 24_000),
        (INFO.format(16, 1000, 0, ',enable_prefix_caching="True"'), 16_000),
        (INFO.format(16, 1000, 0, ',enable_prefix_caching="False"'), 0),
        (INFO.format(16, "None", 0, ""), None),
        (INFO.format(16, 1000, 0, "") + INFO.format("", 500, 1, ""), None),
        (INFO.format(16, "9" * 5000, 0, ""), None),
        (INFO.format(16, "٣", 0, ""), None),
        ("", None),
    ],
)
def test_what_prefix_caches_hold_is_told_in_tokens_over_all_engines(body: str, tokens: int | None) -> None:
    assert gauges_of(body.encode()).cache_tokens == tokens


def test_kv_usage_stays_a_share() -> None:
    assert gauges_of(b'vllm:kv_cache_usage_perc{engine="0"} 1.0000001\n').kv_usage == 1.0


@pytest.mark.parametrize(
    "value", ["NaN", "Inf", "+Inf", "-1", "-0.5", "1e999", "1e16", "1_0", "0x1", "1.2.3", "1e", "", "one", "1 x", "1}"]
)
def test_a_value_that_is_none_is_as_if_its_line_were_absent(value: str) -> None:
    bad = f'vllm:num_requests_running{{engine="0"}} {value}\n'.encode()
    assert gauges_of(bad) == SILENT
    assert gauges_of(bad + b'vllm:num_requests_running{engine="1"} 2\n').running == 2


def test_comments_and_other_series_never_count() -> None:
    told = (
        b'# HELP vllm:num_requests_running{engine="0"} 3\n# TYPE vllm:num_requests_running gauge\n'
        b'my_vllm:num_requests_running{engine="0"} 4\nvllm:num_requests_running_max{engine="0"} 5\n'
        b'other{said="vllm:num_requests_running{} 9"} 1\n'
    )
    assert gauges_of(told) == SILENT


@pytest.mark.parametrize("model", [r"a\"} 9", r"a\\", r"\n", "a b, {c}", "} 7", "模型", r"\\\"", 'x",sleep_state="y'])
def test_a_label_may_hold_anything(model: str) -> None:
    assert gauges_of(f'vllm:num_requests_running{{model_name="{model}",engine="0"}} 2.0\n'.encode()).running == 2


@pytest.mark.parametrize("junk", [b"", b"\n", b"<html>", b"\xff\xfe\x00", b'{"server_load":1}', b"# EOF"])
def test_a_body_that_says_nothing_says_nothing(junk: bytes) -> None:
    assert gauges_of(junk) == SILENT


def test_only_the_newest_line_tells_of_adapters() -> None:
    lines = (
        lora_line("old", "old", 1795459790.5),
        lora_line("b,a", "a,c", 1795459791.0),
        lora_line("", "", 1795459700.0),
    )
    assert gauges_of(b"".join(lines)).adapters == ("b", "a", "c")
    assert gauges_of(lines[0] + lora_line("", "", 1795459791.0)).adapters == ()


def test_adapters_are_bounded_and_odd_names_are_left_out() -> None:
    many = ",".join(f"adapter-{number}" for number in range(1000))
    assert gauges_of(lora_line(many, "", 1.0)).adapters == tuple(f"adapter-{number}" for number in range(MAX_ADAPTERS))
    odd = ",".join(["", r"line\nfeed", "x" * 257, "\x00", "y" * 256, "fine"])
    assert gauges_of(lora_line(odd, odd, 1.0)).adapters == ("y" * 256, "fine")
    assert gauges_of(lora_line("a,b", "", 1.0).replace(b"a", b"\xff")).adapters == ()  # no label of that name is left
    assert gauges_of(lora_line("Z,b", "", 1.0).replace(b"Z", b"\xff")).adapters == ("b",)
    assert gauges_of(lora_line(r"a\"b,c\\d", "", 1.0)).adapters == ('a"b', r"c\d")


_LORA = b"vllm:lora_requests_info{"
HOSTILE = {  # 300 KB each, on which a careless pattern takes a minute
    "a long name": _LORA + b"a" * 300_000 + b"} 1\n",
    "many beginnings": _LORA + b'a="' * 100_000 + b"} 1\n",
    "many names": _LORA + b"a=" * 150_000 + b'""} 1\n',
    "many escapes": _LORA + b'a="' + b"\\" * 300_000 + b'"} 1\n',
    "no end": _LORA + b'"",' * 100_000 + b"\n",
    "blanks and digits": _LORA + b" " * 150_000 + b"} " + b"1" * 150_000,
    "many lines": (b"\n" + _LORA) * 12_000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_time_it_takes_grows_no_faster_than_the_body(body: bytes) -> None:
    begin = time.thread_time()
    assert gauges_of(body) == SILENT
    assert time.thread_time() - begin < 1.0


# --- /load


def test_a_real_count_is_understood() -> None:
    assert count_of(captured("06-load-untracked.http")[1].partition(b"\r\n\r\n")[2]) == 0
    assert count_of(b'{"server_load":17}') == 17
    assert count_of(b'{"server_load":17.0,"more":[]}') == 17


@pytest.mark.parametrize(
    "junk",
    [
        b"", b"null", b"17", b"[17]", b"{}", b'{"server_load":', b"\xff", b"<html>",
        *(b'{"server_load":%b}' % value for value in (b"true", b"-1", b"1.5", b'"1"', b"null", b"[1]", b"{}", b"NaN")),
        *(b'{"server_load":%b}' % value for value in (b"Infinity", b"-Infinity", b"1e999", b"1e300")),
    ],
)  # fmt: skip
def test_what_is_no_count_is_none(junk: bytes) -> None:
    assert count_of(junk) is None


def test_neither_depth_nor_length_breaks_the_reading_of_a_count() -> None:
    assert count_of(b"[" * 100_000) is None
    assert count_of(b'{"server_load":' * 100_000) is None
    assert count_of(b'{"server_load":%b}' % (b"9" * 5000)) is None


# --- whether /load may be believed


def believing() -> Tracking:
    tracking = Tracking()
    assert tracking.judge(2, 2, 2)
    return tracking


def test_a_pod_that_says_0_for_ever_is_never_believed() -> None:
    tracking = Tracking()
    assert not tracking.judge(0, 0, 0)
    assert not any(tracking.judge(0, own, own) for own in (1, 5, 0, 2))
    assert not tracking.believed


def test_a_pod_is_believed_once_it_has_shown_our_own_requests() -> None:
    tracking = Tracking()
    assert not tracking.judge(4, 5, 5)
    assert tracking.judge(5, 5, 5)
    assert tracking.believed
    assert tracking.judge(900, 5, 5)  # others' requests are why we ask


def test_a_count_while_we_have_nothing_there_proves_nothing() -> None:
    """It shows that the pod counts, but one of several API server processes may have counted it."""
    assert not Tracking().judge(1, 0, 0)
    assert not Tracking().judge(7, 0, 3)


def test_only_requests_that_were_there_before_and_after_the_reading_must_show() -> None:
    assert Tracking().judge(2, 2, 9)
    assert Tracking().judge(2, 9, 2)
    assert not Tracking().judge(2, 3, 9)


def test_a_single_shortfall_ends_no_belief_and_three_in_a_row_do() -> None:
    tracking = believing()
    verdicts = [tracking.judge(1, 2, 2) for _ in range(MAX_SHORTFALLS)]
    assert verdicts == [True, True, False]
    assert not tracking.believed


def test_a_reading_that_shows_our_own_ends_a_row_of_shortfalls() -> None:
    tracking = believing()
    for _ in range(5):
        assert all(tracking.judge(1, 2, 2) for _ in range(MAX_SHORTFALLS - 1))
        assert tracking.judge(2, 2, 2)


def test_readings_while_we_have_nothing_there_neither_end_a_row_nor_lengthen_it() -> None:
    tracking = believing()
    assert tracking.judge(0, 4, 4)
    assert tracking.judge(0, 4, 4)
    assert all(tracking.judge(count, 0, 4) for count in (0, 3, 0, 0))
    assert not tracking.judge(0, 4, 4)


def test_belief_comes_back_as_it_came() -> None:
    tracking = believing()
    for _ in range(MAX_SHORTFALLS):
        tracking.judge(0, 2, 2)
    assert not tracking.judge(9, 0, 0)
    assert tracking.judge(2, 2, 2)
    assert tracking.judge(1, 2, 2)  # and has the same patience


def test_no_count_ends_the_belief_at_once() -> None:
    tracking = believing()
    assert not tracking.judge(None, 0, 0)
    assert not tracking.judge(0, 0, 0)
    assert tracking.judge(3, 3, 3)
