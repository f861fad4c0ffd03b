"""A scrape from another thread finds whole histograms, and names are given out in bounds."""

import sys
import threading
from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.definitions import OTHER, Definition, Label
from gateway.telemetry.series import Counters, Histograms, Names

WAITED = Definition("waited_seconds", "histogram", "Seconds.", "Nothing.", (Label("pool"),), (0.1, 1.0, 10.0))
CAME = Definition("came_total", "counter", "Comings.", "Nothing.", (Label("pool"), Label("kind")))


def test_a_histogram_is_whole_whenever_it_is_scraped() -> None:
    registry = CollectorRegistry()
    histograms = Histograms(WAITED)
    registry.register(histograms)
    ended = threading.Event()

    def observe() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            # New children come while it is scraped, too.
            histograms.of(f"pool-{number % 97}").observe((number % 40) / 3)

    observing = threading.Thread(target=observe)
    observing.start()
    try:
        for _ in range(10):
            whole(generate_latest(registry).decode())
    finally:
        ended.set()
        observing.join()


def test_series_may_begin_while_others_are_read() -> None:
    counters = Counters(CAME)

    def begin() -> None:
        for number in range(5000):
            counters.of(f"pool-{number}", "x").value += 1

    beginning = threading.Thread(target=begin)
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        beginning.start()
        while beginning.is_alive():
            (family,) = counters.collect()
            assert all(sample.value <= 1 for sample in family.samples)
    finally:
        sys.setswitchinterval(often)
        beginning.join()


def whole(text: str) -> None:
    """Each series' buckets only grow, and the last one is the count."""
    (family,) = text_string_to_metric_families(text)
    buckets: dict[str, list[float]] = {}
    counts: dict[str, float] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            buckets.setdefault(sample.labels["pool"], []).append(sample.value)
        elif sample.name.endswith("_count"):
            counts[sample.labels["pool"]] = sample.value
    assert buckets.keys() == counts.keys()
    for pool, values in buckets.items():
        assert values == sorted(values)
        assert values[-1] == counts[pool]


def test_what_is_forgotten_is_gone_with_all_that_bore_the_name_and_nothing_else() -> None:
    counters = Counters(CAME)
    for pool in ("a", "b", "c"):
        for kind in ("x", "a"):
            counters.of(pool, kind).value += 1
    counters.forget("pool", {"a", "b"})
    counters.forget("no such label", {"c"})
    (family,) = counters.collect()
    assert {tuple(sample.labels.values()) for sample in family.samples} == {("c", "x"), ("c", "a")}
    assert counters.of("a", "x").value == 0
    counters.forget("kind", {"a"})
    (family,) = counters.collect()
    assert {tuple(sample.labels.values()) for sample in family.samples} == {("c", "x"), ("a", "x")}


def test_one_name_too_many_is_other_while_all_are_alive() -> None:
    names = Names(2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "c")] == ["a", "b", OTHER, "a", OTHER]


def test_the_dead_make_room_and_are_told_once() -> None:
    alive, gone = {"a", "b"}, list[Collection[str]]()
    names = Names(2, lambda name: name in alive, gone.append)
    assert [names.label("a"), names.label("b"), names.label("c")] == ["a", "b", OTHER]
    assert gone == []
    alive.remove("a")
    assert names.label("c") == "c"
    assert names.label("c") == "c"
    assert gone == [{"a"}]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans())), st.integers(1, 5))
@settings(max_examples=100)
def test_there_are_never_more_names_than_may_be(steps: list[tuple[str, bool]], most: int) -> None:
    alive: set[str] = set()
    known: set[str] = set()

    def forget(gone: Collection[str]) -> None:
        assert not alive & set(gone)
        known.difference_update(gone)

    names = Names(most, lambda name: name in alive, forget)
    for name, dies in steps:
        alive.add(name)
        label = names.label(name)
        assert label in (name, OTHER)
        if label != OTHER:
            known.add(label)
        else:
            assert len(known) == most
        assert len(known) <= most
        if dies:
            alive.discard(name)
