"""The answers to a scenario's question: what was expected, what came, and whether that held.

Each expectation of `loadtest.load.plan.EXPECTATIONS` has one judge here: pure, from the records, the marks and what was
seen of the stand. A judge that has nothing to go by says None, never yes.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, NamedTuple

from loadtest.invariants.errors import OURS
from loadtest.load.arrivals import OpenLoop
from loadtest.load.plan import EXPECTATIONS, Fault, Objectives, Scenario
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Step
from loadtest.percentiles import percentile
from loadtest.report.document import Verdict
from loadtest.report.measures import gaps, is_limited, meets, ttft
from loadtest.report.side import Mark
from loadtest.stand.watching import Watched

SETTLE_SECONDS: Final = 3.0
"""So long after something befell a pod its share is not judged yet."""
MOST_SETTLING: Final = 0.2
"""... but never more than this of the run."""
SHOWN: Final = 3
UNITS: Final = {"seconds": " s", "ms": " ms", "kib": " KiB", "mib": " MiB"}


class Finding(NamedTuple):
    words: str
    held: bool | None


@dataclass(frozen=True)
class Evidence:
    scenario: Scenario
    records: Sequence[Record]
    """Of what went through the gateways."""
    direct: Sequence[Record] = ()
    """Of what went past them."""
    marks: Sequence[Mark] = ()
    watched: Watched | None = None
    """None: the gateway was there before, and nothing else can be seen."""
    unfinished: Sequence[str] = ()
    """Faults that were not over when the load was."""


def judged(evidence: Evidence) -> list[Verdict]:
    """The objectives first, then what is expected beside them, as the file has it."""
    return [
        *_objectives(evidence),
        *_faults(evidence),
        *(_judged(evidence, *each) for each in evidence.scenario.expect.items()),
    ]


def _judged(evidence: Evidence, name: str, value: Any) -> Verdict:
    bound = "" if value is True else f": {_shown(value, _unit(name))}"
    finding = JUDGES[name](evidence, value)
    return Verdict(f"{EXPECTATIONS[name].meaning}{bound}", finding.words, finding.held)


def _shown(value: Any, unit: str) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each, unit)}" for name, each in value.items())
    return f"{value:g}{unit}"


def _unit(name: str) -> str:
    """An expectation's name bears it."""
    return next((unit for word, unit in UNITS.items() if word in name.split("_")), "")


# --- the objectives -------------------------------------------------------------------------------------------


def _objectives(evidence: Evidence) -> list[Verdict]:
    told, records = evidence.scenario.objectives, _asked_of(evidence)
    each = [good for record in records if (good := meets(record, told)) is not None]
    words = [f"{name} {value:g} ms" for name, value in _named(told)]
    within = f" within {', '.join(words)}" if words else ""
    share = sum(each) / len(each) if each else 0.0
    failed = [record for record in records if not _is_fine(record)]
    late = sorted(record.own_lateness for record in evidence.records)
    late_ms = 1e3 * percentile(late, 0.99)
    return [
        Verdict(
            f"at least {told.goodput:.2%} of the requests whole{within}",
            f"{share:.2%} of {len(each)}",
            share >= told.goodput if each else None,
        ),
        Verdict(
            f"at most {told.errors:.2%} of the requests failed",
            f"{len(failed)} of {len(records)}{_how(failed)}",
            len(failed) <= told.errors * len(records) if records else None,
        ),
        Verdict(
            f"the generator kept up: 99 in 100 requests left at most {told.late_ms:g} ms late",
            f"{late_ms:.1f} ms",
            late_ms <= told.late_ms if late else None,
        ),
    ]


def _asked_of(evidence: Evidence) -> Sequence[Record]:
    """The requests that must keep to the objectives: all, or those of the rates that they are for."""
    most = evidence.scenario.expect.get("up_to_per_second")
    if most is None:
        return evidence.records
    steps = {place for place, step in enumerate(_steps(evidence)) if step.rate is not None and step.rate <= most}
    return [record for record in evidence.records if record.planned.step in steps]


def _steps(evidence: Evidence) -> Sequence[Step]:
    arrivals = evidence.scenario.arrivals
    return arrivals.steps(evidence.scenario.seconds) if isinstance(arrivals, OpenLoop) else ()


def up_to_rate(evidence: Evidence, most: float) -> Finding:
    """Each rate by itself: a good one must not hide a bad one."""
    told = evidence.scenario.objectives
    words, held = [], []
    for place, step in enumerate(_steps(evidence)):
        records = [record for record in evidence.records if record.planned.step == place]
        each = [good for record in records if (good := meets(record, told)) is not None]
        if step.rate is None or not each:
            continue
        share = sum(each) / len(each)
        words.append(f"{share:.1%} at {step.rate:g}")
        if step.rate <= most:
            held.append(share >= told.goodput)
    return Finding(f"whole and in time: {', '.join(words)} a second", all(held) if held else None)


def _faults(evidence: Evidence) -> list[Verdict]:
    """Without its fault a scenario's other answers mean nothing."""
    if not evidence.scenario.faults:
        return []
    expected, unfinished = "every fault was made, and over before the load", evidence.unfinished
    if evidence.watched is None:
        return [Verdict(expected, "no fault was made", None)]
    words = f"not over: {', '.join(unfinished)}" if unfinished else f"{len(evidence.marks)} marks"
    return [Verdict(expected, words, not unfinished)]


def _named(bounds: Objectives) -> Iterable[tuple[str, float]]:
    for name, value in (("TTFT", bounds.ttft_ms), ("TPOT", bounds.tpot_ms), ("end to end", bounds.e2e_ms)):
        if value is not None:
            yield name, value


# --- how answers ended ----------------------------------------------------------------------------------------


def _is_fine(record: Record) -> bool:
    """Whole, left as planned, or refused by the caller's own limit."""
    return record.ending in (Ending.WHOLE, Ending.LEFT) or is_limited(record)


def _how(records: Sequence[Record]) -> str:
    """The most frequent ways."""
    counted = Counter(
        " ".join(filter(None, (each.ending.value, str(each.status or ""), each.code))) for each in records
    )
    told = [f"{count} {words}" for words, count in counted.most_common(SHOWN)]
    return f" ({', '.join(told)}{', …' if len(counted) > SHOWN else ''})" if told else ""


def _none_of(records: Sequence[Record], wrong: Callable[[Record], bool]) -> Finding:
    found = [record for record in records if wrong(record)]
    return Finding(f"{len(found)} of {len(records)} did not{_how(found)}", not found if records else None)


def only_whole_endings(evidence: Evidence, value: Any) -> Finding:
    return _none_of(evidence.records, lambda record: record.ending not in (Ending.WHOLE, Ending.LEFT))


def only_told_endings(evidence: Evidence, value: Any) -> Finding:
    untold = (Ending.CUT, Ending.REFUSED, Ending.TIMEOUT)
    return _none_of(evidence.records, lambda record: record.ending in untold)


def only_codes(evidence: Evidence, value: Any) -> Finding:
    told = [record for record in evidence.records if record.ending in (Ending.ERROR, Ending.TOLD)]
    if not told:
        return Finding("no error was told", True if evidence.records else None)
    return _none_of(told, lambda record: record.code not in OURS)


def refusals_say_when(evidence: Evidence, value: Any) -> Finding:
    refused = [record for record in evidence.records if record.status in (429, 503)]
    if not refused:
        return Finding("nobody was refused", None)
    return _none_of(refused, lambda record: record.retry_after is None)


# --- limits ---------------------------------------------------------------------------------------------------


class Admitted(NamedTuple):
    """Of a key with a limit: how many were let in, and how many a bucket of that limit lets in of the same requests."""

    key: str
    burst: int
    let_in: int
    ideal: int
    asked: int


def admitted(evidence: Evidence) -> list[Admitted]:
    """Keys that asked for more than they may have."""
    found = []
    for key, requests in _by_key(evidence.records).items():
        per_minute = evidence.scenario.stand.keys.get(key, {}).get("requests_per_minute")
        if not per_minute:
            continue
        ideal = let_in_by_bucket([record.sent_at for record in requests], per_minute)
        if ideal < len(requests):
            let_in = sum(not is_limited(record) for record in requests)
            found.append(Admitted(key, per_minute, let_in, ideal, len(requests)))
    return found


def let_in_by_bucket(times: Sequence[float], per_minute: float) -> int:
    """How many of requests at these times a full bucket lets in: `per_minute` at once, and one each minute's part."""
    room, before, count = float(per_minute), times[0] if times else 0.0, 0
    for at in times:
        room = min(per_minute, room + (at - before) * per_minute / 60)
        before = at
        if room >= 1:
            room -= 1
            count += 1
    return count


def admitted_over_limit(evidence: Evidence, most: float) -> Finding:
    return _against_the_bucket(evidence, most, lambda each: (each.let_in - each.ideal) / each.ideal, "too many")


def admitted_under_limit(evidence: Evidence, most: float) -> Finding:
    return _against_the_bucket(evidence, most, lambda each: (each.ideal - each.let_in) / each.ideal, "too few")


def _against_the_bucket(evidence: Evidence, most: float, wrong: Callable[[Admitted], float], word: str) -> Finding:
    keys = admitted(evidence)
    if not keys:
        return Finding("no key asked for more than its limit", None)
    worst = max(keys, key=wrong)
    let_in, ideal = sum(each.let_in for each in keys), sum(each.ideal for each in keys)
    words = (
        f"{let_in} let in, {ideal} by the arithmetic, {sum(each.asked for each in keys)} asked, {len(keys)} keys; "
        f"the worst has {max(wrong(worst), 0.0):.1%} {word} ({worst.let_in} for {worst.ideal})"
    )
    return Finding(words, wrong(worst) <= most)


def extra_bursts(evidence: Evidence, most: float) -> Finding:
    keys = admitted(evidence)
    if not keys:
        return Finding("no key asked for more than its limit", None)
    extra = {each.key: (each.let_in - each.ideal) / each.burst for each in keys}
    worst = max(extra, key=extra.__getitem__)
    return Finding(f"{max(extra[worst], 0.0):.2f} of a burst at most, {len(keys)} keys", extra[worst] <= most)


def true_waits(evidence: Evidence, within: float) -> Finding:
    """Of each key: who is let in was not answered before the time told, and the first who comes after it is let in;
    unless the place went to one who came before that one was answered.

    How long a request was under way before it was counted is not known: it is counted between its sending and the
    first byte of its answer, and neither verdict hangs on where.
    """
    early = late = checked = 0
    for requests in _by_key(evidence.records).values():
        admitted_ones = [record for record in requests if not is_limited(record)]
        let_in = [record.sent_at for record in admitted_ones]
        sent = [record.sent_at for record in requests]
        for record in requests:
            if not is_limited(record) or record.retry_after is None or record.ended_at is None:
                continue
            due = record.sent_at + record.retry_after
            first_after = bisect_left(sent, record.ended_at + record.retry_after + within)
            if first_after == len(sent):
                continue  # nobody came to see
            checked += 1
            later = admitted_ones[bisect_right(let_in, record.ended_at) :]
            early += any(_begun_at(each) < due - within for each in later)
            so_far = admitted_ones[: bisect_right(let_in, _over_at(requests[first_after]))]
            late += not any(_begun_at(each) >= due for each in so_far)
    if not checked:
        return Finding("no wait could be checked", None)
    return Finding(
        f"of {checked} waits that were told {late} were too short, {early} longer than they needed to be",
        not early and not late,
    )


def _begun_at(record: Record) -> float:
    return record.sent_at if (known := record.first_at or record.ended_at) is None else known


def _by_key(records: Sequence[Record]) -> Mapping[str, list[Record]]:
    """Each in order of sending."""
    found = defaultdict[str, list[Record]](list)
    for record in sorted(records, key=lambda each: each.sent_at):
        found[record.planned.key].append(record)
    return found


# --- keys -----------------------------------------------------------------------------------------------------


def share_of_key(evidence: Evidence, least: Mapping[str, float]) -> Finding:
    whole = {}
    for key in least:
        mine = [record for record in evidence.records if _is_of(record, key)]
        whole[key] = sum(record.ending in (Ending.WHOLE, Ending.LEFT) for record in mine) / len(mine) if mine else None
    return _at_least(whole, least, "{:.2%}")


def ttft_p95_of_key(evidence: Evidence, most: Mapping[str, float]) -> Finding:
    return _at_most({key: _ttft_ms(evidence, key, 0.95) for key in most}, most, "{:.0f} ms")


def ttft_p50_of_key_at_least(evidence: Evidence, least: Mapping[str, float]) -> Finding:
    return _at_least({key: _ttft_ms(evidence, key, 0.5) for key in least}, least, "{:.0f} ms")


def _ttft_ms(evidence: Evidence, key: str, share: float) -> float | None:
    times = sorted(time for record in evidence.records if _is_of(record, key) and (time := ttft(record)) is not None)
    return 1e3 * percentile(times, share) if times else None


def _is_of(record: Record, key: str) -> bool:
    """A mix's key with many callers stands for all of them: acme-0, acme-1 …"""
    name = record.planned.key
    return name == key or (name.startswith(f"{key}-") and name[len(key) + 1 :].isdigit())


def prefix_hits(evidence: Evidence, least: float) -> Finding:
    found = _cached_share(evidence.records)
    if found is None:
        return Finding("no answer told its cached tokens", None)
    return Finding(f"{found:.1%} of the prompt tokens", found >= least)


def prefix_hits_over_others(evidence: Evidence, least: Mapping[str, float]) -> Finding:
    shares = {
        key: _cached_share([record for record in evidence.records if _is_of(record, key)])
        for key in {entry.key for entry in evidence.scenario.mix}
    }
    if any(share is None for share in shares.values()):
        return Finding("not every key's answers told their cached tokens", None)
    times = {
        key: (shares[key] or 0.0) / max((shares[other] or 0.0) for other in shares if other != key) for key in least
    }
    words = ", ".join(f"{key} {share or 0.0:.1%}" for key, share in sorted(shares.items()))
    return Finding(f"cached: {words}", all(times[key] >= bound for key, bound in least.items()))


def _cached_share(records: Sequence[Record]) -> float | None:
    told = [record for record in records if record.prompt_tokens]
    if not told:
        return None
    return sum(record.cached_tokens or 0 for record in told) / sum(record.prompt_tokens or 0 for record in told)


# --- pods -----------------------------------------------------------------------------------------------------


def share_of_pod_at_most(evidence: Evidence, most: Mapping[str, float]) -> Finding:
    return _at_most({pod: _share_of_pod(evidence, pod) for pod in most}, most, "{:.1%}")


def share_of_pod_at_least(evidence: Evidence, least: Mapping[str, float]) -> Finding:
    return _at_least({pod: _share_of_pod(evidence, pod) for pod in least}, least, "{:.1%}")


def _share_of_pod(evidence: Evidence, pod: str) -> float | None:
    """Of its pool's requests: of all; of those under a fault of its own; or of those after it came back."""
    begin, end = _judged_time(evidence.scenario, evidence.marks, pod)
    pool = next(names for plan in evidence.scenario.stand.pods if pod in (names := plan.names))
    served = [record.pod for record in evidence.records if record.pod in pool and begin <= record.sent_at < end]
    return served.count(pod) / len(served) if served else None


def _judged_time(scenario: Scenario, marks: Sequence[Mark], pod: str) -> tuple[float, float]:
    settle = min(SETTLE_SECONDS, MOST_SETTLING * scenario.seconds)
    own = [fault for fault in scenario.faults if fault.pod == pod]
    if not own:
        return 0.0, math.inf
    fault: Fault = own[-1]
    if fault.what == "kill_pod":
        back = [mark.at for mark in marks if mark.what == f"{pod} back"]
        return (back[-1] + settle, math.inf) if back else (fault.at + settle, math.inf)
    return fault.at + settle, fault.at + (fault.seconds or math.inf)


def busiest_pod(evidence: Evidence, most: float) -> Finding:
    served = Counter(record.pod for record in evidence.records if record.pod)
    ratios = {}
    for plan in evidence.scenario.stand.pods:
        counts = [served[name] for name in plan.names]
        if sum(counts):
            ratios[plan.pool] = max(counts) / fmean(counts)
    if not ratios:
        return Finding("no answer named its pod", None)
    words = ", ".join(f"{pool} {ratio:.2f}" for pool, ratio in ratios.items())
    return Finding(f"{words} times the mean", max(ratios.values()) <= most)


def recovers(evidence: Evidence, within: float) -> Finding:
    """After each mark, until the next: what is sent so long after it must be fine. What still ran when the next one
    came is that one's."""
    if not evidence.marks:
        return Finding("nothing befell it", None)
    begins = [mark.at + within for mark in evidence.marks]
    ends = [*(mark.at for mark in evidence.marks[1:]), math.inf]
    later = [
        record
        for record in evidence.records
        if any(begin <= record.intended_at and _over_at(record) < end for begin, end in zip(begins, ends, strict=True))
    ]
    return _none_of(later, lambda record: not _is_fine(record)) if later else Finding("nobody asked so late", None)


def _over_at(record: Record) -> float:
    return record.sent_at if record.ended_at is None else record.ended_at


def leaving_seen(evidence: Evidence, within: float) -> Finding:
    """At no moment do the pods compute more requests than were open to their clients at any time since `within` before.

    Generous where requests are short, and sure where an answer that nobody hears goes on for long.
    """
    if evidence.watched is None:
        return _UNSEEN
    left = sum(record.ending is Ending.LEFT for record in evidence.records)
    sent = sorted(record.sent_at for record in evidence.records)
    ended = sorted(record.ended_at for record in evidence.records if record.ended_at is not None)
    worst, aborts = 0, 0
    for sample in evidence.watched.samples:
        computed = sum(load.in_flight for load in sample.pods.values() if load)
        aborts = max(aborts, sum(load.aborts for load in sample.pods.values() if load))
        heard = bisect_right(sent, sample.until) - bisect_left(ended, sample.at - within)
        worst = max(worst, computed - heard)
    if not left or not evidence.watched.samples:
        return Finding("nobody left", None)
    return Finding(
        f"{left} clients left, pods saw {aborts}; they never computed more than {worst} that nobody heard", worst <= 0
    )


# --- the gateways ---------------------------------------------------------------------------------------------

_UNSEEN: Final = Finding("a gateway that was there before cannot be looked into", None)


def added_p50(evidence: Evidence, most: float) -> Finding:
    return _added(evidence, 0.5, most)


def added_p99(evidence: Evidence, most: float) -> Finding:
    return _added(evidence, 0.99, most)


def _added(evidence: Evidence, share: float, most: float) -> Finding:
    through, past = (
        sorted(time for record in records if (time := ttft(record)) is not None)
        for records in (evidence.records, evidence.direct)
    )
    if not through or not past:
        return Finding("nothing went past the gateway", None)
    with_it, without = 1e3 * percentile(through, share), 1e3 * percentile(past, share)
    return Finding(
        f"{with_it - without:.2f} ms: {with_it:.2f} ms through it, {without:.2f} ms past it", with_it - without <= most
    )


def in_flight_at_end(evidence: Evidence, most: float) -> Finding:
    if evidence.watched is None or evidence.watched.in_flight_at_end is None:
        return _UNSEEN
    held = evidence.watched.in_flight_at_end
    return Finding(f"{held:g}, in queues and at pods too", held <= most)


def memory_growth(evidence: Evidence, most: float) -> Finding:
    if evidence.watched is None:
        return _UNSEEN
    found = {}
    for gateway in {name for sample in evidence.watched.samples for name in sample.memory_mib}:
        sizes = [sample.memory_mib[gateway] for sample in evidence.watched.samples if gateway in sample.memory_mib]
        tenth = len(sizes) // 10
        if tenth:
            found[gateway] = fmean(sizes[-tenth:]) - fmean(sizes[:tenth])
    if not found:
        return Finding("too short to tell", None)
    words = ", ".join(f"{name} {grown:+.1f} MiB" for name, grown in sorted(found.items()))
    return Finding(words, max(found.values()) <= most)


def kib_per_stream(evidence: Evidence, most: float) -> Finding:
    """Resident memory at the peak over that before the first, by the streams that were open then."""
    if evidence.watched is None or not evidence.watched.samples:
        return _UNSEEN
    samples = evidence.watched.samples
    before = sum(samples[0].memory_mib.values())
    most_open, at = max((_open_at(evidence.records, sample.at), sample.at) for sample in samples)
    peak = max(sum(sample.memory_mib.values()) for sample in samples if sample.at <= at)
    if not most_open:
        return Finding("no stream was open", None)
    each = (peak - before) * 1024 / most_open
    return Finding(f"{each:.1f} KiB, with {most_open} open", each <= most)


def _open_at(records: Sequence[Record], at: float) -> int:
    return sum(record.sent_at <= at < (record.ended_at or math.inf) for record in records)


def itl_p99(evidence: Evidence, most: float) -> Finding:
    found = sorted(gaps(evidence.records))
    if not found:
        return Finding("no stream had two tokens", None)
    value = 1e3 * percentile(found, 0.99)
    return Finding(f"{value:.1f} ms over {len(found)} gaps", value <= most)


# --- Redis ----------------------------------------------------------------------------------------------------


def always_in_redis(evidence: Evidence, value: Any) -> Finding:
    if evidence.watched is None or evidence.watched.times_by_itself is None:
        return Finding("no Redis to be looked into", None)
    times = evidence.watched.times_by_itself
    return Finding("always" if not times else f"{times} times a replica counted by itself", not times)


def redis_again(evidence: Evidence, within: float) -> Finding:
    back = _at(evidence.marks, "Redis back")
    if back is None or evidence.watched is None:
        return Finding("it was never away", None)
    if evidence.watched.mode_back_at is None:
        return Finding("not before the end", False)
    took = evidence.watched.mode_back_at - back
    return Finding(f"{took:.1f} s", took <= within)


def ttft_without_redis(evidence: Evidence, most: float) -> Finding:
    gone, back = _at(evidence.marks, "Redis killed"), _at(evidence.marks, "Redis back")
    if gone is None:
        return Finding("it was never away", None)
    end = math.inf if back is None else back
    times = sorted(
        time for record in evidence.records if gone <= record.intended_at < end and (time := ttft(record)) is not None
    )
    if not times:
        return Finding("nobody was answered while it was away", False)
    value = 1e3 * percentile(times, 0.99)
    return Finding(f"{value:.0f} ms over {len(times)} answers", value <= most)


def _at(marks: Sequence[Mark], what: str) -> float | None:
    return next((mark.at for mark in marks if mark.what == what), None)


# --- by name --------------------------------------------------------------------------------------------------


def _at_most(found: Mapping[str, float | None], bounds: Mapping[str, float], form: str) -> Finding:
    return _compared(found, form, {name: value is not None and value <= bounds[name] for name, value in found.items()})


def _at_least(found: Mapping[str, float | None], bounds: Mapping[str, float], form: str) -> Finding:
    return _compared(found, form, {name: value is not None and value >= bounds[name] for name, value in found.items()})


def _compared(found: Mapping[str, float | None], form: str, held: Mapping[str, bool]) -> Finding:
    words = ", ".join(f"{name} {'unknown' if value is None else form.format(value)}" for name, value in found.items())
    unknown = any(value is None for value in found.values())
    return Finding(words, None if unknown else all(held.values()))


Judge = Callable[[Evidence, Any], Finding]
JUDGES: Final[Mapping[str, Judge]] = {
    "up_to_per_second": up_to_rate,
    "only_whole_endings": only_whole_endings,
    "only_told_endings": only_told_endings,
    "only_codes": only_codes,
    "refusals_say_when": refusals_say_when,
    "admitted_over_limit_at_most": admitted_over_limit,
    "admitted_under_limit_at_most": admitted_under_limit,
    "extra_bursts_at_most": extra_bursts,
    "always_in_redis": always_in_redis,
    "true_waits_within_seconds": true_waits,
    "share_of_key_at_least": share_of_key,
    "ttft_p95_of_key_ms": ttft_p95_of_key,
    "ttft_p50_of_key_at_least_ms": ttft_p50_of_key_at_least,
    "share_of_pod_at_most": share_of_pod_at_most,
    "share_of_pod_at_least": share_of_pod_at_least,
    "busiest_pod_at_most": busiest_pod,
    "recovers_within_seconds": recovers,
    "leaving_seen_within_seconds": leaving_seen,
    "prefix_hits_at_least": prefix_hits,
    "prefix_hits_over_others_at_least": prefix_hits_over_others,
    "added_p50_ms_at_most": added_p50,
    "added_p99_ms_at_most": added_p99,
    "in_flight_at_end": in_flight_at_end,
    "memory_growth_mib_at_most": memory_growth,
    "kib_per_stream_at_most": kib_per_stream,
    "itl_p99_ms_at_most": itl_p99,
    "redis_again_within_seconds": redis_again,
    "ttft_p99_without_redis_ms": ttft_without_redis,
}
