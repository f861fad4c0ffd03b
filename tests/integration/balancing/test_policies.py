"""Which pod a request goes to, by the policy of its pool: the same on every replica where the same is promised."""

from collections import Counter
from typing import Any

import pytest

from gateway.core.fleet import PodState
from tests.fakes import Hang
from tests.integration.balancing.scenes import GOOD, Scene, pods, scene
from tests.running import Side

TEAM = {"key_id": "AAAAAAAA", "team": "acme", "debug": True}
"""One key at two gateways: sessions of one key are never another's."""
WAYS = ("X-Session-ID", "X-OpenWebUI-Chat-Id", "prompt_cache_key")


async def went_to(found: Scene, *, session: str = "", way: str = "X-Session-ID", **body: Any) -> str:
    """The pod that answers a request of this session."""
    headers = {}
    if session and way == "prompt_cache_key":
        body[way] = session
    elif session:
        headers[way] = session
    came = await found.ask(headers=headers, **body)
    assert came.status == 200
    return came.headers["x-poolgate-pod"]


def text(about: str) -> list[dict[str, str]]:
    """Messages that begin with a long text of their own."""
    return [{"role": "system", "content": about * 200}, {"role": "user", "content": "Hello"}]


MANY = 40
"""So many keys are all at home at two of four pods once in a hundred thousand million times. The pods' addresses decide
that, which are others in each run."""


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_stays_with_its_pod_on_every_replica(side: Side, way: str) -> None:
    sessions = [str(number) for number in range(MANY)]
    given = pods(4)
    async with given[0], given[1], given[2], given[3]:
        async with scene(given, side=side, policy="session", tenant=TEAM) as one:
            homes = [await went_to(one, session=session, way=way) for session in sessions]
            # What is said does not matter.
            assert [await went_to(one, session=name, way=way, messages=text(name)) for name in sessions] == homes
        async with scene(given, side=side, policy="session", tenant=TEAM) as other:
            assert [await went_to(other, session=session, way=way) for session in reversed(sessions)] == homes[::-1]
        assert len(set(homes)) > 2


async def test_what_says_most_plainly_whose_session_it_is_counts() -> None:
    given = pods(4)
    async with given[0], given[1], given[2], given[3], scene(given, policy="session", tenant=TEAM) as found:
        homes = {session: await went_to(found, session=session) for session in map(str, range(MANY))}
        apart = next(session for session in homes if homes[session] != homes["0"])
        for headers, body in (
            ({"X-Session-ID": "0", "X-OpenWebUI-Chat-Id": apart}, {}),
            ({"X-Session-ID": "0"}, {"prompt_cache_key": apart}),
            ({"X-OpenWebUI-Chat-Id": "0"}, {"prompt_cache_key": apart}),
            ({"X-OpenWebUI-Chat-Id": "0", "X-Session-ID": ""}, {}),
        ):
            came = await found.ask(headers=headers, **body)
            assert came.headers["x-poolgate-pod"] == homes["0"]


@pytest.mark.parametrize("policy", ["session", "prefix"])
async def test_prompts_that_begin_alike_go_to_one_pod_on_every_replica(side: Side, policy: str) -> None:
    prompts = [text(f"text {number} ") for number in range(MANY)]
    given = pods(4)
    async with given[0], given[1], given[2], given[3]:
        async with scene(given, side=side, policy=policy, tenant=TEAM) as one:
            homes = [await went_to(one, messages=prompt) for prompt in prompts]
        async with scene(given, side=side, policy=policy, tenant=TEAM) as other:
            assert [await went_to(other, messages=prompt) for prompt in reversed(prompts)] == homes[::-1]
        assert len(set(homes)) > 2


async def test_a_pod_that_leaves_moves_its_own_sessions_and_no_others() -> None:
    given = pods(4)
    async with given[0], given[1], given[2], given[3], scene(given, policy="session", tenant=TEAM) as found:
        before: dict[str, str] = {}
        while len(before) < 16 or "chat-2" not in before.values():
            session = str(len(before))
            before[session] = await went_to(found, session=session)
        sessions = list(before)
        await found.becomes(2, PodState.DRAINING)
        after = {session: await went_to(found, session=session) for session in sessions}
        assert "chat-2" not in after.values()
        assert all(after[session] == before[session] for session in sessions if before[session] != "chat-2")
        await found.becomes(2, PodState.READY)
        assert {session: await went_to(found, session=session) for session in sessions} == before


async def test_a_session_with_more_than_its_pod_s_share_spills_over() -> None:
    given = pods(3, Hang)
    async with given[0], given[1], given[2], scene(given, policy="session", tenant=TEAM) as found:
        for _ in range(9):
            await found.begin(headers={"X-Session-ID": "one"})
        await found.until(lambda: sum(len(pod.requests) for pod in given) == 9)
        most = max(len(pod.requests) for pod in given)
        assert most <= 1.25 * (9 / 3 + 1)
        assert sum(bool(pod.requests) for pod in given) > 1
        for pod in given:
            pod.scripts = [[GOOD]]
        came = await found.ask(headers={"X-Session-ID": "one"})
        assert came.headers["x-poolgate-decision"] in ("session", "spill")


async def test_taking_turns_is_even(side: Side) -> None:
    given = pods(3)
    async with given[0], given[1], given[2], scene(given, side=side, tenant=TEAM) as found:
        order = [await went_to(found) for _ in range(12)]
        assert Counter(order) == dict.fromkeys(("chat-0", "chat-1", "chat-2"), 4)
        assert order[:9] == order[3:]


@pytest.mark.parametrize("policy", ["auto", "least", "p2c"])
async def test_work_is_spread_by_what_is_in_flight(policy: str) -> None:
    given = pods(4, Hang)
    async with given[0], given[1], given[2], given[3], scene(given, policy=policy) as found:
        for sent in range(40):
            await found.begin(messages=text(f"text {sent} "))
            await found.until(lambda: sum(len(pod.requests) for pod in given) == sent + 1)  # noqa: B023  # waited for here
        shares = sorted(len(pod.requests) for pod in given)
        assert shares[-1] - shares[0] <= (8 if policy == "p2c" else 2)


@pytest.mark.parametrize(
    ("policy", "decisions"),
    [
        ("least", {"least"}),
        ("p2c", {"p2c"}),
        ("session", {"session"}),
        ("prefix", {"prefix"}),
        ("round_robin", {"round_robin"}),
    ],
)
async def test_who_may_know_is_told_why_and_nobody_else_is(side: Side, policy: str, decisions: set[str]) -> None:
    given = pods(2)
    async with given[0], given[1], scene(given, side=side, policy=policy, tenant=TEAM) as found:
        came = [await found.ask() for _ in range(4)]
        assert {each.headers["x-poolgate-decision"] for each in came} == decisions
        assert {each.headers["x-poolgate-attempts"] for each in came} == {"1"}
        others = await found.ask(key=found.running.other_key)
        assert not [name for name in others.headers if name.startswith("x-poolgate")]
        await found.becomes(1, PodState.DRAINING)
        assert (await found.ask()).headers["x-poolgate-decision"] == "only"
        # And everybody may read it in the access line.
        await found.running.settled()
        assert {line["decision"] for line in found.running.lines()} == {*decisions, "only"}


async def test_prompts_that_begin_alike_gather_under_auto_but_never_all_at_a_pod_at_work() -> None:
    given = pods(4)
    async with given[0], given[1], given[2], given[3], scene(given, policy="auto", tenant=TEAM) as found:
        went = [await went_to(found, messages=text("shared ")) for _ in range(24)]
        # Once it is known that prompts share anything, to the pod that is theirs on every replica.
        assert len(set(went)) <= 2
        assert len(set(went[12:])) == 1
        for pod in given:
            pod.scripts = [[Hang]]
        before = [len(pod.requests) for pod in given]
        for _ in range(16):
            await found.begin(messages=text("shared "))
        await found.until(lambda: sum(len(pod.requests) for pod in given) == 24 + 16)
        more = [len(pod.requests) - then for pod, then in zip(given, before, strict=True)]
        assert max(more) <= 12
        assert sum(map(bool, more)) > 2
