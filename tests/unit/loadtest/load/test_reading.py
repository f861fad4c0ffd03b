"""A scenario's file: what it may say, and that each mistake is told with file, key and mend."""

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load import plan
from loadtest.load.arrivals import ClosedLoop, OpenLoop, Pattern
from loadtest.load.lengths import PROFILES, Even, Fixed, LogNormal
from loadtest.load.plan import EXPECTATIONS, FAULTS, Fault, Leave, Scenario
from loadtest.load.reading import load, names, parse, read
from loadtest.load.section import BadScenario

ENTRY: Mapping[str, Any] = {"kind": "chat", "model": "m", "prompt": {"tokens": 10}, "answer": {"tokens": 5}}
WHOLE: Mapping[str, Any] = {
    "name": "x",
    "question": "Is it so?",
    "seed": 1,
    "seconds": 10,
    "arrivals": {"kind": "poisson", "rate": 5},
    "mix": [ENTRY],
    "stand": {"pods": [{"model": "m", "count": 2}]},
}


def made(**changes: Any) -> Scenario:
    """`mix={"a": 1}` changes the one entry; other sections are merged with what is there."""
    if isinstance(changes.get("mix"), dict):
        changes["mix"] = [{**ENTRY, **changes["mix"]}]
    if "stand" in changes:
        changes["stand"] = {**WHOLE["stand"], **changes["stand"]}
    told = {**WHOLE, **changes}
    return parse(
        yaml.safe_dump({key: value for key, value in told.items() if value is not None}, sort_keys=False), "x.yaml"
    )


def refused(**changes: Any) -> str:
    with pytest.raises(BadScenario) as error:
        made(**changes)
    return str(error.value)


def test_the_least_a_scenario_says_and_what_it_means() -> None:
    scenario = made()
    [entry] = scenario.mix
    assert scenario.arrivals == OpenLoop(Pattern.POISSON, (5,))
    assert (entry.key, entry.share, entry.callers, entry.path) == ("chat", 1.0, 1, "/v1/chat/completions")
    assert entry.stream
    assert (entry.prompt.tokens, entry.answer, entry.leave) == (Fixed(10), Fixed(5), None)
    assert (scenario.objectives.goodput, scenario.objectives.errors, scenario.objectives.ttft_ms) == (0.99, 0.0, None)
    assert (scenario.stand.gateways, scenario.stand.redis, scenario.stand.keys) == (1, False, {"chat": {}})
    assert scenario.stand.pods[0].names == ("m-0", "m-1")
    assert (scenario.faults, scenario.expect) == ((), {})


def test_arrivals_are_what_they_say() -> None:
    assert made(arrivals={"kind": "constant", "rates": [1, 2]}).arrivals == OpenLoop(Pattern.CONSTANT, (1, 2))
    ramp = made(arrivals={"kind": "gamma", "ramp": [1, 2], "burstiness": 1.5}).arrivals
    assert ramp == OpenLoop(Pattern.GAMMA, (1, 2), rises=True, burstiness=1.5)
    assert made(arrivals={"closed": 4, "requests": 9}).arrivals == ClosedLoop(4, 9)


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (7, Fixed(7)),
        ({"from": 2, "to": 9}, Even(2, 9)),
        ({"median": 400, "sigma": 1}, LogNormal(400, 1)),
        ({"median": 400, "sigma": 1, "at_least": 3, "at_most": 900}, LogNormal(400, 1, 3, 900)),
        ("azure-code", PROFILES["azure-code"].prompt),
        ({"profile": "azure-code", "scale": 0.5}, PROFILES["azure-code"].prompt.scaled(0.5)),
        ({"profile": "azure-code", "at_most": 50}, LogNormal(1294, 1.24, 1, 50)),
    ],
)
def test_lengths_are_told_in_five_ways(told: Any, meant: Any) -> None:
    assert made(mix={"prompt": {"tokens": told}}).mix[0].prompt.tokens == meant


def test_a_profile_is_the_answers_where_an_answer_is_meant() -> None:
    assert made(mix={"answer": {"tokens": "azure-code"}}).mix[0].answer == PROFILES["azure-code"].answer


def test_callers_have_names_and_limits_of_their_own() -> None:
    scenario = made(mix={"key": "acme", "callers": 3}, stand={"keys": {"acme": {"requests_per_minute": 60}}})
    assert scenario.mix[0].caller_names == ("acme-0", "acme-1", "acme-2")
    assert scenario.stand.keys == {f"acme-{number}": {"requests_per_minute": 60} for number in range(3)}


def test_flags_are_ready_for_a_command_line() -> None:
    pods = [{"model": "m", "flags": {"step-ms": 8.5, "ends-early": True, "dev-mode": False, "fault": ["a", "b"]}}]
    [plan] = made(stand={"pods": pods}).stand.pods
    assert plan.flags == ("--step-ms", "8.5", "--ends-early", "--fault", "a", "--fault", "b")


def test_who_leaves_is_told_by_seconds_or_by_tokens() -> None:
    assert made(mix={"leave": {"share": 0.3, "after_seconds": [0.1, 2]}}).mix[0].leave == Leave(0.3, (0.1, 2.0))
    leave = made(mix={"leave": {"share": 1, "after_tokens": [1, 50]}}).mix[0].leave
    assert leave == Leave(1.0, after_tokens=(1, 50))


def test_embeddings_have_no_answers_length_and_no_stream() -> None:
    entry = {"kind": "e", "model": "m", "path": "/v1/embeddings", "prompt": {"tokens": 10}}
    [embed] = made(mix=[entry]).mix
    assert (embed.answer, embed.stream) == (None, False)


def test_an_alias_of_the_configuration_is_served() -> None:
    assert made(mix={"model": "alias"}, stand={"config": {"models": {"alias": {"to": "m"}}}}).mix[0].model == "alias"


def test_without_a_stand_nothing_is_said_of_pods() -> None:
    assert made(stand={"pods": []}).stand.pods == ()


def test_a_key_that_is_missing_is_told_with_the_one_that_may_be_meant_by_it() -> None:
    with pytest.raises(BadScenario, match=r"seconds: must be a number, .* \(is it meant by 'secnds'\?\)"):
        parse("name: n\nquestion: q\nseed: 1\nsecnds: 3\n", "x.yaml")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "x.yaml: name: must be a text, not nothing"),
    ({"surprise": 1}, "x.yaml: surprise: unknown key; there are name, question,"),
    ({"fault": []}, "x.yaml: fault: unknown key (do you mean 'faults'?)"),
    ({"seed": -1}, "x.yaml: seed: must be a whole number from 0"),
    ({"seed": True}, "x.yaml: seed: must be a whole number from 0"),
    ({"seconds": 0}, "x.yaml: seconds: must be a number, more than 0"),
    ({"seconds": "10"}, "x.yaml: seconds: must be a number, more than 0 and at most 86400, not '10'"),
    ({"seconds": float("inf")}, "x.yaml: seconds: must be a number"),
    ({"seconds": float("nan")}, "x.yaml: seconds: must be a number"),
    ({"arrivals": [1]}, "x.yaml: arrivals: must hold keys, not [1]"),
    ({"arrivals": {"kind": "poison", "rate": 1}}, "is none of constant, poisson, gamma (do you mean 'poisson'?)"),
    ({"arrivals": {"kind": "poisson"}}, "x.yaml: arrivals: give one of rate, rates and ramp, not none"),
    (
        {"arrivals": {"kind": "poisson", "rate": 1, "rates": [1]}},
        "give one of rate, rates and ramp, not rate and rates",
    ),
    ({"arrivals": {"kind": "poisson", "ramp": [1]}}, "x.yaml: arrivals.ramp: must list 2 numbers, not 1"),
    (
        {"arrivals": {"kind": "poisson", "rates": [1, -1]}},
        "x.yaml: arrivals.rates: must be a number, 0 or more, not -1",
    ),
    ({"arrivals": {"kind": "poisson", "rates": [0]}}, "x.yaml: arrivals.rates: makes 0 requests"),
    ({"arrivals": {"kind": "poisson", "rate": 1e9}}, "there must be 1 to 500000"),
    ({"arrivals": {"kind": "poisson", "rate": 5, "burstiness": 2}}, "x.yaml: arrivals.burstiness: unknown key"),
    ({"arrivals": {"kind": "gamma", "rate": 5}}, "x.yaml: arrivals.burstiness: must be a number, more than 0"),
    ({"arrivals": {"closed": 4}}, "x.yaml: arrivals.requests: must be a whole number from 4"),
    ({"arrivals": {"closed": 4, "requests": 3}}, "x.yaml: arrivals.requests: must be a whole number from 4"),
    ({"mix": []}, "x.yaml: mix: must list at least one kind of request"),
    ({"mix": [ENTRY, ENTRY]}, "x.yaml: mix: each kind stands once, not chat, chat"),
    ({"mix": {"share": 0}}, "x.yaml: mix[0].share: must be a number, more than 0"),
    ({"mix": {"shares": 1}}, "x.yaml: mix[0].shares: unknown key (do you mean 'share'?)"),
    ({"mix": {"path": "/v1/chat"}}, "x.yaml: mix[0].path: '/v1/chat' is none of /v1/chat/completions,"),
    ({"mix": {"model": "other"}}, "x.yaml: stand.pods: none serves 'other', which the mix asks for"),
    ({"mix": {"prompt": {}}}, "x.yaml: mix[0].prompt.tokens: must be a whole number from 1"),
    ({"mix": {"prompt": {"tokens": 0}}}, "x.yaml: mix[0].prompt.tokens: must be a whole number from 1"),
    ({"mix": {"prompt": {"tokens": "azure"}}}, "x.yaml: mix[0].prompt.tokens: no profile 'azure'"),
    (
        {"mix": {"prompt": {"tokens": {"from": 5, "to": 4}}}},
        "x.yaml: mix[0].prompt.tokens.to: must be a whole number from 5",
    ),
    ({"mix": {"prompt": {"tokens": {"median": 5}}}}, "x.yaml: mix[0].prompt.tokens.sigma: must be a number"),
    (
        {"mix": {"prompt": {"tokens": {"median": 5, "sigma": 1, "most": 7}}}},
        "x.yaml: mix[0].prompt.tokens.most: unknown key",
    ),
    ({"mix": {"prompt": {"tokens": 5, "popularity": "zip"}}}, "(do you mean 'zipf'?)"),
    ({"mix": {"prompt": {"tokens": 5, "turns": 3}, "path": "/v1/completions"}}, "has no conversations: leave it out"),
    ({"mix": {"answer": None}}, "x.yaml: mix[0].answer: must hold keys, not nothing"),
    ({"mix": {"path": "/v1/embeddings"}}, "x.yaml: mix[0].answer: embeddings have no length: leave it out"),
    ({"mix": {"path": "/v1/embeddings", "stream": True}}, "x.yaml: mix[0].stream: /v1/embeddings has no streams"),
    ({"mix": {"leave": {"share": 0.5}}}, "x.yaml: mix[0].leave: give one of after_seconds and after_tokens"),
    ({"mix": {"leave": {"share": 1.5, "after_seconds": [1, 2]}}}, "more than 0 and at most 1, not 1.5"),
    ({"mix": {"leave": {"share": 1, "after_seconds": [2, 1]}}}, "must be two numbers that rise, not 2 and 1"),
    ({"mix": {"leave": {"share": 1, "after_tokens": [0, 1]}}}, "must be two whole numbers, 1 or more"),
    ({"mix": {"stream": False, "leave": {"share": 1, "after_tokens": [1, 2]}}}, "only streams have tokens to count"),
    ({"mix": {"extra": {"model": "other"}}}, "x.yaml: mix[0].extra.model: is written for you: leave it out"),
    ({"objectives": {"ttft": 5}}, "x.yaml: objectives.ttft: unknown key (do you mean 'ttft_ms'?)"),
    ({"objectives": {"goodput": 99}}, "x.yaml: objectives.goodput: must be a number, 0 or more and at most 1, not 99"),
    ({"stand": {"gateways": 0}}, "x.yaml: stand.gateways: must be a whole number from 1"),
    ({"stand": {"redis": "yes"}}, "x.yaml: stand.redis: must be true or false, not 'yes'"),
    ({"stand": {"pods": [{"model": "m", "task": "chat"}]}}, "x.yaml: stand.pods[0].task: 'chat' is none of generate"),
    ({"stand": {"pods": [{"model": "m", "flags": {"a": None}}]}}, "x.yaml: stand.pods[0].flags.a: must be a text"),
    ({"stand": {"keys": {"chta": {}}}}, "no request of the mix comes from 'chta' (do you mean 'chat'?)"),
    ({"stand": {"keys": {"chat": {"rpm": 1}}}}, "x.yaml: stand.keys.chat.rpm: unknown key"),
    ({"faults": [{"at": 1}]}, "x.yaml: faults[0].what: must be a text, not nothing"),
    ({"faults": [{"at": 10, "what": "replace_gateways"}]}, "x.yaml: faults[0].at: the run is over after 10 s"),
    ({"faults": [{"at": 1, "what": "kill_pod", "pod": "m-2"}]}, "x.yaml: faults[0].pod: 'm-2' is none of m-0, m-1"),
    ({"faults": [{"at": 1, "what": "kill_pod", "pod": "m-1", "seconds": 1}]}, "x.yaml: faults[0].seconds: unknown key"),
    ({"faults": [{"at": 1, "what": "stop_redis", "seconds": 2}]}, "the stand has no Redis: set stand.redis to true"),
    ({"expect": {"only_whole": True}}, "x.yaml: expect.only_whole: unknown (do you mean 'only_whole_endings'?)"),
    ({"expect": {"only_whole_endings": False}}, "must be true: leave it out if it is not expected"),
    ({"expect": {"share_of_key_at_least": {"chat": 2}}}, "x.yaml: expect.share_of_key_at_least.chat: must be a number"),
    ({"expect": {"share_of_key_at_least": {"cat": 1}}}, "x.yaml: expect.share_of_key_at_least.cat: unknown"),
    ({"expect": {"share_of_pod_at_most": {"m-9": 1}}}, "there are m-0, m-1"),
    ({"expect": {"added_p50_ms_at_most": 1}}, "what the gateway adds is only known with stand.direct: true"),
]


@pytest.mark.parametrize(("changes", "told"), MISTAKES, ids=[told[:60] for _, told in MISTAKES])
def test_a_mistake_is_told_with_file_key_and_mend(changes: dict[str, Any], told: str) -> None:
    message = refused(**changes)
    assert message.startswith("x.yaml: ")
    assert told in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "x.yaml:1: "),
        ("name: x\nseed: 1\nname: y\n", "x.yaml:3: the key 'name' stands twice"),
        ("- 1\n", "x.yaml: must hold keys, not [1]"),
        ("", "x.yaml: must hold keys, not nothing"),
        ("? [a]\n: 1\n", "x.yaml:1: found unhashable key; mend the YAML"),
        ("1: 2\n", "x.yaml: must hold keys, not {1: 2}"),
        ("name: !!python/object/apply:os.system [ls]\n", "x.yaml:1: could not determine a constructor"),
        ("\0", "x.yaml: "),
    ],
)
def test_what_is_not_yaml_or_not_ours_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(BadScenario) as error:
        parse(text, "x.yaml")
    assert str(error.value).startswith(told)


def _keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in below for found in [(*path, key), *_keys(each, (*path, key))]]


FULL = yaml.safe_load(
    """
    name: x
    question: Is it so?
    seed: 1
    seconds: 10
    arrivals: {kind: gamma, rate: 5, burstiness: 2}
    mix:
      - {kind: a, share: 2, key: k, callers: 2, path: /v1/chat/completions, model: m, stream: true,
         prompt: {tokens: {median: 9, sigma: 1, at_least: 1, at_most: 99}, families: 2, system_tokens: 7,
                  popularity: zipf, turns: 3, conversations: 4, thinking_seconds: 1},
         answer: {tokens: {profile: azure-code, scale: 0.5}}, leave: {share: 0.5, after_tokens: [1, 5]}, extra: {n: 1}}
    objectives: {ttft_ms: 1, tpot_ms: 1, e2e_ms: 1, goodput: 1, errors: 0, late_ms: 5}
    stand:
      {pods: [{model: m, count: 2, task: generate, pool: m, flags: {a: 1}}], gateways: 2, redis: true, kubernetes: true,
       direct: true, keys: {k: {concurrent: 1}}, config: {}}
    faults: [{at: 1, what: slow_pod, pod: m-0, factor: 2, seconds: 3}]
    expect: {only_told_endings: true, share_of_key_at_least: {k: 1}}
    """
)


@given(st.sampled_from(_keys(FULL)), st.sampled_from([None, -1, "", [], {}, "zzz", 1e300, [None], {"zzz": 1}]))
def test_whatever_a_value_is_it_is_used_or_refused_in_words(path: tuple[Any, ...], value: Any) -> None:
    told = copy.deepcopy(FULL)
    at = told
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with suppress(BadScenario):
        parse(json.dumps(told), "x.yaml")


def test_the_file_is_called_as_the_scenario(tmp_path: Path) -> None:
    file = tmp_path / "y.yaml"
    file.write_text(yaml.safe_dump(dict(WHOLE)))
    with pytest.raises(BadScenario, match=r"y\.yaml: name: must be 'y', as the file is called"):
        read(file)
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(dict(WHOLE)))
    assert load(str(file)).name == "x"


def test_a_file_that_is_not_there_or_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadScenario, match="cannot be read: No such file"):
        read(tmp_path / "no.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 100_000)
    with pytest.raises(BadScenario, match="at most 65536 bytes"):
        read(large)


def test_a_name_that_is_not_known_is_told_with_those_there_are() -> None:
    with pytest.raises(BadScenario, match=r"no scenario 'stedy' \(do you mean 'steady'\?\)"):
        load("stedy")
    assert "steady" in names()


def test_a_shorter_run_keeps_the_rates_and_moves_the_faults() -> None:
    scenario = made(faults=[{"at": 4, "what": "kill_pod", "pod": "m-0", "back_after": 2}])
    short = scenario.lasting(5)
    assert (short.seconds, short.arrivals) == (5, scenario.arrivals)
    assert short.faults == (Fault(at=2, what="kill_pod", pod="m-0", back_after=1),)
    assert made(arrivals={"closed": 4, "requests": 100}).lasting(1).arrivals == ClosedLoop(4, 10)


def test_a_smaller_scale_is_a_lower_rate() -> None:
    assert made().scaled(0.5).arrivals == OpenLoop(Pattern.POISSON, (2.5,))


def test_the_page_names_each_fault_and_each_expectation_says_what_it_means() -> None:
    page = plan.__doc__ or ""
    assert all(f"what: {what}" in page for what in FAULTS)
    assert all(expectation.meaning for expectation in EXPECTATIONS.values())
