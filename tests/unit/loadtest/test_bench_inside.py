"""The bench inside measures a whole gateway at work, and fails if an answer is not the pod's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gateway.app import Gateway
from loadtest.bench import inside
from loadtest.bench.inside import Asked, BodiesDiffer, Load, main, measured_here, table

COUNTED = "poolgate_requests_total{"
ADMITTED = 'decision="admitted"'


def figures_of(asked: Asked, rounds: int = 2) -> list[dict[str, float]]:
    """What is told of so many rounds."""
    told: list[dict[str, float]] = []
    measured_here(asked, lambda: len(told) < rounds, told.append)
    return told


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "LOADS", {name: Load(load.bytes, 2, 2) for name, load in inside.LOADS.items()})
    monkeypatch.setattr(inside, "STREAMS", Load(400, 2, 1))


@pytest.mark.parametrize("asked", [Asked(), Asked(limits=True), Asked("32k"), Asked("1m")], ids=str)
def test_each_kind_of_request_is_answered_and_measured(asked: Asked) -> None:
    for figures in figures_of(asked):
        assert list(figures) == ["µs per request"]
        assert 0 < figures["µs per request"] < 1_000_000


def test_a_stream_is_measured_apart_from_its_chunks() -> None:
    for figures in figures_of(Asked(stream=True)):
        assert 0 < figures["µs per chunk"] < figures["µs per stream"]


def test_an_answer_that_is_not_the_pods_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "COMPLETION", b"another answer")
    with pytest.raises(BodiesDiffer):
        figures_of(Asked())


def test_all_features_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is counted and leaves its line; with limits, it was let in by all three."""
    gateways: list[Gateway] = []
    told: list[tuple[int, str]] = []

    def kept(*arguments: Any, access_out: BinaryIO, **named: Any) -> Gateway:
        gateways.append(Gateway(*arguments, access_out=access_out, **named))
        gateways[-1].close = partial(leave, gateways[-1], access_out, gateways[-1].close)  # type: ignore[method-assign]
        return gateways[-1]

    def leave(gateway: Gateway, access: BinaryIO, close: Callable[[], None]) -> None:
        close()
        lines = Path(access.name).read_bytes().count(b'"outcome":"completed"')
        told.append((lines, gateway.metrics.exposition().decode()))

    monkeypatch.setattr(inside, "Gateway", kept)
    figures_of(Asked(limits=True), rounds=2)
    ((lines, series),) = told
    # Two clients, two turns, two rounds and one to warm up.
    assert lines == 12
    assert sum(float(line.split()[1]) for line in series.splitlines() if COUNTED in line) == 12
    assert sum(float(line.split()[1]) for line in series.splitlines() if ADMITTED in line) == 36


def test_trees_take_turns_and_are_compared_with_the_first() -> None:
    rounds = [[{"µs": 10.0}, {"µs": 5.0}], [{"µs": 20.0}, {"µs": 10.0}], [{"µs": 12.0}, {"µs": 12.0}]]
    first, second = table(["old", "new"], rounds).splitlines()[2:]
    assert first.startswith("| old | µs | 12.00 |")
    assert first.endswith("| 1.000 |")
    assert second.startswith("| new | µs | 10.00 |")
    assert second.endswith("| 0.500 |")


def test_a_tree_is_measured_by_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    tree = str(Path(__file__).resolve().parents[3])
    assert main(["--tree", tree, "--tree", tree, "--rounds", "1"]) == 0
    assert capfd.readouterr().out.count("µs per request") == 2


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--rounds", "0"], ["--stream", "--body", "1m"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "--stream has bodies of its own" in capsys.readouterr().err
