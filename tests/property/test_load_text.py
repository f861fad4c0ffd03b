"""`/metrics` is read as Prometheus' own parser reads it, and whatever bytes there are, it is read."""

import math
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.core.fleet import Gauges
from gateway.discovery.load import count_of, gauges_of
from tests.running import captured

WHOLE = captured("e23-metrics-overload.http")[1].partition(b"\r\n\r\n")[2]
PLAIN = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
)
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits")
STATES = ("awake", "weights_offloaded", "discard_all")

label_values = st.text(st.one_of(st.sampled_from('"\\\n,{}= #0n'), st.characters(codec="utf-8")), max_size=12)
values = st.one_of(
    st.floats(0, 1).map(repr),
    st.integers(0, 2**60).map(str),
    st.floats().map(repr),
    st.sampled_from(["NaN", "+Inf", "-Inf", "-1.0", "0.0", "1.0", "1e3", "1.7954597905840487e+09"]),
)
adapters = st.lists(st.sampled_from(["a", "b c", 'q"', "tuned", "", "\n", "\u2028", "\\n", "模"]), max_size=4).map(
    ",".join
)


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def line(name: str, labels: dict[str, str], value: str) -> str:
    listed = ",".join(f'{key}="{escaped(told)}"' for key, told in labels.items())
    return f"{name}{{{listed}}} {value}\n"


@st.composite
def expositions(draw: st.DrawFn) -> str:
    """Families in any order, some missing, each with any number of engines and models."""
    engines = draw(st.lists(st.tuples(label_values, label_values), max_size=3, unique=True))
    groups = []
    for family in draw(st.permutations([*PLAIN, "num_requests_waiting_by_reason", "sleep", "lora"])):
        if draw(st.integers(0, 9)) == 0:
            continue
        name = {"sleep": "engine_sleep_state", "lora": "lora_requests_info"}.get(family, family)
        name = f"vllm:{name}_total" if family in COUNTERS else f"vllm:{name}"
        lines = [f"# HELP {name} {draw(st.sampled_from(['Words.', f'{name}{{}} 5']))}\n# TYPE {name} gauge\n"]
        if family == "lora":
            labels = st.fixed_dictionaries({"running_lora_adapters": adapters, "waiting_lora_adapters": adapters})
            lines += [
                line(name, {"max_lora": "1"} | draw(labels), draw(values)) for _ in range(draw(st.integers(0, 3)))
            ]
        for engine, model in engines if family != "lora" else ():
            told = {"engine": engine, "model_name": model}
            if family == "sleep":
                state = st.sampled_from(["0.0", "0.0", "1.0", "NaN"])
                lines += [line(name, told | {"sleep_state": kind}, draw(state)) for kind in STATES]
            else:
                lines.append(line(name, told, draw(values)))
        groups.append("".join(lines))
    return draw(st.sampled_from(["", "\n", "# a comment\n"])).join(groups)


def as_parsed(text: str) -> Gauges:
    """The same by the whole of the text, and Prometheus' own parser."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            value = float(sample.value)
            if value <= 2**53 and math.copysign(1, value) > 0:  # NaN is not, and -0.0 has its sign
                found[sample.name.removeprefix("vllm:")].append(sample)

    def told(name: str) -> list[float]:
        return [float(sample.value) for sample in found[name]]

    return Gauges(
        running=int(sum(told("num_requests_running"))) if told("num_requests_running") else None,
        waiting=int(sum(told("num_requests_waiting"))) if told("num_requests_waiting") else None,
        kv_usage=min(1.0, max(told("kv_cache_usage_perc"))) if told("kv_cache_usage_perc") else None,
        prefix_queries=sum(told("prefix_cache_queries_total")) if told("prefix_cache_queries_total") else None,
        prefix_hits=sum(told("prefix_cache_hits_total")) if told("prefix_cache_hits_total") else None,
        cache_tokens=cache_of(found["cache_config_info"]),
        asleep=sleep_of(found["engine_sleep_state"]),
        adapters=adapters_of(found["lora_requests_info"]),
    )


def cache_of(samples: list[Sample]) -> int | None:
    engines = [sample.labels for sample in samples]
    if any(labels.get("enable_prefix_caching") == "False" for labels in engines):
        return 0
    sizes = [(labels.get("block_size", ""), labels.get("num_gpu_blocks", "")) for labels in engines]
    if not sizes or not all(block.isdecimal() and count.isdecimal() for block, count in sizes):
        return None
    return sum(int(block) * int(count) for block, count in sizes)


def sleep_of(samples: list[Sample]) -> str:
    engines = {(sample.labels["engine"], sample.labels["model_name"]) for sample in samples}
    awake = [sample for sample in samples if sample.labels["sleep_state"] == "awake"]
    if not engines or len(awake) < len(engines) or any(sample.value for sample in awake):
        return ""
    deepest = [STATES.index(sample.labels["sleep_state"]) for sample in samples if sample.value == 1]
    return STATES[max(deepest)] if deepest else "paused"


def adapters_of(samples: list[Sample]) -> tuple[str, ...]:
    if not samples:
        return ()
    newest = max(samples, key=lambda sample: sample.value).labels
    names = [*newest["running_lora_adapters"].split(","), *newest["waiting_lora_adapters"].split(",")]
    return tuple(name for place, name in enumerate(names) if name and name.isprintable() and name not in names[:place])


@settings(max_examples=400)
@given(expositions())
def test_gauges_are_what_prometheus_own_parser_finds(text: str) -> None:
    assert gauges_of(text.encode()) == as_parsed(text)


def test_a_real_body_is_read_as_prometheus_own_parser_reads_it() -> None:
    assert gauges_of(WHOLE) == as_parsed(WHOLE.decode())


PIECES = (
    b"\nvllm:num_requests_running{", b"\nvllm:engine_sleep_state{", b"\nvllm:lora_requests_info{", b"} 1", b"\n",
    b'sleep_state="', b'running_lora_adapters="', b'"', b"\\", b"}", b" ", b"1", b"e", b".", b"9" * 400,
)  # fmt: skip
fragments = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8))).map(b"".join)


@settings(max_examples=500)
@given(st.one_of(st.binary(), fragments))
def test_any_bytes_are_read(body: bytes) -> None:
    told = gauges_of(body)
    assert told.kv_usage is None or 0 <= told.kv_usage <= 1
    assert all(count is None or count >= 0 for count in (told.running, told.waiting))
    count = count_of(body)
    assert count is None or count >= 0


@settings(max_examples=200)
@given(st.data())
def test_a_real_body_with_a_hole_in_it_is_read(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(WHOLE)))
    after = data.draw(st.integers(at, min(len(WHOLE), at + 3000)))
    gauges_of(WHOLE[:at] + data.draw(st.binary(max_size=20)) + WHOLE[after:])
