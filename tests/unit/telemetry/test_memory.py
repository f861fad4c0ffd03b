"""How full the process is, against the limit that would have it killed; and that what is free is given back."""

import gc
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.telemetry import memory
from gateway.telemetry.memory import GIVE_BACK_SECONDS, LIMIT_SECONDS, Memory

PAGE = resource.getpagesize()
MIB = 1 << 20


class Hand:
    """A clock whose hand the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def machine(folder: Path, files: Mapping[str, str], group: str = "0::/\n") -> tuple[Path, Path]:
    """What the kernel tells of a process of 100 MiB, and the files of its control group."""
    process, groups = folder / "proc", folder / "cgroup"
    process.mkdir()
    groups.mkdir()
    (process / "statm").write_text(f"{300 * MIB // PAGE} {100 * MIB // PAGE} 1 1 0 {100 * MIB // PAGE} 0\n")
    (process / "cgroup").write_text(group)
    for name, content in files.items():
        file = groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return process, groups


def test_a_containers_limit_is_what_its_memory_is_measured_by(tmp_path: Path) -> None:
    found = Memory(Hand(), *machine(tmp_path, {"memory.max": f"{200 * MIB}\n", "memory.high": "max\n"}))
    assert found.limit_bytes == 200 * MIB
    assert found.share() == pytest.approx(0.5)


def test_the_smallest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    limits = {"memory.max": "max", "pod/memory.max": f"{400 * MIB}", "pod/own/memory.max": f"{800 * MIB}"}
    found = Memory(Hand(), *machine(tmp_path, limits, "0::/pod/own\n"))
    assert found.limit_bytes == 400 * MIB


def test_what_throttles_counts_as_what_kills(tmp_path: Path) -> None:
    found = Memory(Hand(), *machine(tmp_path, {"memory.max": f"{400 * MIB}", "memory.high": f"{200 * MIB}"}))
    assert found.limit_bytes == 200 * MIB


def test_version_one_of_control_groups_is_read_too(tmp_path: Path) -> None:
    group = "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"
    # In a container its own folder is mounted as the root: its path is that of outside.
    found = Memory(Hand(), *machine(tmp_path, {"memory/memory.limit_in_bytes": f"{128 * MIB}\n"}, group))
    assert found.limit_bytes == 128 * MIB


def test_no_limit_of_a_group_leaves_the_machines_memory(tmp_path: Path) -> None:
    total = PAGE * os.sysconf("SC_PHYS_PAGES")
    none = {"memory.max": "max", "memory/memory.limit_in_bytes": "9223372036854771712"}
    found = Memory(Hand(), *machine(tmp_path, none, "4:memory:/\n0::/\n"))
    assert found.limit_bytes == total


def test_a_limit_that_is_changed_while_it_runs_is_seen_within_a_minute(tmp_path: Path) -> None:
    hand = Hand()
    process, groups = machine(tmp_path, {"memory.max": f"{200 * MIB}"})
    found = Memory(hand, process, groups)
    (groups / "memory.max").write_text(f"{400 * MIB}")
    assert found.share() == pytest.approx(0.5)
    hand.now += LIMIT_SECONDS
    assert found.share() == pytest.approx(0.25)
    assert found.limit_bytes == 400 * MIB


def test_what_the_kernel_holds_for_sockets_counts(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{200 * MIB}",
        "memory.current": "1",
        "memory.stat": f"anon {100 * MIB}\nfile 7\nsock {60 * MIB}\nslab 1\n",
    }
    assert Memory(Hand(), *machine(tmp_path, files)).share() == pytest.approx(0.8)


@pytest.mark.parametrize("content", ["", "garbage", "1 2\n", "a b c d e f\n"])
def test_what_cannot_be_read_turns_nobody_away_and_is_said_once(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    process, groups = machine(tmp_path, {"memory.max": f"{200 * MIB}"})
    (process / "statm").write_text(content)
    found = Memory(Hand(), process, groups)
    with caplog.at_level(logging.INFO):
        assert [found.share() for _ in range(3)] == [0.0] * 3
    assert len(caplog.records) == 1


def test_a_machine_without_proc_is_served_without_the_watch(tmp_path: Path) -> None:
    found = Memory(Hand(), tmp_path / "none", tmp_path / "nothing")
    assert found.share() == 0.0


def test_address_space_that_ulimit_allows_is_a_limit() -> None:
    words = (
        "import time; from gateway.telemetry.memory import Memory; m = Memory(time.monotonic); "
        "before = m.share(); kept = bytearray(64 << 20); print(m.limit_bytes, before, m.share())"
    )
    limit = 512 * MIB
    run = subprocess.run(
        ["prlimit", f"--as={limit}", sys.executable, "-c", words], capture_output=True, text=True, check=True
    )
    found, before, after = map(float, run.stdout.split())
    assert found == limit
    assert 0 < before < after < 1
    assert after - before == pytest.approx(64 * MIB / limit, abs=0.01)


def test_what_is_free_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: trimmed.append)
    hand = Hand()
    found = Memory(hand)
    for _ in range(3):
        found.give_back()
    assert trimmed == [0]
    hand.now += GIVE_BACK_SECONDS
    found.give_back()
    assert trimmed == [0, 0]


class Ring:
    """Holds itself, and much."""

    def __init__(self) -> None:
        self.me = self
        self.held = bytearray(MIB)


@pytest.mark.program("glibc")
def test_what_a_burst_leaves_behind_is_given_back() -> None:
    # What other tests have left in the heap would hold some of the burst.
    Memory(time.monotonic).give_back()
    found = Memory(time.monotonic)
    before = found.share()
    gc.disable()
    try:
        for _ in range(64):
            Ring()
        assert found.share() - before > 32 * MIB / found.limit_bytes
        found.give_back()
        assert found.share() - before < 32 * MIB / found.limit_bytes
    finally:
        gc.enable()


def test_a_look_is_cheap_enough_for_four_a_second() -> None:
    found = Memory(time.monotonic)
    began = time.thread_time()
    for _ in range(200):
        found.share()
    # Some 20 microseconds; a thousandth of a second would still be 0.4 % of a core.
    assert (time.thread_time() - began) / 200 < 0.001
