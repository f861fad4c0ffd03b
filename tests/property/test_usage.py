"""Sums are those of a plain reading of the same lines, whatever lies between them, and however they are kept."""

import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cli.ledger import Ledger, Row
from gateway.cli.log_lines import lines_of
from gateway.cli.usage_table import csv_of
from gateway.core.call import Trail, Usage
from gateway.core.caller import Tenant
from gateway.telemetry.access_log import AccessLog
from tests.unit.telemetry.trails import trail

names = st.one_of(st.sampled_from(["m", "org/m", "", '"', "=m", "模"]), st.text(max_size=8))
tenants = st.sampled_from([None, *(Tenant(f"k{number}", team) for number, team in enumerate("aab模"))])
tokens = st.one_of(st.integers(0, 5), st.integers(0, 10**9))
usages = st.none() | st.builds(Usage, tokens, tokens, tokens, st.booleans())
walls = st.integers(0, 4 * 86_400_000).map(lambda milliseconds: 1795824000 + milliseconds / 1000)
strange = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" ")),
    st.sampled_from([b"", b"{}", b"INFO poolgate: started", b'{"ts":"2026-11-29T00:00:00Z"}']),
)


def written(requests: Iterable[tuple[Trail, float]]) -> list[bytes]:
    out = io.BytesIO()
    log = AccessLog(out)
    for ended, wall in requests:
        log.write(ended, wall)
    log.close()
    assert log.dropped == 0
    return out.getvalue().splitlines()


def requests_of(tenant: Tenant | None, model: str, usage: Usage | None, wall: float) -> tuple[Trail, float]:
    # Tokens are spent by someone.
    return trail(tenant=tenant, model=model, usage=usage if tenant is not None else None), wall


requests = st.lists(st.builds(requests_of, tenants, names, usages, walls), max_size=30).map(written)


def wrapped(line: bytes, how: int) -> bytes:
    told = (
        line,
        b"2026-11-30T00:00:00.1Z stdout F " + line,
        json.dumps({"log": line.decode() + "\n", "stream": "stdout"}, separators=(",", ":")).encode(),
        b"[pod/gateway-0/gateway] " + line,
    )
    return told[how] + b"\n"


def plainly(lines: Iterable[bytes]) -> Counter[tuple[str, str, str, str]]:
    """The sums by day, tenant, model and column."""
    sums: Counter[tuple[str, str, str, str]] = Counter()
    for told in map(json.loads, lines):
        if told["usage_source"] is None:
            continue
        day = datetime.fromisoformat(told["ts"]).astimezone(UTC).strftime("%Y-%m-%d")
        group = day, told["tenant"], told["model"]
        sums[*group, "requests"] += 1
        for column in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            sums[*group, column] += told[column]
        if told["usage_source"] == "estimated":
            sums[*group, "estimated_requests"] += 1
            for column in ("prompt_tokens", "completion_tokens"):
                sums[*group, f"estimated_{column}"] += told[column]
    return sums


def counted(rows: Iterable[dict[str, Any]]) -> Counter[tuple[str, str, str, str]]:
    sums: Counter[tuple[str, str, str, str]] = Counter()
    for row in rows:
        for column in Row._fields[3:]:
            sums[row["day"], row["tenant"], row["model"], column] += int(row[column])
    return sums


@settings(max_examples=200)
@given(requests, st.data(), st.booleans())
def test_sums_are_those_of_a_plain_reading(lines: list[bytes], data: st.DataObject, packed: bool) -> None:
    between = data.draw(st.lists(strange, max_size=5))
    kept = [wrapped(line, data.draw(st.integers(0, 3))) for line in lines]
    content = b"".join(data.draw(st.permutations([*kept, *(line + b"\n" for line in between)])))
    with tempfile.NamedTemporaryFile() as file:
        file.write(gzip.compress(content) if packed else content)
        file.flush()
        ledger = Ledger()
        ledger.add(lines_of(file.name))
    rows = ledger.rows()
    # Counters are equal when only zeros differ.
    assert counted(row._asdict() for row in rows) == plainly(lines)
    assert ledger.strange == len(between)
    assert ledger.without_tokens + sum(row.requests for row in rows) == len(lines)
    assert all(row.requests > 0 for row in rows)
    assert [row[:3] for row in rows] == sorted({row[:3] for row in rows})


@settings(max_examples=200)
@given(requests)
def test_csv_says_the_same(lines: list[bytes]) -> None:
    ledger = Ledger()
    ledger.add(lines)
    rows = ledger.rows()
    read = list(csv.DictReader(io.StringIO(csv_of(rows), newline=""), strict=True))
    for row, told in zip(rows, read, strict=True):
        for name, number in row._asdict().items():
            exact = told[name] == str(number)
            assert exact or (name in ("tenant", "model") and told[name] == f"'{number}")
