"""The bench of hostile clients makes each of its attacks on a real gateway, and tells what came of it."""

from collections import Counter

import pytest

from loadtest.bench import hostile
from loadtest.bench.hostile import ATTACKS, FULL, Row, Scale, Seen, main, outcomes_in, status_in, table

TINY = Scale(seconds=0.6, slow=8, idle=8, header_bytes=2_000_000, readers=3, names=50)


def test_the_full_run_is_as_large_as_it_is_said_to_be() -> None:
    assert Scale(20.0, slow=2_000, idle=10_000, header_bytes=96_000_000, readers=100, names=1_000_000) == FULL


def test_every_attack_is_made_and_what_it_was_told_is_written_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile, "QUICK", TINY)
    monkeypatch.setattr(hostile, "FILL_SECONDS", 0.3)
    monkeypatch.setattr(hostile, "AFTER_SECONDS", 0.3)
    assert main(["--quick"]) == 0
    said = capsys.readouterr().out
    rows = {
        named.title(TINY): line for named in ATTACKS.values() for line in said.splitlines() if named.title(TINY) in line
    }
    assert len(rows) == len(ATTACKS)
    told = {title: row.split(" | ")[-1] for title, row in rows.items()}
    assert "still open at the end: 8" in told["8 slow connections"]
    assert "still open at the end: 8" in told["8 idle connections"]
    assert "431: 1" in told["2 MB of headers on one connection"]
    assert "200: 3" in told["3 readers, 1 B/s of 80 MB each"]
    assert "404: 50" in told["50 names of models"]


def test_an_answer_s_status_is_read_from_its_first_bytes() -> None:
    assert status_in(b"HTTP/1.1 408 Request Timeout\r\n") == "408"
    assert status_in(b"") == "closed without a word"


def test_outcomes_are_added_up_over_models_and_operations() -> None:
    text = (
        b"# HELP poolgate_requests_total x\n"
        b'poolgate_requests_total{model="a",operation="chat",outcome="completed",status="200"} 3.0\n'
        b'poolgate_requests_total{model="b",operation="chat",outcome="completed",status="200"} 4.0\n'
        b'poolgate_requests_total{model="b",operation="chat",outcome="client_left",status="200"} 1.0\n'
    )
    assert outcomes_in(text) == Counter(completed=7, client_left=1)


def test_the_table_has_a_line_for_each_attack_with_before_and_during() -> None:
    seen = Seen(p50=0.5, p99=1.25, most_rss=64 << 20, cpu_share=0.04)
    row = Row("8 slow", seen, seen._replace(p99=2.5), 60 << 20, 61 << 20, (10, 10), (100, 100), {"408": 8})
    assert table([row]).splitlines()[-1] == (
        "| 8 slow | 0.50 / 1.25 | 0.50 / 2.50 | 60.0 | 64.0 | 61.0 | 4.0% | 4.0% | 10 | 10 | 408: 8 |"
    )
