"""How much of the memory that the process may have is in use.

What may be had is the smallest of: the limits of our own control group and of those above it (in a container: its
memory limit), the machine's memory, and what `ulimit` allows of address space and of data. In use is what is resident,
with what the kernel holds for our sockets where the group tells it: that is what a group's limit is held against.

What a burst of large bodies leaves behind would make the process look full for ever, and turn requests away for
nothing: the C library keeps what is free, in holes between what lives, and the collector of reference cycles, which we
have calmed, lets those that hold much wait for thousands of other objects. `keep_less_memory` spares us most of that,
and when memory is short `give_back` has both look.

Where there is no /proc (macOS) nothing is known, and nothing is turned away for it; that is said once.
"""

import ctypes
import gc
import logging
import os
import resource
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

LIMIT_SECONDS = 60.0
"""How old a limit that is looked at may be: a container's can be changed while it runs."""
GIVE_BACK_SECONDS = 2.0
LARGE_BYTES = 2 << 20
KEPT_BYTES = 16 << 20
_UNLIMITED = 1 << 60
"""What version 1 of control groups says where there is no limit is above this."""

log = logging.getLogger("poolgate.memory")


class Memory:
    """The memory of this process. `process` and `groups`: where the kernel tells of both."""

    def __init__(
        self,
        clock: Callable[[], float],
        process: Path = Path("/proc/self"),
        groups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._clock = clock
        self._process = process
        self._groups = groups
        self._page_bytes = resource.getpagesize()
        self._sockets: Path | None = None
        self._address_bytes: int | None = None
        self._data_bytes: int | None = None
        self._given_back_at = float("-inf")
        self._trim = _trim()
        self._blind = False
        self.limit_bytes = 0
        """The smallest of the limits; 0: none is known."""
        self._find_limits()

    def share(self) -> float:
        """From 0 to 1; of several limits the share of the nearest one; 0: it is not known."""
        if self._clock() - self._found_at >= LIMIT_SECONDS:
            self._find_limits()
        try:
            pages = (self._process / "statm").read_bytes().split()
            size, resident, data = (int(pages[field]) * self._page_bytes for field in (0, 1, 5))
        except (OSError, ValueError, IndexError):
            if not self._blind:
                self._blind = True
                log.warning("the process's memory cannot be seen here: no request is turned away for want of it")
            return 0.0
        shares = [0.0]
        if self._resident_limit:
            shares.append((resident + self._socket_bytes()) / self._resident_limit)
        if self._address_bytes:
            shares.append(size / self._address_bytes)
        if self._data_bytes:
            shares.append(data / self._data_bytes)
        return max(shares)

    def give_back(self) -> None:
        """Return what is free to the system, every two seconds at most: it holds the loop for 5 to 40 ms."""
        now = self._clock()
        if now - self._given_back_at >= GIVE_BACK_SECONDS:
            self._given_back_at = now
            gc.collect()
            if self._trim is not None:
                self._trim(0)

    def _find_limits(self) -> None:
        self._found_at = self._clock()
        own = list(_own_groups(self._process, self._groups))
        found = [size for folder in own for size in _limits_of(folder)]
        with suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * self._page_bytes)
        self._resident_limit = min(found, default=0)
        # Version 1 does not tell it.
        self._sockets = next((each / "memory.stat" for each in own if (each / "memory.current").exists()), None)
        self._address_bytes, self._data_bytes = _allowed(resource.RLIMIT_AS), _allowed(resource.RLIMIT_DATA)
        known = (self._resident_limit, self._address_bytes, self._data_bytes)
        self.limit_bytes = min(filter(None, known), default=0)

    def _socket_bytes(self) -> int:
        """What the kernel holds for our sockets, where it tells."""
        if self._sockets is not None:
            with suppress(OSError, ValueError):
                for line in self._sockets.read_bytes().splitlines():
                    if line.startswith(b"sock "):
                        return int(line[5:])
        return 0


def keep_less_memory() -> None:
    """Have the C library keep little of what was freed; for once, before there are threads.

    What is large gets pages of its own, which go back as soon as it is freed. By itself glibc stops to do so after the
    first large body (it raises the bound to 32 MiB): after 60 bodies of 8 MiB at a time it kept 430 MiB. But new pages
    cost 0.3 ms a MiB at least, and each body is there two or three times while it is read: so what is smaller comes
    from the heap, and of what is free at the heap's end some is kept. With neither, a request with 1 MiB took twice as
    much CPU, and one with 32 KiB half as much again. And there is one heap for all threads, instead of one for each:
    only one thread runs Python at a time, so several spare no waiting, but each reserves 64 MiB of address space.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_ARENA_MAX, 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""In glibc's malloc.h; elsewhere there is no `mallopt`, or it takes no such parameters."""


def _trim() -> Callable[[int], object] | None:
    """glibc's `malloc_trim`; None: another C library."""
    with suppress(AttributeError, OSError):
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
        return trim
    return None


def _own_groups(process: Path, groups: Path) -> Iterable[Path]:
    """The folders of our control group and of those above it, the own one first, as far as they can be seen.

    In a container the group's own folder is mostly what is mounted, whatever its path is outside.
    """
    try:
        lines = (process / "cgroup").read_text("ascii", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder


def _limits_of(folder: Path) -> Iterable[int]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            # `max` is no number.
            size = int((folder / name).read_text("ascii"))
            if 0 < size < _UNLIMITED:
                yield size


def _allowed(what: int) -> int | None:
    soft = resource.getrlimit(what)[0]
    return None if soft == resource.RLIM_INFINITY or soft <= 0 else soft
