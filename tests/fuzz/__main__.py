"""`make fuzz`: drive targets for a while, by coverage where atheris is there, else by hypothesis.

    python -m tests.fuzz [TARGET...] [--minutes 1] [--keep]

Each target runs in a process of its own (libFuzzer ends it when it has found something). What breaks a word is written
to `crashes/TARGET/`, which pytest replays from then on. What reaches new lines is remembered in `.fuzz/`, and with
`--keep` the little of it that the seeds do not reach goes into `corpus/TARGET/`, to be committed.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.target import Target

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / ".fuzz"
FUZZERS = ROOT / ".fuzzers"
OURS = str(ROOT / "gateway")
KEPT_BYTES = 1024
Place = tuple[str, int]
"""A file and a line."""
SECONDS_FOR_ONE = 5
"""An input that takes longer is a finding of its own."""
MAX_MEGABYTES = 1024


def with_atheris() -> bool:
    """Whether atheris can be had: from the environment of the fuzzers, where it lives, behind everything else."""
    sys.path += [str(folder) for folder in FUZZERS.glob("lib/python*/site-packages")]
    return find_spec("atheris") is not None


def by_coverage(name: str, arguments: list[str]) -> None:
    """Hand one target over to libFuzzer. Does not return."""
    with_atheris()
    import atheris  # type: ignore[import-untyped]  # lives in another environment

    with atheris.instrument_imports(include=["gateway"]):
        from tests.fuzz.registry import TARGETS
    logging.disable()
    atheris.Setup([name, *arguments], TARGETS[name].run)
    atheris.Fuzz()


def by_chance(name: str, seconds: float) -> None:
    """Mutations of the seeds until the time is over; what breaks is made as small as hypothesis can."""
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.fuzz.mutating import inputs
    from tests.fuzz.registry import TARGETS

    logging.disable()
    target, ends_at, last = TARGETS[name], time.monotonic() + seconds, b""

    @settings(
        max_examples=2_000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(inputs(target))
    def hold(data: bytes) -> None:
        nonlocal last
        last = data
        target.run(data)

    while time.monotonic() < ends_at:
        try:
            hold()
        except BaseException:
            crash = HERE / "crashes" / name / f"crash-{sha1(last).hexdigest()}"
            crash.parent.mkdir(parents=True, exist_ok=True)
            crash.write_bytes(last)
            raise


def child(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A process for one target."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", json.dumps([name, *arguments])]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def drive(name: str, seconds: int, coverage: bool) -> bool:
    """Whether the target held."""
    from tests.fuzz.registry import TARGETS

    if not coverage:
        ended = child(name, "--chance", str(seconds))
        print(f"{name:<16} {'held' if ended.returncode == 0 else 'BROKE'} (mutations by chance)", flush=True)
    else:
        target, found, crashes = TARGETS[name], WORK / name, HERE / "crashes" / name
        seeds, words = WORK / "seeds" / name, WORK / f"{name}.dict"
        for folder in (found, seeds, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (seeds / str(number)).write_bytes(seed)
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.tokens)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        ended = child(
            name,
            f"-max_total_time={seconds}",
            f"-max_len={target.max_bytes}",
            f"-timeout={SECONDS_FOR_ONE}",
            f"-rss_limit_mb={MAX_MEGABYTES}",
            f"-artifact_prefix={crashes}/",
            *((f"-dict={words}",) if target.tokens else ()),
            "-print_final_stats=1",
            str(found),
            str(seeds),
            str(HERE / "corpus" / name) if (HERE / "corpus" / name).exists() else str(seeds),
        )
        told = dict(line[6:].split(": ") for line in ended.stdout.splitlines() if line.startswith("stat::"))
        tried = int(told.get("number_of_executed_units", "0"))
        print(
            f"{name:<16} {'held' if ended.returncode == 0 else 'BROKE'} after {tried:,} inputs, "
            f"{len(list(found.iterdir()))} remembered",
            flush=True,
        )
        if not any(crashes.iterdir()):
            crashes.rmdir()
    if ended.returncode:
        lines = (line for line in ended.stdout.splitlines() if not line.startswith(("INFO: Instr", "#")))
        print("\n".join(lines)[-4000:], flush=True)
    return ended.returncode == 0


def keep(name: str) -> None:
    """Of what was remembered, the smallest inputs that reach lines which the seeds do not."""
    from tests.fuzz.registry import TARGETS

    kept, target = HERE / "corpus" / name, TARGETS[name]
    remembered = sorted((file.read_bytes() for file in (WORK / name).glob("*")), key=len)
    reached: set[Place] = set()
    for seed in target.seeds:
        reached |= places(target, seed)
    for data in remembered:
        if len(data) <= KEPT_BYTES and (new := places(target, data)) - reached:
            reached |= new
            kept.mkdir(parents=True, exist_ok=True)
            (kept / sha1(data).hexdigest()[:16]).write_bytes(data)


def places(target: Target, data: bytes) -> set[Place]:
    """The lines of ours that an input reaches."""
    found: set[Place] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            found.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return found


def main() -> int:
    """0: every target held."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz")
    options.add_argument("targets", nargs="*", metavar="TARGET")
    options.add_argument("--minutes", type=float, default=1.0, help="for each target")
    options.add_argument("--keep", action="store_true", help="put what reaches new lines into the corpus")
    options.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    told = options.parse_args()
    if told.child:
        name, *arguments = told.child
        if arguments[:1] == ["--chance"]:
            by_chance(name, float(arguments[1]))
        else:
            by_coverage(name, arguments)
        return 0
    from tests.fuzz.registry import TARGETS

    if unknown := set(told.targets) - TARGETS.keys():
        options.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(sorted(TARGETS))}")
    coverage = with_atheris()
    if not coverage:
        print("atheris is not installed (make .fuzzers/.installed): mutations by chance instead", flush=True)
    names = told.targets or list(TARGETS)
    held = [drive(name, round(60 * told.minutes), coverage) for name in names]
    if told.keep:
        for name in names:
            keep(name)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
