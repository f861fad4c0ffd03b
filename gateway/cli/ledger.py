"""Tokens per day, tenant and model: the sums of access lines.

What a row counts are requests that used tokens. Which name a caller asks for is its own affair until a pod has
answered: a refused request has a model in its line, but no tokens, so it makes no row.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Literal, NamedTuple

import msgspec

MAX_ROWS = 250_000
"""They take 200 MB."""
_AROUND = re.compile(
    rb"(?:\[pod/[^\]\s]+\] |[\w.-]+ +\| )?"  # kubectl logs --prefix, docker compose logs
    rb"(?:\d{4}-\d\d-\d\dT\S+ (?:stdout F )?)?"  # kubectl logs --timestamps; a container runtime's file (CRI)
    rb"(?=\{)"
)
"""What may stand before an access line. Of a runtime's file only whole lines of stdout: logs are on stderr."""
_DOCKER = b'{"log":"'

_Name = Annotated[str, msgspec.Meta(max_length=512)]
_Tokens = Annotated[int, msgspec.Meta(ge=0)]


class TooManyRows(Exception):
    """More days, tenants and models than can be summed at once."""


class Row(NamedTuple):
    """What one tenant used of one model on one day (UTC).

    `cached_tokens` are part of `prompt_tokens`. What is estimated is part of the sums, too: answers that were cut, or
    left by their caller, before their pod had told its count.
    """

    day: str
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    estimated_requests: int
    estimated_prompt_tokens: int
    estimated_completion_tokens: int


class _AccessLine(msgspec.Struct, gc=False):
    """The few fields that are needed; the rest of a line is skipped unread."""

    ts: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: _Name | None
    model: _Name
    usage_source: Literal["reported", "estimated"] | None
    prompt_tokens: _Tokens | None
    completion_tokens: _Tokens | None
    cached_tokens: _Tokens | None


class _DockerLine(msgspec.Struct, gc=False):
    """A line of Docker's json-file driver."""

    log: str
    stream: Literal["stdout"]


_access_line = msgspec.json.Decoder(_AccessLine).decode
_docker_line = msgspec.json.Decoder(_DockerLine).decode


class Ledger:
    """Takes lines, and gives their sums. What it holds grows with the rows, not with the lines."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._sums: dict[tuple[date, str, str], list[int]] = {}
        self.strange = 0
        """Lines that are no access lines."""
        self.without_tokens = 0
        """Requests that used none, as far as was told: refused, failed or left before their answer, or no model ran."""

    def add(self, lines: Iterable[bytes]) -> None:
        """Sum these lines up. Raises `TooManyRows`."""
        for raw in lines:
            line = _read(raw)
            if line is None:
                self.strange += 1
                continue
            tenant, prompt, completion, cached = (
                line.tenant,
                line.prompt_tokens,
                line.completion_tokens,
                line.cached_tokens,
            )
            if tenant is None or prompt is None or completion is None or cached is None:
                self.without_tokens += 1
                continue
            key = line.ts.date(), tenant, line.model
            sums = self._sums.get(key)
            if sums is None:
                sums = self._begin(key)
            sums[0] += 1
            sums[1] += prompt
            sums[2] += completion
            sums[3] += cached
            if line.usage_source == "estimated":
                sums[4] += 1
                sums[5] += prompt
                sums[6] += completion

    def rows(self) -> list[Row]:
        """The sums so far, by day, tenant and model."""
        return [Row(day.isoformat(), tenant, model, *sums) for (day, tenant, model), sums in sorted(self._sums.items())]

    def _begin(self, key: tuple[date, str, str]) -> list[int]:
        if len(self._sums) >= self._max_rows:
            raise TooManyRows(f"more than {self._max_rows:,} rows of day, tenant and model: give fewer days at once")
        sums = self._sums[key] = [0] * 7
        return sums


def _read(raw: bytes) -> _AccessLine | None:
    """What an access line says; None for any other line."""
    try:
        if not raw.startswith(b"{"):
            around = _AROUND.match(raw)
            if around is None:
                return None
            line = _access_line(memoryview(raw)[around.end() :])
        elif raw.startswith(_DOCKER):
            line = _access_line(_docker_line(raw).log)
        else:
            line = _access_line(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # The gateway's own lines are in UTC: a day is nobody else's.
    return line if line.ts.tzinfo is UTC else None
