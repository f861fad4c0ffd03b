"""Every command of every page is run, unless a mark says what it wants, or another test has it.

In the order of the page, in a folder for each page. A console's answer is compared where it is the same everywhere.
"""

import re
import subprocess
from dataclasses import dataclass, field

import pytest

from tests.docs.claims import BLOCKS
from tests.docs.pages import ALL, TYPED, Block
from tests.docs.stage import Stage

README_WORDS = re.compile(r"sk-pg_\w+|sk-pg_…")


@dataclass(frozen=True)
class Scene:
    """What one block goes by, where it is not what all pages go by."""

    files: dict[str, str] = field(default_factory=dict)
    before: str = ""
    """What is typed first."""
    code: int = 0
    answers: bool = False
    """It prints what the page says, to the letter."""


FAULTY = """\
server:
  prot: 8000

discovery:
  pods: [{url: "http://127.0.0.1:9", pool: chat}]

pools:
  chat:
    policy: leest

auth: {keys_file: keys.yaml}

upstream:
  api_key: ${VLLM_KEY}
"""
SCENES = {
    ("docs/command-line.md", "poolgate check poolgate.yaml\n"): Scene({"poolgate.yaml": FAULTY}, code=2, answers=True),
    ("docs/command-line.md", "poolgate usage access.log"): Scene({"access.log": '{"tenant": "acme"}\n'}),
    ("docs/command-line.md", "export POOLGATE_API_KEY"): Scene(
        before="git init --quiet . && git add poolgate.yaml && echo '# more' >> poolgate.yaml"
    ),
}


def scene_of(block: Block) -> Scene:
    return next(
        (
            scene
            for (page, begins), scene in SCENES.items()
            if (page, scene.answers) == (block.page, block.language == "console") and block.begins(begins)
        ),
        Scene(),
    )


def of_others(block: Block) -> bool:
    """Whether another test runs it."""
    return any(claim.page == block.page and block.begins(claim.begins) for claim in BLOCKS)


def programs(block: Block) -> list[pytest.MarkDecorator]:
    """Those that a bare machine may lack."""
    named = ("curl", "git", "kubectl", "promtool")
    typed = scene_of(block).before + block.script
    return [pytest.mark.program(name) for name in named if re.search(rf"(^|\W){name}\s", typed)]


OURS = [
    pytest.param(block, id=block.name, marks=programs(block))
    for block in ALL
    if block.language in TYPED and not block.wants and not of_others(block)
]


SENTENCES = (
    ("CONTRIBUTING.md", ".venv/bin/python -m pytest tests/unit/config/test_keys.py"),
    ("CONTRIBUTING.md", ".venv/bin/python scripts/write_configuration_docs.py"),
)
"""Commands that stand in a sentence, and are run."""


@pytest.mark.parametrize(("page", "span"), SENTENCES)
def test_what_a_sentence_says_to_type_can_be_typed(page: str, span: str, stage: Stage) -> None:
    ended = stage.typed(span, stage.folder(page))
    assert ended.returncode == 0, ended.stderr + ended.stdout


@pytest.mark.parametrize("block", OURS)
def test_what_a_page_says_to_type_can_be_typed(block: Block, stage: Stage) -> None:
    scene = scene_of(block)
    folder = stage.folder(block.page)
    kept = {name: (folder / name).read_text() if (folder / name).exists() else None for name in scene.files}
    for name, text in scene.files.items():
        (folder / name).write_text(text, "utf-8")
    if scene.before:
        subprocess.run(["sh", "-e", "-c", scene.before], cwd=folder, check=True, env=stage.environment(folder))
    ended = stage.run(block)
    for name, text_before in kept.items():
        if text_before is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text_before, "utf-8")
    assert ended.returncode == scene.code, ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    if scene.answers:
        assert ended.stdout + ended.stderr == block.answer


def test_each_scene_is_played() -> None:
    played = {id(scene_of(block)) for block in ALL if block.language in TYPED}
    assert {id(scene) for scene in SCENES.values()} <= played


def test_the_demo_prints_what_the_readme_says(stage: Stage) -> None:
    """But for the key and the ports."""
    (shown,) = (block.text for block in ALL if block.page == "README.md" and "Poolgate is up" in block.text)
    printed = stage.words.replace(stage.url, "http://127.0.0.1:8000").replace(stage.ops_url, "http://127.0.0.1:9090")
    # Which name the command goes by depends on where it was started: docs/command-line.md.
    printed = README_WORDS.sub("sk-pg_…", printed).replace(" poolgate chat", " .venv/bin/poolgate chat")
    assert printed.strip() == shown.strip()


@pytest.mark.program("curl")
def test_what_the_demo_prints_can_be_pasted(stage: Stage) -> None:
    lines = stage.words.partition("/metrics\n")[2]
    assert "poolgate chat" in lines
    assert "curl -N" in lines
    ended = stage.typed(lines.replace("curl -N", "curl -N --fail --silent --show-error"), stage.tree)
    assert ended.returncode == 0, ended.stderr
    assert "data: [DONE]" in ended.stdout
