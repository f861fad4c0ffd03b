"""Hot reload: the files are looked at every second, and what changed in them takes effect while all runs on.

Looked at means read: a file is small, and no clock of a file system is fine enough to tell two writes apart. So it does
not matter how it changes: written anew, replaced, or, as Kubernetes does it, by a symlink that leads elsewhere. It is
loaded once two looks in a row saw the same, since an editor may write in pieces; and whole: a file that cannot be used
changes nothing, and what was before stays in force.

The configuration is loaded with the flags and the environment of the start. What a process was built with stays as it
is until the next start, and is told. The keys take effect as a whole, at once.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from gateway.api.seen import ConfigState
from gateway.config.differences import differences
from gateway.config.faults import ConfigError
from gateway.config.keys import load_keys
from gateway.config.reading import ConfigFile
from gateway.config.sections import TlsSection
from gateway.config.whole import Config
from gateway.core.cell import Cell
from gateway.edge.tls import Certificate, CertificateUnusable, load_certificate
from gateway.limits.keys import KeyEntry, with_known_tenants

LOOK_SECONDS = 1.0
MAX_TOLD = 20
"""Settings, ids of keys, or faults, that a log line names."""

_BUILT_WITH = ("server.host", "server.port", "server.ops_host", "server.ops_port", "limits.redis_url")
_BUILT_WITH_SECTIONS = ("discovery", "auth", "tracing")

log = logging.getLogger("poolgate.config")

T = TypeVar("T")


class Followed(ABC, Generic[T]):
    """A file whose content is in force."""

    what: str
    """It holds that."""
    waits_for_restart: tuple[str, ...] = ()

    def __init__(self, file: Path) -> None:
        self.file = file
        self.error = ""
        """Why what it holds now is not in force."""
        self._seen: tuple[int, bytes] | str = ""
        self._loaded: tuple[int, bytes] | str = ""

    async def is_new(self) -> bool:
        """Look once. True once for each content: when two looks in a row saw it."""
        before, self._seen = self._seen, await asyncio.to_thread(self._read)
        if before != self._seen or self._seen == self._loaded:
            return False
        self._loaded = self._seen
        return True

    def _read(self) -> tuple[int, bytes] | str:
        """What tells one state of the file from another: its content; and its time, so that `touch` has it loaded
        again after a change of a secret that it names.
        """
        try:
            return self.file.stat().st_mtime_ns, self.file.read_bytes()
        except OSError as error:
            return str(error)

    @abstractmethod
    def load(self) -> T:
        """What stands there now; called in a thread.

        Raises `ConfigError`.
        """

    @abstractmethod
    def use(self, loaded: T) -> bool:
        """Put it in force and tell the log what is new; False if nothing is.

        Raises `ConfigError`.
        """


class FollowedConfig(Followed[Config]):
    """The configuration. `apply` takes each new one."""

    what = "configuration"

    def __init__(self, file: ConfigFile, started_with: Config, apply: Callable[[Config], None]) -> None:
        super().__init__(file.file)
        self._source = file
        self._started_with = self._current = started_with
        self._apply = apply

    def load(self) -> Config:
        return self._source.load()

    def use(self, loaded: Config) -> bool:
        changed = differences(self._current, loaded)
        if not changed:
            return False
        self._apply(loaded)
        self._current = loaded
        self.waits_for_restart = waits_for_restart(self._started_with, loaded)
        log.info("a new configuration is in force; it differs in %s", _listed(changed))
        if self.waits_for_restart:
            log.warning("until a restart the values of the start are kept for %s", _listed(self.waits_for_restart))
        return True


class FollowedKeys(Followed[tuple[KeyEntry, ...]]):
    """The keys. `apply` takes all entries whenever one of them is new; who is behind one that is not stays the same
    `Tenant`.
    """

    what = "keys"

    def __init__(
        self, file: Path, started_with: Iterable[KeyEntry], apply: Callable[[tuple[KeyEntry, ...]], None]
    ) -> None:
        super().__init__(file)
        self._current = tuple(started_with)
        self._apply = apply

    def load(self) -> tuple[KeyEntry, ...]:
        return with_known_tenants(load_keys(self.file), self._current)

    def use(self, loaded: tuple[KeyEntry, ...]) -> bool:
        before, now = ({entry.tenant.key_id: entry for entry in entries} for entries in (self._current, loaded))
        if before == now:
            return False
        self._apply(loaded)
        self._current = loaded
        parts = (
            ("added", [key_id for key_id in now if key_id not in before]),
            ("changed", [key_id for key_id in now if key_id in before and now[key_id] != before[key_id]]),
            ("removed", [key_id for key_id in before if key_id not in now]),
        )
        told = "; ".join(f"{word} {_listed(key_ids)}" for word, key_ids in parts if key_ids)
        log.info("new keys are in force: %s", told)
        if not loaded:
            log.warning("the keys file holds no key: nobody is let in by one")
        return True


class FollowedCertificate(Followed[Certificate]):
    """The certificate of the public port, and its key: two files that belong together. `files` says where they are now.

    Who renews them replaces one after the other, or both by a symlink. Between the two they are no pair: that is
    refused like any other fault, and soon over.
    """

    what = "certificate"

    def __init__(
        self,
        files: Callable[[], TlsSection],
        started_with: Certificate,
        apply: Callable[[Certificate], None],
        wall: Callable[[], float],
    ) -> None:
        super().__init__(files().cert or Path())
        self._files = files
        self._current = started_with
        self._apply = apply
        self._wall = wall

    def _read(self) -> tuple[int, bytes] | str:
        told = self._files()
        if told.cert is None or told.key is None:
            return ""
        self.file = told.cert
        try:
            # The two together, whatever they hold: neither ends where the other begins.
            return told.cert.stat().st_mtime_ns, b"\0".join((told.cert.read_bytes(), told.key.read_bytes()))
        except OSError as error:
            return str(error)

    def load(self) -> Certificate:
        told = self._files()
        if told.cert is None or told.key is None:
            return self._current
        try:
            loaded = load_certificate(told.cert, told.key)
        except CertificateUnusable as error:
            raise ConfigError(f"server.tls.{error.key}: {error}") from None
        if loaded.expires_at <= self._wall():
            raise ConfigError(f"server.tls.cert: {told.cert} has expired on {day(loaded.expires_at)}")
        return loaded

    def use(self, loaded: Certificate) -> bool:
        if loaded.digest == self._current.digest:
            return False
        self._apply(loaded)
        self._current = loaded
        log.info("a new certificate is in force; it expires on %s", day(loaded.expires_at))
        return True


def day(wall: float) -> str:
    """Such as `2027-01-31`."""
    return datetime.fromtimestamp(wall, UTC).date().isoformat()


class Reload:
    """Follows files. `counted` is told `applied` or `refused` for each new content."""

    def __init__(
        self,
        followed: Sequence[Followed[Any]],
        *,
        state: Cell[ConfigState],
        counted: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._followed = followed
        self._state = state
        self._counted = counted
        self._clock = clock
        self.look_seconds = LOOK_SECONDS

    async def run(self) -> None:
        """Look again and again; ends by cancellation."""
        while True:
            await self.look()
            await asyncio.sleep(self.look_seconds)

    async def look(self) -> None:
        """Look at each file once, and load those that are new and stay."""
        for each in self._followed:
            if await each.is_new():
                await self._renew(each)

    async def _renew(self, followed: Followed[Any]) -> None:
        before = followed.error
        try:
            loaded = await asyncio.to_thread(followed.load)
            changed, followed.error = followed.use(loaded), ""
        except ConfigError as error:
            changed, followed.error = False, _listed(str(error).splitlines(), "\n")
        except Exception as error:
            log.exception("the %s could not be put in force", followed.what)
            changed, followed.error = False, f"{followed.file}: {type(error).__name__}: {error}"
        loaded_at = self._state.value.loaded_at
        if followed.error:
            self._counted("refused")
            why = "; ".join(followed.error.splitlines())
            log.error("a change of the %s is refused, what was before stays in force: %s", followed.what, why)
        elif changed:
            self._counted("applied")
            loaded_at = self._clock()
        elif before:
            log.info("the file of the %s holds what is in force again", followed.what)
        else:
            return
        errors = [each.error for each in self._followed if each.error]
        waits = tuple(key for each in self._followed for key in each.waits_for_restart)
        self._state.set(ConfigState(loaded_at, "\n".join(errors), waits))


def waits_for_restart(started_with: Config, now: Config) -> tuple[str, ...]:
    """The keys whose new values take effect with the next start."""
    live_pods = started_with.discovery.mode == now.discovery.mode
    # Another certificate is nothing new to a port that speaks TLS; whether it does is said once.
    same_protocol = (started_with.server.tls.cert is None) == (now.server.tls.cert is None)
    return tuple(
        key
        for key in differences(started_with, now)
        if key in _BUILT_WITH
        or key.partition(".")[0] in _BUILT_WITH_SECTIONS
        or (not same_protocol and key.startswith("server.tls"))
        if not (live_pods and key == "discovery.pods")
    )


def _listed(told: Sequence[str], between: str = ", ") -> str:
    more = len(told) - MAX_TOLD
    return between.join(told[:MAX_TOLD]) + (f" and {more} more" if more > 0 else "")
