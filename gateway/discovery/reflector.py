"""Keeps what the API server holds, whatever happens on the way: list, watch, and list again.

A full list replaces everything; a watch carries on from its version. A watch that ends cleanly is taken up where it
ended. One that ends in any other way (410, an error event, a broken connection, silence, a line that is no event, a
version that goes backwards) is followed by a full list, and so is every fifth minute: nothing that a watch lost, and
no fault of ours in reading it, lives longer. Until a list has succeeded the old set stands whole: there is never an
empty one in between. A list that fails changes nothing; the watch goes on meanwhile, if the server knows its version.

Versions are compared for being lower only, and never used to judge how old a pod is.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from gateway.core.clock import about

MAX_LINE_BYTES = 8 << 20
"""etcd keeps no object beyond 1.5 MiB; JSON may make more of it."""
SLICE_LINES = 32
"""So many events, a millisecond's work, are taken in at a time."""
MAX_PAGES = 1000
MAX_VERSION_CHARACTERS = 64
TELL_AGAIN_SECONDS = 60.0
SHORT_WATCH_SECONDS = 1.0
"""One that ends sooner is not begun again at once."""

T = TypeVar("T")
log = logging.getLogger("poolgate.discovery")


class ApiFailed(Exception):
    """The API server did not do what was asked. The text names no address.

    `status` is HTTP's, 0 without an answer.
    """

    def __init__(self, status: int, why: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class PodsApi(Protocol):
    """Lists and watches pods, as bytes."""

    async def list_page(self, token: str) -> bytes:
        """One page of a list from now (no token), or its next page.

        Raises `ApiFailed`, after a bounded time.
        """
        ...

    def watch(self, version: str, seconds: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of a watch from that version, which the server shall end after `seconds`.

        Raises `ApiFailed` where it cannot be opened, after a bounded time, and where it breaks.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a reflector is, in seconds."""

    relist: float = 300.0
    """Between two full lists, a fifth more or less."""
    watch: float = 270.0
    """What the server is asked for, a tenth more or less."""
    silence: float = 90.0
    """Without a byte. Bookmarks come each minute; a half-open connection and a watch from a future version say nothing
    for ever."""
    quiet: float = 70.0
    """Without a byte: from then on what is held counts as stale."""
    first_pause: float = 0.2
    longest_pause: float = 10.0
    healthy: float = 10.0
    """A watch that lived so long ends a row of failures."""
    longest_retry_after: float = 30.0


class Reflector(Generic[T]):
    """See the module's text. `read` makes of a pod object what is to be kept of it; it must not raise."""

    def __init__(
        self,
        name: str,
        api: PodsApi,
        read: Callable[[Mapping[str, Any]], T],
        changed: Callable[[], None],
        relisted: Callable[[str], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self._name = name
        self._api = api
        self._read = read
        self._changed = changed
        self._relisted = relisted
        self._clock = clock
        self._chance = chance
        self._pace = pace or Pace()
        self._held: dict[str, tuple[str, T]] = {}
        """By name, which is unique at any time: (uid, what is kept)."""
        self._version: str | None = None
        """Where a watch may begin; None: nowhere, a list is needed."""
        self._relist_at = 0.0
        self._failures = 0
        self._watching = False
        self._confirmed_at = clock()
        self._trouble = ""
        self._told_at = 0.0
        self._in_trouble = False
        """Told, and not yet told to be over."""
        self.listed = False
        """Whether a list ever succeeded."""

    def held(self) -> list[T]:
        """What is kept of each pod that there is."""
        return [kept for _, kept in self._held.values()]

    def stale_seconds(self) -> float:
        """For how long nothing has confirmed what is held; 0 while a watch is open and not overdue."""
        since = self._clock() - self._confirmed_at
        return 0.0 if self._watching and since <= self._pace.quiet else since

    async def run(self) -> None:
        """Follow the pods for ever; ends by cancellation."""
        due = "start"
        while True:
            failure: ApiFailed | None = None
            began = self._clock()
            try:
                if not due and began >= self._relist_at:
                    due = "periodic"
                if due:
                    await self._list(due)
                due = ""
                began = self._clock()
                due = await self._watch(self._relist_at - began, well=True)
            except ApiFailed as error:
                failure = error
                due = due or _reason_of(error)
            if due or self._clock() - began < SHORT_WATCH_SECONDS:
                if due:
                    self._tell(str(failure) if failure is not None else f"the watch was given up ({due})")
                found = await self._pause(self._next_pause(failure), failure)
                due = due or found

    async def _list(self, due: str) -> None:
        """Replace all that is held by a full list. Raises `ApiFailed`, and then nothing has changed."""
        found: dict[str, tuple[str, T]] = {}
        token = ""
        for _ in range(MAX_PAGES):
            page = _page_of(await self._api.list_page(token))
            for told in page.items:
                if (key := _key(told)) is not None:
                    found[key[0]] = (key[1], self._read(told))
            token = page.token
            if not token:
                break
        else:
            raise ApiFailed(0, "the list of pods has no end")
        now = self._clock()
        self._held, self._version, self.listed = found, page.version, True
        self._confirmed_at = now
        self._relist_at = now + about(self._pace.relist, self._chance)
        self._relisted(due)
        self._changed()

    async def _watch(self, patience: float, *, well: bool = False) -> str:
        """Hear what changes, for so many seconds at most. Why a full list is due then; empty: it is not.

        `well`: the last list has succeeded, so that all is well when something is heard. Raises `ApiFailed`.
        """
        version = self._version
        if version is None:
            return "expired"
        loop = asyncio.get_running_loop()
        began = self._clock()
        ends_at = loop.time() + max(0.0, patience)
        seconds = round(self._pace.watch * (0.9 + 0.2 * self._chance()))
        try:
            async with (
                asyncio.timeout_at(min(ends_at, loop.time() + self._pace.silence)) as alarm,
                self._api.watch(version, max(1, seconds)) as chunks,
            ):
                self._watching = True
                self._confirmed_at = self._clock()
                unfinished = b""
                async for chunk in chunks:
                    self._confirmed_at = self._clock()
                    alarm.reschedule(min(ends_at, loop.time() + self._pace.silence))
                    *lines, unfinished = (unfinished + chunk).split(b"\n")
                    if len(unfinished) > MAX_LINE_BYTES:
                        return "garbage"
                    for start in range(0, len(lines), SLICE_LINES):
                        if start:
                            # Streams go on while a thousand events are taken in.
                            await asyncio.sleep(0)
                        if wrong := self._apply_all(lines[start : start + SLICE_LINES]):
                            return wrong
                    if well and self._in_trouble:
                        self._in_trouble = False
                        log.info("%s: listed, and watched again", self._name)
                self._confirmed_at = self._clock()
                return "garbage" if unfinished else ""
        except TimeoutError:
            return "" if loop.time() >= ends_at else "silence"
        except ApiFailed as failure:
            if failure.status == 410:
                self._version = None
            raise
        finally:
            self._watching = False
            if self._clock() - began >= self._pace.healthy:
                self._failures = 0

    def _apply_all(self, lines: list[bytes]) -> str:
        """Take in events. What is wrong with them, or an empty text. Raises `ApiFailed`."""
        changed = False
        try:
            for line in lines:
                try:
                    event = json.loads(line)
                    kind, told = event["type"], event["object"]
                    version = told["metadata"].get("resourceVersion") if kind != "ERROR" else None
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    return "garbage"
                if kind == "ERROR":
                    raise _failure_of(told)
                if kind in ("ADDED", "MODIFIED", "DELETED"):
                    changed = self._apply(kind, told) or changed
                elif kind != "BOOKMARK":
                    continue
                if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION_CHARACTERS:
                    return "garbage"
                if _is_lower(version, self._version):
                    return "backwards"
                self._version = version
        finally:
            if changed:
                self._changed()
        return ""

    def _apply(self, kind: str, told: Mapping[str, Any]) -> bool:
        """Whether anything changed."""
        key = _key(told)
        if key is None:
            return False
        name, uid = key
        if kind != "DELETED":
            self._held[name] = (uid, self._read(told))
            return True
        held = self._held.get(name)
        if held is None or held[0] != uid:
            # Another pod bears the name by now.
            return False
        del self._held[name]
        return True

    def _next_pause(self, failure: ApiFailed | None) -> float:
        """Longer with each failure in a row, by chance shorter, never shorter than the server asks."""
        longest = min(self._pace.longest_pause, self._pace.first_pause * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        asked = min(failure.retry_after_seconds, self._pace.longest_retry_after) if failure is not None else 0.0
        return max(asked, longest * (0.5 + 0.5 * self._chance()))

    async def _pause(self, seconds: float, failure: ApiFailed | None) -> str:
        """Until the next try. What happens meanwhile is heard all the same, unless the server wants to be spared.

        Why a full list is due, if that came to light.
        """
        ends_at = self._clock() + seconds
        due = ""
        if failure is None or not failure.retry_after_seconds:
            try:
                due = await self._watch(seconds)
            except ApiFailed as error:
                due = _reason_of(error)
        await asyncio.sleep(max(0.0, ends_at - self._clock()))
        return due

    def _tell(self, trouble: str) -> None:
        """One line when trouble begins or changes its kind, not one for each try; the same again seldom."""
        now = self._clock()
        if trouble != self._trouble or now - self._told_at >= TELL_AGAIN_SECONDS:
            self._trouble, self._told_at, self._in_trouble = trouble, now, True
            kept = f"the last {len(self._held)} pods known stay in force" if self.listed else "no pod is known yet"
            log.warning("%s: %s; %s", self._name, trouble, kept)


class _Page(NamedTuple):
    """A page of a list. `token` leads to the next one, if there is one."""

    items: list[Mapping[str, Any]]
    version: str
    token: str


def _page_of(body: bytes) -> _Page:
    """Raises `ApiFailed` for what is no list in every part: half a list would take pods away."""
    try:
        page = json.loads(body)
        # An empty list may be null, as Go writes one that was never made.
        metadata, items = page["metadata"], [] if page["items"] is None else page["items"]
        version, token = metadata["resourceVersion"], metadata.get("continue", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ApiFailed(0, "what came is no list of pods") from None
    if not (isinstance(items, list) and all(isinstance(told, dict) for told in items)):
        raise ApiFailed(0, "what came is no list of pods")
    if not (isinstance(version, str) and version and isinstance(token, str)):
        raise ApiFailed(0, "what came is no list of pods")
    return _Page(items, version, token)


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _key(told: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name, uid) of an object; None where it has none."""
    metadata = _object(told, "metadata")
    name, uid = metadata.get("name"), metadata.get("uid")
    return (name, uid) if isinstance(name, str) and isinstance(uid, str) else None


def _reason_of(failure: ApiFailed) -> str:
    """Why a list is due after it."""
    return "expired" if failure.status == 410 else "refused" if failure.status else "disconnected"


def _failure_of(told: Any) -> ApiFailed:
    """An ERROR event's Status object."""
    status = told if isinstance(told, dict) else {}
    code = status.get("code")
    seconds = _object(status, "details").get("retryAfterSeconds")
    return ApiFailed(
        code if isinstance(code, int) else 500,
        f"the watch was ended with {code!r:.8}",
        float(seconds) if isinstance(seconds, int) else 0.0,
    )


def _is_lower(version: str, before: str | None) -> bool:
    """Versions of one resource are growing numbers; what is none is not compared."""
    if before is None or not (version.isdecimal() and before.isdecimal()):
        return False
    return (len(version), version) < (len(before), before)
