"""Every scene holds, and fails without each of the defences that it is there to prove."""

import re

import pytest
import uvloop

from tests.scenes.playing import fails_without, play
from tests.scenes.scene import Scene, SceneFailed, Without, scenes

HOLDING = [pytest.param(each, id=each.id) for each in scenes()]
FAILING = [
    pytest.param(each, without, id=f"{each.name}-without-{without.defence.name}")
    for each in scenes()
    for without in each.without
]


@pytest.mark.parametrize("scene", HOLDING)
def test_it_holds(scene: Scene) -> None:
    try:
        uvloop.run(play(scene))
    except SceneFailed as failed:
        pytest.fail(str(failed), pytrace=False)


@pytest.mark.parametrize(("scene", "without"), FAILING)
def test_it_fails(scene: Scene, without: Without) -> None:
    why = uvloop.run(fails_without(scene, without.defence))
    assert re.search(without.red, why), f"{scene.name} fails without {without.defence.name}, but because: {why}"
