"""A model name belongs to one pool, by a rule that every replica works out alike from the same pods."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.fleet import Model, Pod, PodState, Pool
from gateway.discovery.routes import MAX_MODELS, admitted, routes_of


def pod(name: str, *models: str, age: float = 0.0, state: PodState = PodState.READY) -> Pod:
    served = tuple(Model(model, {"id": model}) for model in models)
    return Pod(name, name, name.partition("-")[0], "h", 1, state, served, created_at=age)


def test_a_model_leads_to_the_ready_pods_that_list_it() -> None:
    pods = [pod("a-0", "m"), pod("a-1", "m", "lora"), pod("a-2", "m", state=PodState.STARTING)]
    pods += [pod("a-3", "m", state=PodState.DRAINING), pod("a-4", "m", state=PodState.ASLEEP)]
    found = routes_of(pods, {}, {})
    assert [served.name for served in found.routes["m"].pods] == ["a-0", "a-1"]
    assert [served.name for served in found.routes["lora"].pods] == ["a-1"]
    assert set(found.cards) == {"m", "lora"}


def test_a_name_belongs_to_the_pool_of_its_oldest_ready_pod() -> None:
    pods = [pod("a-0", "m", age=30.0), pod("b-0", "m", age=20.0), pod("a-1", "m", age=10.0, state=PodState.STARTING)]
    found = routes_of(pods, {}, {})
    assert found.routes["m"].pool.name == "b"
    assert [served.name for served in found.routes["m"].pods] == ["b-0"]
    # The oldest comes back: it is its pool's turn.
    pods[2] = replace(pods[2], state=PodState.READY)
    assert [served.name for served in routes_of(pods, {}, {}).routes["m"].pods] == ["a-1", "a-0"]


def test_of_pods_of_one_age_the_pools_name_decides() -> None:
    for pods in ([pod("b-0", "m"), pod("a-0", "m")], [pod("a-0", "m"), pod("b-0", "m")]):
        assert routes_of(pods, {}, {}).routes["m"].pool.name == "a"


def test_names_that_settings_tell_or_that_were_served_once_are_known_without_a_pod() -> None:
    pools = {"a": Pool("a", ("x*", "later"))}
    found = routes_of([], pools, {"once": "b", "later": "b"})
    assert {name: route.pool.name for name, route in found.routes.items()} == {"later": "a", "once": "b"}
    assert all(route.pods == () for route in found.routes.values())
    assert not found.cards


def test_what_a_pod_lists_is_limited_by_its_annotation_its_pools_globs_and_a_number() -> None:
    limited = replace(pod("a-0"), allowed=("x*", "y"))
    models, refused = admitted(map(Model, ("x1", "y", "z", "xx")), limited, Pool("a", ("x?", "y")))
    assert [model.name for model in models] == ["x1", "y", "xx"]
    assert refused == {"model_not_annotated": 1}
    models, refused = admitted(map(Model, ("x1", "y")), limited, Pool("a", ("y",)))
    assert ([model.name for model in models], refused) == (["y"], {"model_not_in_pool": 1})
    models, refused = admitted((Model(f"m{number}") for number in range(100)), pod("a-0"), Pool("a"))
    assert (len(models), refused) == (MAX_MODELS, {"too_many_models": 100 - MAX_MODELS})


PODS = st.lists(
    st.builds(
        lambda number, pool, models, age, state: pod(f"{pool}-{number}", *models, age=float(age), state=state),
        st.integers(0, 10_000),
        st.sampled_from("abc"),
        st.lists(st.sampled_from(["m", "n", "o"]), unique=True),
        st.integers(0, 3),
        st.sampled_from(PodState),
    ),
    max_size=8,
    unique_by=lambda made: made.name,
)


@given(PODS, st.randoms())
def test_every_replica_decides_alike_and_no_pod_serves_another_pools_name(pods: list[Pod], rng: object) -> None:
    found = routes_of(pods, {}, {})
    other = routes_of(sorted(pods, key=lambda each: hash((each.name, id(rng)))), {}, {})
    assert {name: route.pool for name, route in found.routes.items()} == {
        name: route.pool for name, route in other.routes.items()
    }
    for route in found.routes.values():
        assert route.pods
        assert all(served.pool == route.pool.name and served.state is PodState.READY for served in route.pods)
        oldest = min(
            (each for each in pods if each.state is PodState.READY and route.model in {m.name for m in each.models}),
            key=lambda each: (each.created_at, each.pool),
        )
        assert oldest.pool == route.pool.name
