"""A scenario's file becomes a `Scenario`, or an error that names file, key and mend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from loadtest.load.arrivals import MAX_REQUESTS, ClosedLoop, OpenLoop, Pattern
from loadtest.load.lengths import PROFILES, Even, Fixed, Lengths, LogNormal
from loadtest.load.plan import (
    EXPECTATIONS,
    FAULTS,
    Entry,
    Fault,
    Leave,
    Objectives,
    PodPlan,
    Prompt,
    Scenario,
    StandPlan,
    Takes,
)
from loadtest.load.section import BadScenario, Section, near, shown

SCENARIOS = resources.files("loadtest.scenarios")
CONVERSING = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
STREAMING = (*CONVERSING, "/v1/completions")
EMBEDDINGS = "/v1/embeddings"
KEY_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent", "priority", "models", "debug")
OWN_FIELDS = frozenset(
    {"model", "messages", "prompt", "input", "system", "max_tokens", "max_output_tokens", "stream", "stream_options"}
)
"""Of a body: written by the schedule."""
MAX_FILE_BYTES = 65536
MAX_CALLERS = 10_000
MAX_TOKENS = 1_000_000


def names() -> tuple[str, ...]:
    """Of the scenarios that come with the package."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in SCENARIOS.iterdir() if file.name.endswith(".yaml")))


def load(name: str) -> Scenario:
    """A scenario by its name, or by the path of a file that ends in `.yaml`. Raises BadScenario."""
    if name.endswith((".yaml", ".yml")):
        return read(Path(name))
    if name not in names():
        raise BadScenario(
            f"no scenario {name!r}{near(name, names())}; there are {', '.join(names())}, or give a FILE.yaml"
        )
    return read(SCENARIOS / f"{name}.yaml")


def read(file: Traversable) -> Scenario:
    """Raises BadScenario."""
    try:
        told = file.read_bytes()
    except OSError as error:
        raise BadScenario(f"{file}: cannot be read: {error.strerror}") from None
    if len(told) > MAX_FILE_BYTES:
        raise BadScenario(f"{file}: a scenario has at most {MAX_FILE_BYTES} bytes")
    return parse(told.decode("utf-8", "replace"), str(file), Path(file.name).stem)


def parse(text: str, file: str, name: str | None = None) -> Scenario:
    """`name`: what the scenario must be called; None: anything. Raises BadScenario."""
    try:
        value = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadScenario(f"{file}:{line}: {error.problem}; mend the YAML") from None
    except yaml.YAMLError as error:
        raise BadScenario(f"{file}: {error}; mend the YAML") from None
    with Section(file, "", value) as top:
        scenario = _scenario(top, text)
        if name is not None and scenario.name != name:
            top.fail("name", f"must be {name!r}, as the file is called")
    return scenario


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _scenario(top: Section, text: str) -> Scenario:
    name = top.text("name")
    question = top.text("question")
    seed = top.count("seed", at_least=0, at_most=2**63)
    seconds = top.number("seconds", at_most=86400)
    with top.section("arrivals") as section:
        arrivals = _arrivals(section, seconds)
    mix = tuple(_entry(section, arrivals) for section in top.sections("mix"))
    if not mix:
        top.fail("mix", "must list at least one kind of request")
    kinds = [entry.kind for entry in mix]
    if len(set(kinds)) < len(kinds):
        top.fail("mix", f"each kind stands once, not {', '.join(kinds)}")
    with top.section("objectives") as section:
        objectives = _objectives(section)
    with top.section("stand") as section:
        stand = _stand(section, mix)
    faults = tuple(_fault(section, seconds, stand) for section in top.sections("faults"))
    with top.section("expect") as section:
        expect = _expect(section, mix, stand)
    return Scenario(name, question, seed, seconds, arrivals, mix, objectives, stand, faults, expect, text)


def _arrivals(section: Section, seconds: float) -> OpenLoop | ClosedLoop:
    if "closed" in section:
        workers = section.count("closed", at_most=MAX_CALLERS)
        return ClosedLoop(workers, section.count("requests", at_least=workers, at_most=MAX_REQUESTS))
    pattern = Pattern(section.text("kind", among=tuple(Pattern)))
    said = [key for key in ("rate", "rates", "ramp") if key in section]
    if len(said) != 1:
        section.fail("", f"give one of rate, rates and ramp, not {' and '.join(said) or 'none'}")
    match said[0]:
        case "rate":
            rates: tuple[float, ...] = (section.number("rate"),)
        case "rates":
            rates = section.amounts("rates", 1, 100)
        case _:
            rates = section.amounts("ramp", 2, 2)
    burstiness = section.number("burstiness", at_most=20) if pattern is Pattern.GAMMA else 1.0
    loop = OpenLoop(pattern, rates, said[0] == "ramp", burstiness)
    if not 1 <= loop.expected(seconds) <= MAX_REQUESTS:
        section.fail(said[0], f"makes {loop.expected(seconds):.0f} requests; there must be 1 to {MAX_REQUESTS}")
    return loop


def _entry(section: Section, arrivals: OpenLoop | ClosedLoop) -> Entry:
    with section:
        kind = section.text("kind")
        path = section.text("path", "/v1/chat/completions", among=(*STREAMING, EMBEDDINGS))
        stream = section.switch("stream", path in STREAMING)
        if stream and path not in STREAMING:
            section.fail("stream", f"{path} has no streams: leave it out")
        with section.section("prompt") as below:
            prompt = _prompt(below, path, arrivals)
        if path == EMBEDDINGS:
            if "answer" in section:
                section.fail("answer", "embeddings have no length: leave it out")
            answer = None
        else:
            with section.section("answer") as below:
                answer = _lengths(below, "tokens")
        leave = None
        if "leave" in section:
            with section.section("leave") as below:
                leave = _leave(below, stream)
        extra = section.mapping("extra")
        for name in OWN_FIELDS & extra.keys():
            section.fail(f"extra.{name}", "is written for you: leave it out")
        return Entry(
            kind=kind,
            share=section.number("share", 1.0),
            key=section.text("key", kind),
            callers=section.count("callers", 1, at_most=MAX_CALLERS),
            path=path,
            model=section.text("model"),
            stream=stream,
            prompt=prompt,
            answer=answer,
            leave=leave,
            extra=extra,
        )


def _prompt(section: Section, path: str, arrivals: OpenLoop | ClosedLoop) -> Prompt:
    tokens = _lengths(section, "tokens")
    families = section.count("families", 0, at_least=0, at_most=10_000)
    turns = section.count("turns", 1, at_most=1000)
    if turns > 1 and path not in CONVERSING:
        section.fail("turns", f"{path} has no conversations: leave it out")
    usual = Prompt(tokens)
    thinking = section.amount("thinking_seconds", 0.0)
    if thinking and isinstance(arrivals, ClosedLoop):
        section.fail("thinking_seconds", "a closed loop does not wait: leave it out")
    return Prompt(
        tokens=tokens,
        families=families,
        system_tokens=_lengths(section, "system_tokens") if "system_tokens" in section else usual.system_tokens,
        popularity=section.text("popularity", usual.popularity, among=("even", "zipf")),
        turns=turns,
        conversations=section.count("conversations", usual.conversations, at_most=100_000),
        thinking_seconds=thinking,
    )


def _lengths(section: Section, key: str) -> Lengths:
    """A number, a profile's name, or keys. Which side of a profile is meant is told by where it stands."""
    side = "answer" if section.path.endswith("answer") else "prompt"
    value = section.sole(key)
    if isinstance(value, str):
        return _of_profile(section, key, value, side)
    if not isinstance(value, dict):
        return Fixed(section.count(key, at_most=MAX_TOKENS))
    with section.section(key) as below:
        if "profile" in below:
            lengths = _of_profile(below, "profile", below.text("profile"), side).scaled(below.number("scale", 1.0))
        elif "median" in below:
            lengths = LogNormal(below.number("median"), below.number("sigma", at_most=5))
        else:
            least = below.count("from")
            return Even(least, below.count("to", at_least=least, at_most=MAX_TOKENS))
        at_least = below.count("at_least", 1)
        if "at_most" in below:
            lengths = replace(lengths, at_most=below.count("at_most", at_least=at_least, at_most=MAX_TOKENS))
        return replace(lengths, at_least=at_least)


def _of_profile(section: Section, key: str, name: str, side: str) -> LogNormal:
    if name not in PROFILES:
        section.fail(key, f"no profile {name!r}{near(name, tuple(PROFILES))}; there are {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return profile.answer if side == "answer" else profile.prompt


def _leave(section: Section, stream: bool) -> Leave:
    share = section.number("share", at_most=1.0)
    said = [key for key in ("after_seconds", "after_tokens") if key in section]
    if len(said) != 1:
        section.fail("", f"give one of after_seconds and after_tokens, not {' and '.join(said) or 'none'}")
    first, last = section.amounts(said[0], 2, 2)
    if first > last:
        section.fail(said[0], f"must be two numbers that rise, not {first:g} and {last:g}")
    if said[0] == "after_seconds":
        return Leave(share, after_seconds=(first, last))
    if not stream:
        section.fail("after_tokens", "only streams have tokens to count: give after_seconds")
    if first < 1 or first != int(first) or last != int(last):
        section.fail("after_tokens", "must be two whole numbers, 1 or more")
    return Leave(share, after_tokens=(int(first), int(last)))


def _objectives(section: Section) -> Objectives:
    usual = Objectives()
    return Objectives(
        ttft_ms=section.maybe("ttft_ms"),
        tpot_ms=section.maybe("tpot_ms"),
        e2e_ms=section.maybe("e2e_ms"),
        goodput=section.amount("goodput", usual.goodput, at_most=1.0),
        errors=section.amount("errors", usual.errors, at_most=1.0),
        late_ms=section.number("late_ms", usual.late_ms),
    )


def _stand(section: Section, mix: Sequence[Entry]) -> StandPlan:
    pods = tuple(map(_pods, section.sections("pods")))
    redis = section.switch("redis", False)
    config = section.mapping("config")
    told = section.mapping("keys")
    keys: dict[str, Mapping[str, Any]] = {}
    for entry in mix:
        served = {plan.model for plan in pods} | set(config.get("models") or ())
        if pods and entry.model not in served:
            section.fail("pods", f"none serves {entry.model!r}, which the mix asks for")
        for caller in entry.caller_names:
            keys[caller] = _key(section, entry.key, told.get(entry.key, {}))
    for name in told:
        if name not in (known := [entry.key for entry in mix]):
            section.fail("keys", f"no request of the mix comes from {name!r}{near(name, known)}")
    return StandPlan(
        pods=pods,
        gateways=section.count("gateways", 1, at_most=16),
        redis=redis,
        kubernetes=section.switch("kubernetes", False),
        direct=section.switch("direct", False),
        keys=keys,
        config=config,
    )


def _key(section: Section, name: str, fields: Any) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        section.fail(f"keys.{name}", f"must hold keys, not {shown(fields)}")
    for key in fields:
        if key not in KEY_FIELDS:
            section.fail(
                f"keys.{name}.{key}", f"unknown key{near(str(key), KEY_FIELDS)}; there are {', '.join(KEY_FIELDS)}"
            )
    return fields


def _pods(section: Section) -> PodPlan:
    with section:
        model = section.text("model")
        flags: list[str] = []
        for name, value in section.mapping("flags").items():
            for each in value if isinstance(value, list) else [value]:
                if not isinstance(each, str | int | float):
                    section.fail(
                        f"flags.{name}", f"must be a text, a number, true, or a list of these, not {shown(each)}"
                    )
                flags += [] if each is False else [f"--{name}"] if each is True else [f"--{name}", str(each)]
        return PodPlan(
            model=model,
            count=section.count("count", 1, at_most=1000),
            task=section.text("task", "generate", among=("generate", "embed", "score", "transcription")),
            pool=section.text("pool", model.replace("/", "-")),
            flags=tuple(flags),
        )


def _fault(section: Section, seconds: float, stand: StandPlan) -> Fault:
    with section:
        what = section.text("what", among=tuple(FAULTS))
        at = section.amount("at")
        if at >= seconds:
            section.fail("at", f"the run is over after {seconds:g} s")
        told: dict[str, Any] = {}
        for key in FAULTS[what]:
            if key == "pod":
                pods = [name for plan in stand.pods for name in plan.names]
                told[key] = section.text(key, among=pods)
            elif key in ("grace_seconds", "back_after"):
                told[key] = section.maybe(key)
            else:
                told[key] = section.number(key)
        if what == "stop_redis" and not stand.redis:
            section.fail("what", "the stand has no Redis: set stand.redis to true")
        return Fault(at=at, what=what, **told)


def _expect(section: Section, mix: Sequence[Entry], stand: StandPlan) -> Mapping[str, Any]:
    expect: dict[str, Any] = {}
    keys = {entry.key for entry in mix}
    pods = {name for plan in stand.pods for name in plan.names}
    for name in list(section):
        if name not in EXPECTATIONS:
            section.fail(name, f"unknown{near(name, tuple(EXPECTATIONS))}; there are {', '.join(EXPECTATIONS)}")
        match EXPECTATIONS[name].takes:
            case Takes.TRUE:
                if not section.switch(name, True):
                    section.fail(name, "must be true: leave it out if it is not expected")
                expect[name] = True
            case Takes.NUMBER:
                expect[name] = section.amount(name)
            case Takes.SHARE:
                expect[name] = section.amount(name, at_most=1.0)
            case by:
                known = pods if by is Takes.SHARE_BY_POD else keys
                most = math.inf if by is Takes.NUMBER_BY_KEY else 1.0
                with section.section(name) as below:
                    for each in below:
                        if each not in known:
                            below.fail(each, f"unknown{near(each, tuple(known))}; there are {', '.join(sorted(known))}")
                    expect[name] = {each: below.amount(each, at_most=most) for each in list(below)}
    if any(name.startswith("added_") for name in expect) and not stand.direct:
        section.fail("", "what the gateway adds is only known with stand.direct: true")
    return expect
