"""Who used what: sums of access lines as the gateway writes them, wherever they were kept, and of nothing else."""

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.cli.ledger import Ledger, Row, TooManyRows
from gateway.cli.log_lines import MAX_LINE_BYTES, Unreadable, lines_of
from gateway.cli.usage_table import ROWS_SHOWN, csv_of, notes, page
from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import Tenant
from gateway.telemetry.access_log import AccessLog
from tests.unit.telemetry.trails import refused, trail

NOON = 1795953600.25
"""2026-11-29T12:00:00.250Z"""
DAY = 86_400
ROW = Row("2026-11-29", "acme", "org/m", 1, 34, 10, 16, 0, 0, 0)


def line(ended: Trail, wall: float = NOON) -> bytes:
    """What the gateway writes of a request."""
    out = io.BytesIO()
    log = AccessLog(out)
    log.write(ended, wall)
    log.close()
    return out.getvalue()


def rows(*lines: bytes) -> list[Row]:
    return summed(lines).rows()


def summed(lines: Iterable[bytes]) -> Ledger:
    ledger = Ledger()
    ledger.add(lines)
    return ledger


def by(team: str, key_id: str = "k1") -> Tenant:
    return Tenant(key_id=key_id, team=team)


ONE = line(trail())


# What is summed.


def test_a_request_makes_a_row_with_its_tokens() -> None:
    assert rows(ONE) == [ROW]


def test_rows_are_by_day_tenant_and_model() -> None:
    lines = [
        line(trail(model="b")),
        line(trail(model="a")),
        line(trail(tenant=by("zeta"))),
        line(trail(), NOON - DAY),
        line(trail(model="a", usage=Usage(1, 2, 0))),
    ]
    assert rows(*lines) == [
        Row("2026-11-28", "acme", "org/m", 1, 34, 10, 16, 0, 0, 0),
        Row("2026-11-29", "acme", "a", 2, 35, 12, 16, 0, 0, 0),
        Row("2026-11-29", "acme", "b", 1, 34, 10, 16, 0, 0, 0),
        Row("2026-11-29", "zeta", "org/m", 1, 34, 10, 16, 0, 0, 0),
    ]


def test_the_order_of_lines_changes_nothing() -> None:
    lines = [line(trail(model=f"m{number % 3}", usage=Usage(number, 1)), NOON - number * DAY) for number in range(9)]
    assert rows(*lines) == rows(*reversed(lines))


def test_keys_of_one_team_are_one_tenant() -> None:
    (row,) = rows(line(trail(tenant=by("acme", "k1"))), line(trail(tenant=by("acme", "k2"))))
    assert (row.tenant, row.requests) == ("acme", 2)


def test_a_day_ends_at_midnight_utc() -> None:
    midnight = NOON - 0.25 + DAY / 2
    told = rows(line(trail(), midnight - 0.001), line(trail(), midnight))
    assert [(row.day, row.requests) for row in told] == [("2026-11-29", 1), ("2026-11-30", 1)]


def test_what_is_estimated_is_in_the_sums_and_beside_them() -> None:
    cut = trail(usage=Usage(7, 3, estimated=True), outcome=Outcome.CLIENT_LEFT)
    assert rows(ONE, line(cut)) == [Row("2026-11-29", "acme", "org/m", 2, 41, 13, 16, 1, 7, 3)]


def test_large_sums_are_exact() -> None:
    many = [line(trail(usage=Usage(999_999_999, 1_000_000_000, 999_999_998)))] * 1001
    (row,) = rows(*many)
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (
        1001 * 999_999_999,
        1001 * 1_000_000_000,
        1001 * 999_999_998,
    )


@pytest.mark.parametrize(
    "ended",
    [
        refused(),
        refused(model="made up by a caller", tenant=by("acme"), status=404, code="model_not_found"),
        trail(usage=None, outcome=Outcome.REFUSED, status=503, code="queue_full", attempts=0),
        trail(usage=None, outcome=Outcome.UPSTREAM_FAILED, status=500),
        trail(usage=None, operation="tokenize"),
        trail(usage=None, operation="models", model="", pool="", pod=""),
    ],
    ids=lambda ended: f"{ended.operation}-{ended.status}-{ended.code}",
)
def test_a_request_without_tokens_makes_no_row_and_is_counted_apart(ended: Trail) -> None:
    ledger = summed([ONE, line(ended)])
    assert ledger.rows() == [ROW]
    assert (ledger.without_tokens, ledger.strange) == (1, 0)


def test_names_that_callers_make_up_make_no_rows_however_many() -> None:
    ledger = Ledger(max_rows=1)
    ledger.add(line(refused(model=f"m-{number}", tenant=by("acme"))) for number in range(50))
    assert (ledger.rows(), ledger.without_tokens) == ([], 50)


def test_rows_are_bounded_and_the_bound_says_what_to_do() -> None:
    ledger = Ledger(max_rows=3)
    ledger.add(line(trail(model=f"m{number}")) for number in (0, 1, 2, 0, 1, 2))
    with pytest.raises(TooManyRows, match="more than 3 rows of day, tenant and model: give fewer days at once"):
        ledger.add([line(trail(model="m3"))])


# What has wrapped a line.

WRAPPED = {
    "as written": ONE,
    "without its line end": ONE.rstrip(),
    "with another line end": ONE.rstrip() + b"\r\n",
    "container runtime": b"2026-11-29T12:00:00.250123456Z stdout F " + ONE,
    "container runtime, in its own zone": b"2026-11-30T01:00:00.25+13:00 stdout F " + ONE,
    "docker": b'{"log":%b,"stream":"stdout","time":"2026-11-29T12:00:00.25Z"}\n' % json.dumps(ONE.decode()).encode(),
    "kubectl logs --timestamps": b"2026-11-29T12:00:00.250123456Z " + ONE,
    "kubectl logs --prefix": b"[pod/poolgate-7d4b9c-x2x4q/gateway] " + ONE,
    "kubectl logs --prefix --timestamps": b"[pod/poolgate-0/gateway] 2026-11-29T12:00:00.2Z " + ONE,
    "docker compose logs": b"gateway-1     | " + ONE,
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_line_is_read_however_it_was_kept(wrapped: bytes) -> None:
    ledger = summed([wrapped])
    assert (ledger.rows(), ledger.strange) == ([ROW], 0)


def changed(**more: Any) -> bytes:
    """An access line in which something is otherwise; None: is missing."""
    told = json.loads(ONE) | more
    return json.dumps({name: value for name, value in told.items() if value is not ...}).encode() + b"\n"


STRANGE = {
    "empty": b"\n",
    "words": b"INFO poolgate: drained\n",
    "cut at its end": ONE[:-9],
    "cut at its beginning": ONE[9:],
    "two in one": ONE.rstrip() + ONE,
    "no object": b"[" + ONE.rstrip() + b"]\n",
    "other JSON": b'{"level":"info","msg":"hello"}\n',
    "nested": b'{"message":' + ONE.rstrip() + b"}\n",
    "deep": b'{"x":' + b"[" * 50_000,
    "not UTF-8": ONE.replace(b"acme", b"ac\xffme"),
    "half a surrogate": ONE.replace(b"acme", rb"ac\ud800me"),
    "in a log line": b"WARNING poolgate: " + ONE,
    "of stderr": b"2026-11-29T12:00:00.25Z stderr F " + ONE,
    "of stderr, docker": json.dumps({"log": ONE.decode(), "stream": "stderr"}, separators=(",", ":")).encode(),
    "half a line of a runtime": b"2026-11-29T12:00:00.25Z stdout P " + ONE,
    "docker in docker": json.dumps(
        {"log": json.dumps({"log": ONE.decode(), "stream": "stdout"}), "stream": "stdout"}, separators=(",", ":")
    ).encode(),
    "for eyes": b"\x1b[32m200 completed\x1b[0m chat  m\n",
    "no time": changed(ts=...),
    "no model": changed(model=...),
    "no tokens told": changed(prompt_tokens=...),
    "no such day": changed(ts="2026-02-30T12:00:00.000Z"),
    "no zone": changed(ts="2026-11-29T12:00:00.000"),
    "another zone": changed(ts="2026-11-29T12:00:00.000+02:00"),
    "a number as its time": changed(ts=1795953600),
    "negative": changed(prompt_tokens=-1),
    "a part of a token": changed(completion_tokens=1.5),
    "tokens as text": changed(cached_tokens="16"),
    "an unknown source": changed(usage_source="guessed"),
    "a name of no end": changed(model="x" * 5000),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
def test_any_other_line_is_left_out_and_counted(strange: bytes) -> None:
    ledger = summed([ONE, strange, ONE])
    assert ledger.rows() == [ROW._replace(requests=2, prompt_tokens=68, completion_tokens=20, cached_tokens=32)]
    assert (ledger.strange, ledger.without_tokens) == (1, 0)


def test_a_line_of_a_later_version_is_read() -> None:
    assert rows(changed(surprise={"deep": [1, 2]})) == [ROW]


# Files.


def test_lines_come_from_a_file_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"a\n\nb\r\n" + ONE + b"\xff\x00 end")
    assert list(lines_of(str(file))) == [b"a\n", b"\n", b"b\r\n", ONE, b"\xff\x00 end"]
    file.write_bytes(b"")
    assert list(lines_of(str(file))) == []


@pytest.mark.parametrize("name", ["log.gz", "0.log.20261129-120000"])
def test_gzip_is_unpacked_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    # Two members, as `cat` makes of two rotated logs.
    file.write_bytes(gzip.compress(ONE + b"half ") + gzip.compress(b"a line\n" + ONE))
    assert list(lines_of(str(file))) == [ONE, b"half a line\n", ONE]


@pytest.mark.parametrize("length", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 5 * MAX_LINE_BYTES])
@pytest.mark.parametrize("packed", [True, False])
def test_a_line_too_long_to_hold_comes_out_empty_and_the_next_one_whole(
    tmp_path: Path, length: int, packed: bool
) -> None:
    file = tmp_path / "log"
    content = b"x" * (length - 1) + b"\n" + ONE
    file.write_bytes(gzip.compress(content) if packed else content)
    first, second = lines_of(str(file))
    assert first == (content[:length] if length <= MAX_LINE_BYTES else b"")
    assert second == ONE


def test_a_last_line_without_end_is_a_line_at_any_length(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for length in (MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1):
        file.write_bytes(ONE + b"x" * length)
        first, second = lines_of(str(file))
        assert first == ONE
        assert second == (b"x" * length if length < MAX_LINE_BYTES else b"")


def test_the_longest_line_the_gateway_writes_is_read(tmp_path: Path) -> None:
    long = trail(tenant=by("\N{CJK UNIFIED IDEOGRAPH-6A21}" * 64), model="\x01" * 256, finish="\\" * 256)
    file = tmp_path / "log"
    # Docker writes each escape once more.
    kept = b'{"log":%b,"stream":"stdout"}\n' % json.dumps(line(long).decode()).encode()
    assert len(kept) * 10 < MAX_LINE_BYTES
    file.write_bytes(kept)
    (row,) = rows(*lines_of(str(file)))
    assert row.model == "\x01" * 256


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    for name, reason in (("nowhere", "No such file or directory"), (".", "Is a directory")):
        with pytest.raises(Unreadable) as told:
            list(lines_of(str(tmp_path / name)))
        assert str(told.value) == f"cannot read {tmp_path / name}: {reason}"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-9],
        lambda packed: packed[:12],
        lambda packed: packed[:40] + b"\x00\xff" * 8 + packed[56:],
        lambda packed: packed + b"and more",
        lambda packed: packed[:-8] + bytes(8),
    ],
    ids=["its end is missing", "its beginning alone", "changed inside", "more behind it", "a wrong checksum"],
)
def test_a_broken_gzip_file_is_no_sum_of_its_first_part(tmp_path: Path, spoil: Any) -> None:
    file = tmp_path / "log.gz"
    file.write_bytes(spoil(gzip.compress(os.urandom(100_000).hex().encode())))
    with pytest.raises(Unreadable, match=r"cannot read .*log\.gz: \w"):
        list(lines_of(str(file)))


# How it is shown.


def shown(told: list[Row], width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(page(told))
    return out.getvalue()


def cells(text: str, word: str) -> str:
    """The one line with this word, without its blanks."""
    (found,) = [shown_line for shown_line in text.splitlines() if word in shown_line]
    return " ".join(found.split())


def test_the_table_has_every_row_and_the_total() -> None:
    told = [
        Row("2026-11-28", "acme", "m", 1203, 812_004, 301_220, 500_112, 3, 900, 412),
        Row("2026-11-29", "zeta", "m", 1, 2, 3, 0, 0, 0, 0),
    ]
    text = shown(told)
    assert cells(text, "tenant") == "day tenant model requests prompt cached completion estimated"
    assert cells(text, "acme") == "2026-11-28 acme m 1,203 812,004 500,112 301,220 1,312"
    assert cells(text, "zeta") == "2026-11-29 zeta m 1 2 0 3 0"
    assert cells(text, " total ") == "total 1,204 812,006 500,112 301,223 1,312"


def test_a_table_of_nothing_has_a_total_of_nothing() -> None:
    assert cells(shown([]), " total ") == "total 0 0 0 0 0"


def test_on_a_narrow_terminal_names_are_folded_and_numbers_are_not() -> None:
    text = shown([ROW._replace(tenant="a-team-with-a-name", model="org/some-model-8b", prompt_tokens=123_456_789)], 80)
    assert "123,456,789" in text
    assert "2026-11-29" in text


def test_a_very_long_table_is_cut_and_its_total_is_not() -> None:
    told = [ROW._replace(model=f"m{number:05d}") for number in range(ROWS_SHOWN + 1234)]
    text = shown(told)
    assert f"m{ROWS_SHOWN - 1:05d}" in text
    assert f"m{ROWS_SHOWN:05d}" not in text
    assert cells(text, " total  ").startswith(f"total {len(told):,} ")
    assert "and 1,234 more rows, which the total has: see them with --csv or --json" in text


def test_a_table_that_fits_says_nothing_of_more() -> None:
    assert "more" not in shown([ROW._replace(model=f"m{number}") for number in range(ROWS_SHOWN)])


def test_names_are_neither_markup_nor_steer_the_terminal() -> None:
    text = shown([ROW._replace(tenant="[red]a[/red]", model="\x1b[2Jm")])
    assert "[red]a[/red]" in text
    assert "\x1b" not in text


def test_what_is_left_out_is_told_in_words() -> None:
    assert list(notes(0, 0)) == []
    assert list(notes(1, 1)) == [
        "1 line is no access line: left out",
        "1 request without tokens, such as refused ones: left out",
    ]
    assert list(notes(1234, 2)) == [
        "1,234 lines are no access lines: left out",
        "2 requests without tokens, such as refused ones: left out",
    ]


def parsed(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_csv_is_as_rfc_4180_has_it() -> None:
    text = csv_of([ROW])
    assert text == (
        "day,tenant,model,requests,prompt_tokens,completion_tokens,cached_tokens,"
        "estimated_requests,estimated_prompt_tokens,estimated_completion_tokens\r\n"
        "2026-11-29,acme,org/m,1,34,10,16,0,0,0\r\n"
    )
    assert parsed(csv_of([])) == [list(Row._fields)]


@pytest.mark.parametrize("name", ['a,"b"', "a\nb", "a\r\nb", "", " ", "é模", "m;n", "a=b", "1", "'m"])
def test_csv_gives_back_any_other_name_as_it_is(name: str) -> None:
    _, row = parsed(csv_of([ROW._replace(tenant=name, model=name)]))
    assert row[1:3] == [name, name]


@pytest.mark.parametrize("beginning", "=+-@\t\r\n＝＋－＠")
def test_no_name_is_a_formula_to_a_spreadsheet(beginning: str) -> None:
    name = f'{beginning}HYPERLINK("http://x","y")'
    _, row = parsed(csv_of([ROW._replace(tenant=name, model=name)]))
    assert row[1:3] == [f"'{name}", f"'{name}"]
