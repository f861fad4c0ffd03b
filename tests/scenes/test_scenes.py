"""Every scene holds, and fails without each of the defences that it is there to prove."""

import re

import pytest

from tests.scenes.playing import fails_without, play
from tests.scenes.scene import Scene, SceneFailed, Without, scenes


def marks(scene: Scene) -> list[pytest.MarkDecorator]:
    return [] if scene.program is None else [pytest.mark.program(scene.program)]


HOLDING = [pytest.param(each, id=each.id, marks=marks(each)) for each in scenes()]
FAILING = [
    pytest.param(each, without, id=f"{each.name}-without-{without.defence.name}", marks=marks(each))
    for each in scenes()
    for without in each.without
]


@pytest.mark.parametrize("scene", HOLDING)
def test_it_holds(scene: Scene) -> None:
    try:
        scene.run(play(scene))
    except SceneFailed as failed:
        pytest.fail(str(failed), pytrace=False)


@pytest.mark.parametrize(("scene", "without"), FAILING)
def test_it_fails(scene: Scene, without: Without) -> None:
    why = scene.run(fails_without(scene, without.defence))
    assert re.search(without.red, why), f"{scene.name} fails without {without.defence.name}, but because: {why}"
