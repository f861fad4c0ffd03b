"""Hot reload: the configuration file is looked at every second, and what changed in it takes effect while all runs on.

Looked at means read: a file is small, and no clock of a file system is fine enough to tell two writes apart. So it does
not matter how it changes: written anew, replaced, or, as Kubernetes does it, by a symlink that leads elsewhere. It is
loaded once two looks in a row saw the same, since an editor may write in pieces; and whole, with the flags and the
environment of the start. A file that cannot be used changes nothing: the configuration before stays in force.

What a process was built with stays as it is until the next start, and is told.
"""

import asyncio
import logging
from collections.abc import Callable

from gateway.api.status import ConfigState
from gateway.config import Config, ConfigError, ConfigFile, differences
from gateway.core.cell import Cell

LOOK_SECONDS = 1.0
MAX_TOLD = 20
"""Keys that a log line names."""

_BUILT_WITH = ("server.host", "server.port", "server.ops_host", "server.ops_port", "limits.redis_url")
_BUILT_WITH_SECTIONS = ("discovery", "auth")

log = logging.getLogger("poolgate.config")


class Reload:
    """Follows one file. `apply` takes each new configuration; `counted` is told `applied` or `refused`."""

    def __init__(
        self,
        file: ConfigFile,
        started_with: Config,
        *,
        apply: Callable[[Config], None],
        state: Cell[ConfigState],
        counted: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._started_with = self._current = started_with
        self._apply = apply
        self._state = state
        self._counted = counted
        self._clock = clock
        self._seen: tuple[int, bytes] | str = ""
        self._loaded: tuple[int, bytes] | str = ""
        self.look_seconds = LOOK_SECONDS

    async def run(self) -> None:
        """Look again and again; ends by cancellation."""
        while True:
            await self.look()
            await asyncio.sleep(self.look_seconds)

    async def look(self) -> None:
        """Look once, and load what was seen if it is new and stays."""
        before, self._seen = self._seen, await asyncio.to_thread(self._read)
        if before == self._seen != self._loaded:
            self._loaded = self._seen
            await self._reload()

    def _read(self) -> tuple[int, bytes] | str:
        """What tells one state of the file from another: its content; and its time, so that `touch` has it loaded
        again after a change of a secret that it names.
        """
        try:
            return self._file.file.stat().st_mtime_ns, self._file.file.read_bytes()
        except OSError as error:
            return str(error)

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._file.load)
            changed = differences(self._current, config)
            if changed:
                self._apply(config)
        except ConfigError as error:
            self._refuse(str(error))
            return
        except Exception as error:
            log.exception("the configuration could not be put in force")
            self._refuse(f"{self._file.file}: {type(error).__name__}: {error}")
            return
        self._current = config
        waiting = waits_for_restart(self._started_with, config)
        if changed:
            self._counted("applied")
            self._state.set(ConfigState(self._clock(), "", waiting))
            log.info("a new configuration is in force; it differs in %s", _listed(changed))
            if waiting:
                log.warning("until a restart the values of the start are kept for %s", _listed(waiting))
        elif self._state.value.error:
            self._state.set(ConfigState(self._state.value.loaded_at, "", waiting))
            log.info("the file holds the configuration that is in force again")

    def _refuse(self, why: str) -> None:
        self._counted("refused")
        before = self._state.value
        self._state.set(ConfigState(before.loaded_at, why, before.waits_for_restart))
        log.error("the new configuration is refused, the one before stays in force: %s", "; ".join(why.splitlines()))


def waits_for_restart(started_with: Config, now: Config) -> tuple[str, ...]:
    """The keys whose new values take effect with the next start."""
    live_pods = started_with.discovery.mode == now.discovery.mode
    return tuple(
        key
        for key in differences(started_with, now)
        if key in _BUILT_WITH or key.partition(".")[0] in _BUILT_WITH_SECTIONS
        if not (live_pods and key == "discovery.pods")
    )


def _listed(keys: tuple[str, ...]) -> str:
    more = len(keys) - MAX_TOLD
    return ", ".join(keys[:MAX_TOLD]) + (f" and {more} more" if more > 0 else "")
