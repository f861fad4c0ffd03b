"""The scenarios that come with the package: each can be read, and its schedule is what its file says."""

from collections import Counter, defaultdict
from functools import cache
from importlib import resources

import orjson
import pytest

from loadtest.load.arrivals import ClosedLoop, OpenLoop
from loadtest.load.drawing import draw
from loadtest.load.plan import PodPlan, Scenario
from loadtest.load.reading import load, names
from loadtest.load.schedule import Planned, Schedule
from loadtest.simulator.cli import parser
from loadtest.simulator.prompts import BYTES_PER_TOKEN, render_chat
from loadtest.simulator.settings import PodSettings

ASKED_FOR = {
    *("smoke", "overhead", "steady", "burst", "fairness", "limit-storm", "long-streams", "disconnects", "pod-kill"),
    *("rolling-restart", "redis-down", "slow-pod", "prefix", "soak"),
}
MOST_BYTES = 256 * 1024 * 1024
"""Of a schedule: it is in memory while the load runs, beside the pods and the gateways."""
ALL = pytest.mark.parametrize("name", names())


@cache
def drawn(name: str) -> tuple[Scenario, Schedule]:
    scenario = load(name)
    return scenario, draw(scenario)


def serving(scenario: Scenario, model: str) -> list[PodPlan]:
    """The pods that a model, or an alias of the configuration, may be asked of."""
    aliases = scenario.stand.config.get("models") or {}
    targets = {each["model"] for each in aliases[model]["to"]} if model in aliases else {model}
    return [plan for plan in scenario.stand.pods if plan.model in targets]


def test_all_that_were_asked_for_are_there() -> None:
    assert set(names()) >= ASKED_FOR


def test_the_package_carries_the_files() -> None:
    files = resources.files("loadtest.scenarios")
    assert all(files.joinpath(f"{name}.yaml").is_file() for name in names())


@ALL
def test_its_question_is_one_sentence_and_can_be_answered_with_no(name: str) -> None:
    scenario, _ = drawn(name)
    assert scenario.question.endswith("?")
    assert scenario.expect or scenario.objectives.ttft_ms or scenario.objectives.e2e_ms


@ALL
def test_requests_come_in_order_within_the_run_at_the_rates_it_says(name: str) -> None:
    scenario, schedule = drawn(name)
    arrivals = scenario.arrivals
    assert schedule.seconds == scenario.seconds
    if isinstance(arrivals, ClosedLoop):
        assert (schedule.workers, len(schedule.requests)) == (arrivals.workers, arrivals.requests)
        return
    assert isinstance(arrivals, OpenLoop)
    times = [each.at for each in schedule.requests if each.at is not None]
    assert len(times) == len(schedule.requests)
    assert times == sorted(times)
    assert all(0 <= at < scenario.seconds for at in times)
    for number, step in enumerate(schedule.steps):
        assert step.rate is not None
        came = sum(each.step == number for each in schedule.requests)
        expected = step.rate * (step.end - step.begin)
        assert abs(came - expected) <= 6 * max(arrivals.burstiness, 1.0) * expected**0.5 + 1


@ALL
def test_each_kind_has_its_share_its_callers_and_its_leavers(name: str) -> None:
    scenario, schedule = drawn(name)
    by_kind: dict[str, list[Planned]] = defaultdict(list)
    for each in schedule.requests:
        by_kind[each.kind].append(each)
    total = sum(entry.share for entry in scenario.mix)
    for entry in scenario.mix:
        asked = by_kind[entry.kind]
        assert asked
        assert abs(len(asked) - len(schedule.requests) * entry.share / total) < 1
        assert {each.key for each in asked} == set(entry.caller_names)
        left = sum(each.leave_after is not None or each.leave_after_tokens is not None for each in asked)
        assert left == round(len(asked) * (entry.leave.share if entry.leave else 0))
    assert set(scenario.stand.keys) == {each.key for each in schedule.requests}


@ALL
def test_each_prompt_and_its_answer_fit_into_its_pods(name: str) -> None:
    scenario, schedule = drawn(name)
    usual = PodSettings().max_model_len_tokens
    lengths = {plan.model: parser().parse_args(plan.flags).max_model_len or usual for plan in scenario.stand.pods}
    longest: Counter[str] = Counter()
    for each in schedule.requests:
        body = orjson.loads(each.body)
        # As the pod counts, marks and all.
        messages = body.get("messages") or (body["input"] if isinstance(body.get("input"), list) else [])
        said = render_chat([(message["role"], message["content"]) for message in messages])
        said += (body.get("system") or body.get("prompt") or (body.get("input") if not messages else "") or "").encode()
        longest[body["model"]] = max(longest[body["model"]], len(said) // BYTES_PER_TOKEN + 16 + each.max_tokens)
    for model, tokens in longest.items():
        for plan in serving(scenario, model):
            assert tokens <= lengths[plan.model], f"{model}: {tokens} tokens"


@ALL
def test_its_pods_flags_are_the_simulators(name: str) -> None:
    for plan in drawn(name)[0].stand.pods:
        parser().parse_args(plan.flags)


@ALL
def test_its_schedule_fits_into_memory(name: str) -> None:
    assert sum(len(each.body) for each in drawn(name)[1].requests) < MOST_BYTES


@ALL
def test_prompts_of_no_common_family_begin_differently(name: str) -> None:
    scenario, schedule = drawn(name)
    beginnings: dict[str, set[str]] = defaultdict(set)
    for each in schedule.requests:
        body = orjson.loads(each.body)
        messages = body.get("messages") or (body["input"] if isinstance(body.get("input"), list) else [])
        text = body.get("system") or (messages[0]["content"] if messages else body.get("prompt") or body.get("input"))
        beginnings[text[:60]].add(each.kind)
    shared = {beginning: kinds for beginning, kinds in beginnings.items() if len(kinds) > 1}
    assert shared == {}, f"{len(scenario.mix)} kinds, but some say the same"


@ALL
def test_it_can_be_played_in_seconds_and_small(name: str) -> None:
    quick = load(name).scaled(0.5).lasting(3)
    assert draw(quick).requests
    assert all(fault.at < 3 for fault in quick.faults)
