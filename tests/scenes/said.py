"""What the gateway's own log says while a scene is played: everything, in the product's own form."""

import io
import logging
from types import TracebackType
from typing import Self

from gateway.telemetry.log import Log


class LogLines:
    """`with LogLines() as logged`: then `logged.text`."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        self._handler = _Writes(self._out)
        self._handler.setLevel(logging.DEBUG)

    def __enter__(self) -> Self:
        log = logging.getLogger("poolgate")
        self._level = log.level
        log.setLevel(logging.DEBUG)
        log.addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log = logging.getLogger("poolgate")
        log.removeHandler(self._handler)
        log.setLevel(self._level)

    @property
    def text(self) -> str:
        return self._out.getvalue()


class _Writes(Log):
    """Without a thread: at once."""

    def __init__(self, out: io.StringIO) -> None:
        logging.Handler.__init__(self)
        self._text = out

    def say(self, line: str) -> None:
        self._text.write(f"{line}\n")

    def close(self) -> None:
        logging.Handler.close(self)
