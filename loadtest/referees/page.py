"""What was found, as one page and one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtest.referees.figures import E2E, GAP, TPOT, TTFT, Figures
from loadtest.referees.judge import DISTURBED, FLOOR_MS, TOLERANCE, Row, Word, compared, other_load
from loadtest.report.tables import table
from loadtest.report.where import Host
from loadtest.report.wording import digits

OURS = "ours"
HEAD = f"""\
# Referees

<!-- Written by loadtest/referees, which plays the loads. Change that, not this page. -->

Do other people's generators find what ours finds? Each played the same prompts, for answers of the same lengths, at the
same rate or as many at once, streamed, through a gateway before simulated pods: one after the other, each before pods
and a gateway that were started for it, all in each round. Then what they print is compared with what
[our report](../load-tests.md) prints.

Two figures agree if they are at most {TOLERANCE:.0%} apart, or two times at most {FLOOR_MS:g} ms, which is the noise of
such clocks. p99 is not judged: of 150 requests it is the slowest but one. Nor is a p90 of which one generator's own
rounds are further apart than that; medians and rates so unsteady would be no agreement.

{DISTURBED} is not judged: a single gap is as long as the host lets it be, and a referee is a dozen processes that delay
the pods and the gateway on the same cores. That was tried: while AIPerf plays, ours finds gaps as long as AIPerf does.
"""
MEANING = f"""\
## What the words mean

| | ours | AIPerf | GuideLLM |
|---|---|---|---|
| {TTFT} | from the moment it was meant to be sent to the first content | from before a connection is taken | from the \
moment the head is written |
| {TPOT} | from the first content to the end, by the tokens after the first | "inter token latency": to the \
last content | "ITL": to the last content; its percentiles count a request once for each token |
| {GAP} | each gap between two events with content | "inter chunk latency" | none |
| {E2E} | from the moment it was meant to be sent to the last byte | "request latency": to the last content | "request \
latency": to the end of the stream |
| rates | from the start to the last answer | from the first request to the last answer | the same |
| percentiles | a time that somebody had (nearest rank) | between two of them | nearest rank |
"""


@dataclass(frozen=True)
class Played:
    """A load, and what each player found in it, round by round."""

    load: str
    what: str
    """In words: rate and length."""
    found: Mapping[str, Sequence[Figures]]

    @property
    def referees(self) -> Sequence[str]:
        return [name for name in self.found if name != OURS]

    def rows(self, referee: str) -> Sequence[Row]:
        return compared(self.found[OURS], self.found[referee])

    def faults(self, referee: str) -> Sequence[str]:
        return other_load(self.found[OURS], self.found[referee])


def agreed(played: Sequence[Played]) -> bool:
    """All of them, in all that is judged; and there was something to judge."""
    return bool(played) and all(
        each.referees
        and all(not each.faults(name) and all(row.holds for row in each.rows(name)) for name in each.referees)
        for each in played
    )


def answer(played: Sequence[Played]) -> str:
    lines = []
    for each in played:
        for name in each.referees:
            if faults := each.faults(name):
                lines.append(f"{name}, {each.load}: it did not play the same load ({'; '.join(faults)}).")
                continue
            rows = [row for row in each.rows(name) if row.word is not Word.TOLD]
            by_word = {word: [row.measure for row in rows if row.word is word] for word in Word}
            agree = len(by_word[Word.AGREE]) + len(by_word[Word.FLOOR])
            parts = [f"{agree} of {len(rows)} agree"]
            if different := by_word[Word.DIFFER]:
                parts.append(f"differ: {', '.join(different)}")
            if unsteady := by_word[Word.UNSTEADY]:
                parts.append(f"too unsteady to be judged: {', '.join(unsteady)}")
            lines.append(f"{name}, {each.load}: {'; '.join(parts)}.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def figures_table(played: Sequence[Played]) -> str:
    """Means of the rounds, and how far each referee is from ours."""
    names = list(dict.fromkeys(name for each in played for name in each.referees))
    head = ["load", "", OURS, "its rounds apart"] + [word for name in names for word in (name, "apart")]
    rows = []
    for each in played:
        by_name = {name: {row.measure: row for row in each.rows(name)} for name in each.referees}
        for measure in dict.fromkeys(measure for rows_of in by_name.values() for measure in rows_of):
            own = next(rows_of[measure] for rows_of in by_name.values() if measure in rows_of)
            cells = [each.load, measure, _value(measure, own.ours), f"{own.between_own:.1%}"]
            for name in names:
                row = by_name.get(name, {}).get(measure)
                cells += ["–", ""] if row is None else [_value(measure, row.theirs), _apart(row)]
            rows.append(cells)
    return table(head, rows)


def rounds_table(played: Sequence[Played]) -> str:
    """Each round's medians and rates."""
    head = ["load", "round", "", "whole", f"{TTFT} p50", f"{TPOT} p50", f"{E2E} p50", "requests/s", "output tokens/s"]
    rows = []
    for each in played:
        for number in range(min(len(some) for some in each.found.values())):
            for name, some in each.found.items():
                found = some[number]
                times = [_value("", found.times[which].p50) + " ms" for which in (TTFT, TPOT, E2E)]
                rates = [digits(found.requests_per_second), digits(found.tokens_per_second)]
                rows.append([each.load, str(number + 1), name, f"{found.whole:,}", *times, *rates])
    return table(head, rows)


def _value(measure: str, value: float) -> str:
    unit = "" if measure.endswith("/s") or not measure else " ms"
    return (f"{value:,.0f}" if value >= 1000 else f"{value:.4g}") + unit


def _apart(row: Row) -> str:
    text = f"{row.apart:+.1%}"
    match row.word:
        case Word.DIFFER:
            return f"**{text}**"
        case Word.FLOOR:
            return f"{text} ({abs(row.theirs - row.ours):.2f} ms)"
        case Word.TOLD:
            return f"{text}, not judged"
        case Word.UNSTEADY:
            return f"{text}, unsteady: its rounds {row.between_theirs:.1%}"
        case _:
            return text


def page(
    played: Sequence[Played],
    *,
    commit: str,
    host: Host,
    begun: str,
    versions: Mapping[str, str],
    command: str,
    notes: Sequence[str] = (),
) -> str:
    return "\n".join(_page(played, commit, host, begun, versions, command, notes)).rstrip() + "\n"


def _page(
    played: Sequence[Played],
    commit: str,
    host: Host,
    begun: str,
    versions: Mapping[str, str],
    command: str,
    notes: Sequence[str],
) -> Iterator[str]:
    yield HEAD
    yield f"**{'They agree.' if agreed(played) else 'They do not agree.'}**\n"
    yield answer(played)
    yield "\n".join(f"- `{each.load}`: {each.what}" for each in played) + "\n"
    yield "## Figures\n"
    yield figures_table(played)
    yield MEANING
    yield "## Each round\n"
    yield rounds_table(played)
    yield "## How it was run\n"
    yield f"*Wants two idle cores.*\n\n```sh\n{command}\n```\n"
    facts = (
        f"commit {commit}, {begun}",
        f"{host.name}, kernel {host.kernel}, Python {host.python}",
        f"load average {host.load[0]:g} before and {host.load[1]:g} after",
        *(f"{name}: {version}" for name, version in versions.items()),
        *notes,
        *_caveats(commit, host),
    )
    yield "\n".join(f"- {fact}" for fact in facts) + "\n"


def _caveats(commit: str, host: Host) -> Iterator[str]:
    if "not committed" in commit or commit == "unknown":
        yield "What was measured is not exactly a commit."
    if host.load[0] > host.cores / 2:
        yield "The host had other work when it began: all of them were disturbed by it, one after the other."
