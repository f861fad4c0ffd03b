"""What processes have used, from /proc: CPU time, time spent waiting for a core, memory.

`/proc/PID/task/TID/schedstat` counts a thread's time on a core (user and system) and its time in the run
queue, in nanoseconds; it needs no sampling and costs the process nothing. A thread that ends between two
readings takes its count with it: then `/proc/PID/stat`, which keeps the time of ended threads but counts
in ticks of 10 ms, is taken instead, and the difference says so. Time in the run queue is the time a
process was ready and another had its core: where it is large, the machine was busy with something else and
wall-clock figures mean little. But threads of one process that share a core wait for each other too (a runtime's
collector beside its loop), and that is its own affair; `/proc/stat` tells how long the core worked at all, in
ticks, and more than what it did for others nobody can have waited for others.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """A reading. `threads`: (pid, tid) → (ns on a core, ns waiting for one); `ticks`: pid → ticks of CPU."""

    threads: dict[tuple[int, int], tuple[int, int]]
    ticks: dict[int, int]


@dataclass(frozen=True)
class Spent:
    """What lies between two readings. `exact` is False if it had to be counted in ticks."""

    cpu_ns: int
    waited_ns: int
    exact: bool


@dataclass(frozen=True)
class Memory:
    """Bytes. A shared page counts in each process' `rss`, in parts in `pss`, not at all in `uss`."""

    rss: int
    pss: int
    uss: int


def parse_schedstat(text: str) -> tuple[int, int]:
    """(ns on a core, ns waiting for one); the third field, the number of time slices, is not needed."""
    on_core, waiting, _slices = text.split()
    return int(on_core), int(waiting)


def parse_stat_ticks(text: str) -> int:
    """User and system ticks of /proc/PID/stat. The name (field 2) may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 1 :].split()
    return int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of proc(5)


def parse_smaps_rollup(text: str) -> Memory:
    kib: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, amount, *_unit = line.split()
        kib[name.removesuffix(":")] = int(amount)
    return Memory(
        rss=kib["Rss"] * 1024, pss=kib["Pss"] * 1024, uss=(kib["Private_Clean"] + kib["Private_Dirty"]) * 1024
    )


def difference(before: Cpu, after: Cpu) -> Spent:
    """A thread that is only in `after` began in between and counts whole."""
    waited = sum(wait - before.threads.get(thread, (0, 0))[1] for thread, (_, wait) in after.threads.items())
    if before.threads.keys() <= after.threads.keys():
        ran = sum(run - before.threads.get(thread, (0, 0))[0] for thread, (run, _) in after.threads.items())
        return Spent(cpu_ns=ran, waited_ns=waited, exact=True)
    ticks = sum(count - before.ticks.get(pid, 0) for pid, count in after.ticks.items())
    return Spent(cpu_ns=ticks * _TICK_NS, waited_ns=waited, exact=False)


def affinity_of(pids: Iterable[int]) -> frozenset[int]:
    """The cores that the processes may have."""
    cores: set[int] = set()
    for pid in pids:
        with suppress(ProcessLookupError):  # it has just ended
            cores |= os.sched_getaffinity(pid)
    return frozenset(cores)


def parse_cores(text: str) -> dict[int, int]:
    """Ns that each core has worked, for whomever (time that the host took is among it), from /proc/stat."""
    busy = {}
    for line in text.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy[int(name.removeprefix("cpu"))] = (user + nice + system + irq + softirq + steal) * _TICK_NS
    return busy


def busy_ns(cores: Iterable[int]) -> int:
    """How long these have worked."""
    each = parse_cores((_PROC / "stat").read_text())
    return sum(each[core] for core in cores)


def process_tree(root: int) -> tuple[int, ...]:
    """The process and all its descendants (nginx: the master and its worker)."""
    found = [root]
    for pid in found:
        for thread in _threads(pid):
            found.extend(int(child) for child in _read(_PROC / str(pid) / "task" / thread / "children").split())
    return tuple(found)


def cpu_of(pids: Iterable[int]) -> Cpu:
    threads: dict[tuple[int, int], tuple[int, int]] = {}
    ticks: dict[int, int] = {}
    for pid in pids:
        for thread in _threads(pid):
            if text := _read(_PROC / str(pid) / "task" / thread / "schedstat"):
                threads[pid, int(thread)] = parse_schedstat(text)
        if text := _read(_PROC / str(pid) / "stat"):
            ticks[pid] = parse_stat_ticks(text)
    return Cpu(threads, ticks)


def memory_of(pids: Iterable[int]) -> Memory:
    each = [parse_smaps_rollup((_PROC / str(pid) / "smaps_rollup").read_text()) for pid in pids]
    return Memory(sum(m.rss for m in each), sum(m.pss for m in each), sum(m.uss for m in each))


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(_PROC / str(pid) / "task")
    except FileNotFoundError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and the reading
        return ""
