"""What pods say they serve becomes routes: decided alike everywhere, bounded, and kept while a pod is silent."""

import asyncio

import pytest

from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Model, Pod, PodState, Pool
from gateway.core.ports import FetchFailed
from gateway.discovery.models import MAX_MODELS, ModelAsker, models_of
from gateway.discovery.static import StaticPod, fleet_of, pods_of
from tests.running import captured

PODS = pods_of([StaticPod("a-0", "h", 1, "a"), StaticPod("a-1", "h", 2, "a"), StaticPod("b-0", "h", 3, "b")])


def serving(*names: str) -> tuple[Model, ...]:
    return tuple(Model(name) for name in names)


def test_a_model_leads_to_the_ready_pods_that_list_it() -> None:
    fleet = fleet_of(PODS, {}, {"static/a-0": serving("m"), "static/a-1": serving("m", "lora")}, asked=True)
    assert [pod.name for pod in fleet.routes["m"].pods] == ["a-0", "a-1"]
    assert [pod.name for pod in fleet.routes["lora"].pods] == ["a-1"]
    assert [pod.state for pod in fleet.pods] == [PodState.READY, PodState.READY, PodState.STARTING]


def test_a_model_name_belongs_to_one_pool_the_first_in_the_files_order() -> None:
    fleet = fleet_of(PODS, {}, {"static/b-0": serving("m"), "static/a-1": serving("m")}, asked=True)
    assert fleet.routes["m"].pool.name == "a"
    assert [pod.name for pod in fleet.routes["m"].pods] == ["a-1"]


def test_a_pools_globs_say_what_it_may_serve_and_plain_names_are_known_without_a_pod() -> None:
    pools = {"a": Pool("a", ("x*",)), "b": Pool("b", ("m", "later"))}
    fleet = fleet_of(PODS, pools, {"static/a-0": serving("m", "x1"), "static/b-0": serving("m")}, asked=True)
    assert fleet.routes["m"].pool.name == "b"
    assert fleet.routes["x1"].pool.name == "a"
    assert fleet.routes["later"].pods == ()
    assert "x*" not in fleet.routes
    assert set(fleet.cards) == {"m", "x1"}


def test_a_real_listing_is_understood() -> None:
    _, raw = captured("01-models.http")
    (model,) = models_of(raw.partition(b"\r\n\r\n")[2])
    assert (model.name, model.card["max_model_len"]) == ("smollm2", 2048)


def test_a_listing_is_bounded_and_odd_names_are_left_out() -> None:
    cards = ",".join(f'{{"id":"m{number}"}}' for number in range(1000))
    assert len(models_of(f'{{"data":[{cards}]}}'.encode())) == MAX_MODELS
    odd = b'{"data":[{"id":"a\\u0000"},{"id":""},{"id":7},{},7,{"id":"%b"},{"id":"fine"}]}' % (b"x" * 300)
    assert [model.name for model in models_of(odd)] == ["fine"]
    for junk in (b"", b"[]", b'{"data":{}}', b"[" * 100_000, b"\xff"):
        with pytest.raises(FetchFailed):
            models_of(junk)


async def test_a_pod_that_falls_silent_keeps_its_models_and_one_that_hangs_holds_up_nobody() -> None:
    answers: dict[str, list[bytes | None]] = {"static/a-0": [b'{"data":[{"id":"m"}]}', None], "static/b-0": [None]}
    never = asyncio.Event()

    async def fetch(pod: Pod, path: bytes, timeout_seconds: float) -> bytes:
        if pod.uid == "static/a-1":
            await never.wait()
        queue = answers[pod.uid]
        body = queue.pop(0) if len(queue) > 1 else queue[0]
        if body is None:
            raise FetchFailed("no")
        return body

    fleet: Cell[Fleet] = Cell(Fleet())
    asker = ModelAsker(PODS, {}, fetch, fleet)
    assert await asker._ask(PODS[0])
    assert not await asker._ask(PODS[2])
    assert [pod.name for pod in fleet.value.routes["m"].pods] == ["a-0"]
    assert not fleet.value.asked
    assert await asker._ask(PODS[0])
    assert [pod.name for pod in fleet.value.routes["m"].pods] == ["a-0"]
