"""Each row has a scene, each defence a scene that fails without it, and docs/faults.md lists them as they are."""

from collections import Counter
from importlib import import_module

from scripts.write_faults_docs import PAGE, all_well, page
from tests.scenes.defences import defences
from tests.scenes.promises import Promise
from tests.scenes.rows import ROWS, SECTIONS
from tests.scenes.scene import Scene, scenes


def test_each_row_has_a_scene() -> None:
    missing = [f"F{number} {title}" for number, title in ROWS.items() if number not in {each.row for each in scenes()}]
    assert not missing


def test_each_defence_has_a_scene_that_fails_without_it() -> None:
    proved = {without.defence for scene in scenes() for without in scene.without}
    assert [each.name for each in defences() if each not in proved] == []


def test_each_scene_fails_without_a_defence() -> None:
    assert [each.name for each in scenes() if not each.without] == []


def test_names_are_given_once() -> None:
    for names in (
        [scene.name for scene in scenes()],
        [scene.play.__name__ for scene in scenes()],
        [scene.sentence for scene in scenes()],
        [defence.name for defence in defences()],
    ):
        assert [name for name, count in Counter(names).items() if count > 1] == []


def test_a_scene_stands_in_its_sections_module_and_all_are_found() -> None:
    for section in SECTIONS:
        module = import_module(f"tests.scenes.{section.module}")
        assert {each.row for each in vars(module).values() if isinstance(each, Scene)} <= set(section.rows)


def test_each_promise_has_scenes_or_says_what_shows_it() -> None:
    told = {scene.promise for scene in scenes()}
    assert [each for each in Promise if each not in told] == [Promise.ONE_COMMAND]
    assert all(each.besides for each in Promise)


def test_the_page_lists_the_scenes_and_says_that_all_hold() -> None:
    assert PAGE.read_text("utf-8") == page(all_well()), "run make scenes"
