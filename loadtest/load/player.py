"""Plays a schedule, and returns what came of each request.

    own = Own()
    with progress_to(sys.stderr) as progress:
        records = await play(schedule, urls, keys, progress=progress, zero=zero, own=own)

In an open loop each request is sent at its own second, however the server fares. Its latency counts from that
second too, not from whenever we got round to it: a server that stands still for a second has made everybody
wait who came in that second, and a generator that waits along with it would not see them (coordinated
omission). What is left is the generator's own lateness. It is measured for each request, and summed up in
`Own` beside the CPU time that the generator took, so that a reader can tell whose slowness it was.

In a closed loop so many workers ask one after the other until the time is over; a slow server is asked less.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from loadtest.bench.pacer import Pacer
from loadtest.bench.processes import allow_many_files
from loadtest.load.client import Address, BadUrl, Bounds, Client
from loadtest.load.progress import Progress, Silent, Standing
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Planned, Schedule
from loadtest.percentiles import percentile

LEAD_SECONDS: Final = 0.05  # from the call to second 0, if the caller does not say when that is
LOOK_SECONDS: Final = 0.25
REFUSED_PAUSE_SECONDS: Final = 0.1  # of a worker that got no connection: it would only spin
BUSY_AT_MOST: Final = 0.8  # of a core: above that what the generator measures is its own queue
LATE_AT_MOST_SECONDS: Final = 0.01
CALM: Final = (50_000, 20, 100)  # the collector's thresholds while a play lasts


class UnknownCaller(ValueError):
    """The schedule names a caller for whom there is no key."""


@dataclass
class Own:
    """What the generator itself cost, filled in when the play is over. Lateness in seconds.

    CPU time is that of the thread the loop runs in; if others share the loop, theirs is in it.
    """

    cpu_seconds: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    events: int = 0  # of content
    reads: int = 0
    connections: int = 0
    late_p50: float = 0.0
    late_p99: float = 0.0
    late_max: float = 0.0
    look_late_max: float = 0.0  # the worst a timer of the loop was late: as late a read may have been noted

    def __str__(self) -> str:
        """One line, for the end of a run."""
        per_event = f", {self.us_per_event:.0f} us per event" if self.events else ""
        return (
            f"the generator took {self.busy:.0%} of a core, {self.us_per_request:.0f} us per request{per_event}; "
            f"late p50 {self.late_p50 * 1e3:.2f} p99 {self.late_p99 * 1e3:.2f} max {self.late_max * 1e3:.2f} ms; "
            + ("it kept up" if self.kept_up else "IT DID NOT KEEP UP: what it saw may be its own slowness")
        )

    @property
    def busy(self) -> float:
        """The share of one core."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def us_per_request(self) -> float:
        return self.cpu_seconds * 1e6 / self.requests if self.requests else 0.0

    @property
    def us_per_event(self) -> float:
        return self.cpu_seconds * 1e6 / self.events if self.events else 0.0

    @property
    def kept_up(self) -> bool:
        """Whether what was measured is the server."""
        return self.busy <= BUSY_AT_MOST and self.late_p99 <= LATE_AT_MOST_SECONDS


async def play(
    schedule: Schedule,
    urls: str | Sequence[str],
    keys: Mapping[str, str],
    *,
    on_record: Callable[[Record], None] | None = None,
    progress: Progress | None = None,
    zero: float | None = None,
    bounds: Bounds | None = None,
    own: Own | None = None,
) -> list[Record]:
    """One record for each request that was due, in the order of their numbers.

    `urls`: requests are dealt to them in turn; the sequence is read anew for each, so who replaces a gateway
    puts the new one's in its place. `keys`: the API key by caller; "" sends none. `on_record` is called when a
    record is complete. `zero`: the instant of `time.monotonic()` that is second 0, for marks and faults that
    share it. Cancelled, it closes every connection before it lets go. Raises UnknownCaller and BadUrl before
    anything is sent, and what `on_record` raises.
    """
    return await Player(schedule, urls, keys, on_record=on_record, progress=progress, bounds=bounds).play(zero, own)


class Player:
    """One play. `stop()` sends nothing more, and lets what is open end."""

    def __init__(
        self,
        schedule: Schedule,
        urls: str | Sequence[str],
        keys: Mapping[str, str],
        *,
        on_record: Callable[[Record], None] | None = None,
        progress: Progress | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._schedule = schedule
        self._urls = (urls,) if isinstance(urls, str) else urls
        self._addresses = {url: Address.of(url) for url in self._urls}
        self._keys = keys
        if missing := {planned.key for planned in schedule.requests} - keys.keys():
            raise UnknownCaller(f"the schedule asks as {', '.join(sorted(missing))}, and keys has no key of that name")
        if schedule.workers is None and any(planned.at is None for planned in schedule.requests):
            raise ValueError("a request has no time, and the schedule no workers to send it when they are free")
        self._on_record = on_record or _nothing
        self._progress = progress or Silent()
        self._bounds = bounds or Bounds()
        self._records: list[Record] = []
        self._endings: Counter[Ending] = Counter()
        self._next = 0
        self._open = 0
        self._stopped = False
        self._late = 0.0

    async def play(self, zero: float | None = None, own: Own | None = None) -> list[Record]:
        allow_many_files()
        with _calm_collector():
            return await self._play(time.monotonic() + LEAD_SECONDS if zero is None else zero, own or Own())

    async def _play(self, zero: float, own: Own) -> list[Record]:
        self._loop = loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        self._client = client = Client(zero, self._bounds, self._ended)
        cpu_began, began = time.thread_time(), time.monotonic()
        looking = loop.create_task(self._look(own))
        looking.add_done_callback(self._look_ended)
        try:
            if self._schedule.workers is None:
                with self._on_time(zero):
                    await self._over
            else:
                loop.call_later(max(0.0, -client.now()), self._set_to_work, self._schedule.workers)
                await self._over
        finally:
            self._stopped = True
            looking.cancel()
            await client.close()
        own.cpu_seconds, own.seconds = time.thread_time() - cpu_began, time.monotonic() - began
        self._records.sort(key=lambda record: record.planned.number)
        self._sum_up(own)
        self._progress.show(self._standing())
        return self._records

    def stop(self) -> None:
        self._stopped = True
        self._finish_if_over()

    # --- open loop ------------------------------------------------------------------------------------------

    @contextmanager
    def _on_time(self, zero: float) -> Iterator[None]:
        """The whole schedule is one beat, whose next is due when the next request is."""
        requests = self._schedule.requests
        if not requests:
            self._finish_if_over()
            yield
            return
        pacer = Pacer(self._loop, grid_ns=1)  # a loop's timer would be late by up to a millisecond

        def send() -> int | None:
            planned = requests[self._next]
            if self._stopped:
                return None
            self._take(planned)
            if self._next == len(requests):
                return None
            return _due_ns(requests[self._next]) - _due_ns(planned)

        pacer.add(int(zero * 1e9) + _due_ns(requests[0]), send)
        try:
            yield
        finally:
            pacer.close()

    # --- closed loop ----------------------------------------------------------------------------------------

    def _set_to_work(self, workers: int) -> None:
        for _ in range(workers):
            self._work()
        self._finish_if_over()

    def _work(self) -> None:
        """One worker's next request."""
        if self._all_taken or self._client.now() >= self._schedule.seconds:
            self._finish_if_over()
            return
        self._take(self._schedule.requests[self._next])

    # --- both -----------------------------------------------------------------------------------------------

    @property
    def _all_taken(self) -> bool:
        return self._stopped or self._next == len(self._schedule.requests)

    def _take(self, planned: Planned) -> None:
        self._next += 1
        self._open += 1
        now = self._client.now()
        intended_at = now if planned.at is None else planned.at
        self._late = max(self._late, now - intended_at)
        record = Record(planned, intended_at, sent_at=now, taken_at=now)
        url = self._urls[planned.number % len(self._urls)]
        address = self._addresses.get(url)
        if address is None:
            try:
                address = self._addresses[url] = Address.of(url)
            except BadUrl as error:
                self._fail(error)
                return
        self._client.ask(address, self._keys[planned.key], record)

    def _ended(self, record: Record) -> None:
        self._open -= 1
        self._records.append(record)
        self._endings[record.ending] += 1
        try:
            self._on_record(record)
        except Exception as error:  # raised from play(), not to be lost in a callback of a connection
            self._fail(error)
            return
        if self._schedule.workers is None:
            self._finish_if_over()
        elif record.ending is Ending.REFUSED:
            self._loop.call_later(REFUSED_PAUSE_SECONDS, self._work)
        else:
            self._loop.call_soon(self._work)

    def _finish_if_over(self) -> None:
        taken = self._all_taken or (self._schedule.workers is not None and self._client.now() >= self._schedule.seconds)
        if taken and self._open == 0 and not self._over.done():
            self._over.set_result(None)

    async def _look(self, own: Own) -> None:
        """Now and then: ends what lasts too long, and tells how it stands."""
        while True:
            due = time.monotonic() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            own.look_late_max = max(own.look_late_max, time.monotonic() - due)
            self._client.sweep()
            self._progress.show(self._standing())
            self._late = 0.0

    def _look_ended(self, looking: asyncio.Task[None]) -> None:
        if not looking.cancelled() and (error := looking.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _standing(self) -> Standing:
        return Standing(
            at=max(0.0, self._client.now()),
            seconds=self._schedule.seconds,
            sent=self._next,
            open=self._open,
            endings=self._endings,
            tokens=self._client.tokens,
            late=self._late,
        )

    def _sum_up(self, own: Own) -> None:
        own.requests, own.events = len(self._records), self._client.tokens
        own.reads, own.connections = self._client.reads, self._client.connections_made
        late = sorted(record.own_lateness for record in self._records)
        own.late_p50, own.late_p99, own.late_max = (percentile(late, share) for share in (0.5, 0.99, 1.0))


def _due_ns(planned: Planned) -> int:
    assert planned.at is not None  # of an open loop: Player has looked
    return int(planned.at * 1e9)


def _nothing(_record: Record) -> None:
    pass


@contextmanager
def _calm_collector() -> Iterator[None]:
    """The schedule and all records live to the end: to look through them again and again would only cost time.

    Of plays side by side the first to come sees to it.
    """
    usual = gc.get_threshold()
    if usual == CALM:
        yield
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*CALM)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
