"""Plays a scene: as it is, or without one of its defences."""

import traceback

from tests.scenes.afterwards import AT_REST_SECONDS, MOST_GROWN_BYTES, Footprint, at_rest
from tests.scenes.scene import Defence, Scene, SceneFailed
from tests.scenes.stage import Stage


async def play(scene: Scene, rest_seconds: float = AT_REST_SECONDS) -> None:
    """Once, and once more if memory has grown: the first time loads modules and fills pools that stay.

    Raises `SceneFailed`, with what was said on both sides.
    """
    if await _played(scene, rest_seconds) >= MOST_GROWN_BYTES:
        grown = await _played(scene, rest_seconds)
        if grown >= MOST_GROWN_BYTES:
            raise SceneFailed(f"{scene.id}: afterwards: {grown >> 20} MiB of memory more, the second time too")


async def fails_without(scene: Scene, defence: Defence) -> str:
    """The reason for which the scene fails without this defence.

    Raises `SceneFailed` if it holds all the same.
    """
    stage = Stage(defence)
    try:
        await scene.play(stage)
        await at_rest(stage)
    except AssertionError as failed:
        return str(failed)
    finally:
        await stage.close()
    raise SceneFailed(f"{scene.id} holds without {defence.name} as well: it does not prove that defence")


async def _played(scene: Scene, rest_seconds: float) -> int:
    """How much memory it left behind."""
    before = Footprint.least()
    stage = Stage()
    try:
        await scene.play(stage)
        await at_rest(stage, rest_seconds)
    except AssertionError as failed:
        raise SceneFailed(_report(scene, stage, failed)) from failed
    finally:
        await stage.close()
    # What its pods say and its clients have heard is its own.
    del stage
    await before.left(scene.id, rest_seconds)
    return before.grown_bytes()


def _report(scene: Scene, stage: Stage, failed: AssertionError) -> str:
    """All that a reader of a red scene wants to know."""
    own = [frame for frame in traceback.extract_tb(failed.__traceback__) if frame.name == scene.play.__name__]
    where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "after the scene"
    lines = [str(line) for each in stage.gateways for line in each.lines()[-5:]]
    told = ["What was said:", stage.transcript.text(), "The last access lines:", *lines]
    if stage.logged.text:
        told += ["The log:", stage.logged.text[-2000:]]
    return "\n".join([f"{scene.name}: {scene.sentence}", f"But: {failed}", f"At {where}", "", *told])
