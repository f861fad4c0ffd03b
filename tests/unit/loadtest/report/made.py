"""Records as a player would have left them: by hand, or a whole run drawn from a seed."""

from array import array
from collections.abc import Sequence
from random import Random

from loadtest.load.plan import Objectives
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Planned, Schedule, Step
from loadtest.report.document import Run, Verdict
from loadtest.report.side import Figure, Mark, Side, side_of
from loadtest.report.where import Host

OBJECTIVES = Objectives(ttft_ms=500, tpot_ms=50)
HOST = Host(cores=2, cpu="a cpu", kernel="6.1", python="3.11", load=(0.5, 1.5))
PODS = ("chat-0", "chat-1", "chat-2")


def planned(
    number: int = 0,
    *,
    at: float | None = 0.0,
    step: int = 0,
    kind: str = "chat",
    key: str = "acme",
    stream: bool = True,
) -> Planned:
    return Planned(
        number=number,
        at=at,
        step=step,
        kind=kind,
        key=key,
        path="/v1/chat/completions",
        body=b"{}",
        stream=stream,
        prompt_tokens=10,
        max_tokens=10,
    )


def record(
    *,
    at: float = 0.0,
    late: float = 0.0,
    waited: float | None = 0.1,
    gap: float = 0.01,
    tokens: int = 11,
    ending: Ending = Ending.WHOLE,
    status: int = 200,
    code: str = "",
    pod: str = "",
    step: int = 0,
    kind: str = "chat",
    key: str = "acme",
    stream: bool = True,
    number: int = 0,
) -> Record:
    """A stream whose first token came `waited` seconds after it was meant to be sent, the others `gap` apart."""
    times = [] if waited is None else [at + waited + gap * place for place in range(tokens)]
    return Record(
        planned=planned(number, at=at, step=step, kind=kind, key=key, stream=stream),
        intended_at=at,
        sent_at=at + late,
        status=status,
        first_at=times[0] if times else None,
        token_times=array("d", times if stream else []),
        ended_at=times[-1] if times else at + late + 0.05,
        tokens=len(times),
        prompt_tokens=100 if times else None,
        completion_tokens=len(times) or None,
        cached_tokens=40 if times else None,
        pod=pod,
        ending=ending,
        code=code,
    )


def schedule(records: Sequence[Record], steps: Sequence[Step] = (), *, workers: int | None = None) -> Schedule:
    seconds = steps[-1].end if steps else 1.0
    return Schedule(
        [each.planned for each in records], steps or [Step("all", 0.0, 1.0, len(records))], workers, seconds
    )


def risen(
    seed: int = 1, *, rates: Sequence[int] = (5, 10, 20, 40, 60), seconds: float = 12, slower: float = 1.0
) -> Side:
    """Steps of a rising rate; from 40/s on first tokens take too long, and a pod dies in the third."""
    rng = Random(seed)
    steps = [Step(f"{rate}/s", place * seconds, (place + 1) * seconds, rate) for place, rate in enumerate(rates)]
    records: list[Record] = []
    for place, step in enumerate(steps):
        for number in range(int(rates[place] * seconds)):
            at = step.begin + number / rates[place]
            queued = max(rates[place] - 35, 0) * 0.012 * (at - step.begin) / 2
            dead = place == 2 and 2.0 < at - step.begin < 4.0 and rng.random() < 0.1
            chance = rng.random()
            records.append(
                record(
                    number=len(records),
                    at=at,
                    late=rng.expovariate(1000),
                    waited=slower * (rng.lognormvariate(-3, 0.5) + queued * rng.uniform(0.5, 1.5)),
                    gap=slower * rng.lognormvariate(-4.6, 0.25),
                    tokens=rng.randint(2, 60),
                    step=place,
                    kind=rng.choice(["chat", "long"]),
                    key=rng.choice(["acme", "zeta", "busy"]),
                    pod=rng.choice(PODS[:2] if dead else PODS),
                    ending=Ending.CUT if dead else Ending.LEFT if chance < 0.04 else Ending.WHOLE,
                )
                if chance < 0.96
                else record(
                    number=len(records),
                    at=at,
                    late=rng.expovariate(1000),
                    waited=None,
                    step=place,
                    key="busy",
                    ending=Ending.ERROR,
                    status=429 if chance < 0.997 else 503,
                    code="rate_limit_exceeded" if chance < 0.997 else "queue_full",
                )
            )
    return side_of(
        "gateway",
        records,
        schedule(records, steps),
        OBJECTIVES,
        pods=PODS,
        marks=[Mark(2 * seconds + 2, "kill pod chat-2"), Mark(2 * seconds + 7.25, "pod chat-2 is back")],
        figures=[Figure("CPU of the gateway", 12.5, "s", "lower"), Figure("replicas", 2)],
    )


def run(
    *sides: Side, verdicts: Sequence[Verdict] = (Verdict("only told endings", "41 streams were cut", False),)
) -> Run:
    return Run(
        scenario="rising",
        question="Does it hold at 60 requests a second?",
        text="name: rising\nseconds: 60\n",
        command="python -m loadtest run rising",
        seed=7,
        seconds=60.0,
        begun="2026-11-30T12:00:00Z",
        commit="abc1234",
        host=HOST,
        versions={"gateway": "0.1.0"},
        sides=sides or (risen(),),
        verdicts=tuple(verdicts),
        notes=("Simulated pods are no GPUs.",),
    )
