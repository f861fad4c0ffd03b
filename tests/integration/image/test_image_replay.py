"""That the replay reads a Dockerfile and a `.dockerignore` as an engine would."""

from pathlib import Path

import pytest

from tests.integration.image.context import Ignore, sent
from tests.integration.image.dockerfile import Stage, Step, parse
from tests.integration.image.replay import Replay

TEXT = """
# A comment
FROM python:3.11.15-slim-bookworm AS base
ENV A=1 \\
    # a comment between
    B="two words"
FROM base AS next
COPY --from=base --chown=1:1 a b c/
RUN echo "$A" \\
    && exit 1
FROM scratch
HEALTHCHECK --interval=10s \\
    CMD ["python", "-c", "pass"]
"""


def test_lines_are_joined_comments_dropped_and_stages_told_apart() -> None:
    base, following, last = parse(TEXT)
    assert (base.name, base.source, base.environment) == (
        "base",
        "python:3.11.15-slim-bookworm",
        {"A": "1", "B": "two words"},
    )
    (copy,) = following.all("COPY")
    assert (copy.flags, copy.words) == ({"from": "base", "chown": "1:1"}, ["a", "b", "c/"])
    assert following.last("RUN").rest == 'echo "$A" && exit 1'
    assert following.last("RUN").exec_form is None
    assert (last.name, last.source) == ("", "scratch")
    assert last.last("HEALTHCHECK").flags == {"interval": "10s"}
    assert last.last("HEALTHCHECK").rest == 'CMD ["python", "-c", "pass"]'


def test_an_instruction_nobody_can_replay_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know VOLUME"):
        parse("FROM scratch\nVOLUME /data\n")


@pytest.mark.parametrize("text", ["touch /there", "cp a --to=/there"])
def test_a_step_that_names_an_absolute_path_is_refused(text: str, tmp_path: Path) -> None:
    stages = [Stage("a", "base", [Step("RUN", text)]), Stage("", "scratch")]
    with pytest.raises(ValueError, match="absolute path"):
        Replay(stages, tmp_path, tmp_path).run()


def test_a_step_that_fails_says_what_it_said(tmp_path: Path) -> None:
    stages = [Stage("a", "base", [Step("RUN", "echo why >&2; exit 3")]), Stage("", "scratch")]
    with pytest.raises(AssertionError, match="why"):
        Replay(stages, tmp_path, tmp_path).run()


@pytest.mark.parametrize(
    ("path", "is_sent"),
    [
        ("README.md", True),
        ("gateway/app.py", True),
        ("gateway/api/page/page.css", True),
        ("gateway/api/__pycache__/ops.cpython-311.pyc", False),
        ("gateway/stray.pyc", False),
        ("loadtest/results/a.json", False),
        ("loadtest/resultsof.py", True),
        ("gateway.txt", False),
        (".git/config", False),
        ("keys.yaml", False),
        ("deploy/image/root_filesystem.py", True),
        ("deploy/image/notes.txt", False),
        ("deploy/kustomize/base/gateway.yaml", False),
    ],
)
def test_the_last_pattern_that_matches_decides(path: str, is_sent: bool) -> None:
    ignore = Ignore(
        "# words\n*\n!README.md\n!gateway\n!loadtest\n!deploy/image/root_filesystem.py\n"
        "loadtest/results\n**/__pycache__\n**/*.pyc\n"
    )
    assert ignore.lets_in(path) is is_sent


def test_a_folder_that_is_kept_out_is_entered_for_what_is_let_in_below(tmp_path: Path) -> None:
    for name in ("a/b/wanted", "a/b/other", "c/other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(sent(tmp_path, Ignore("*\n!a/b/wanted\n"))) == ["a/b/wanted"]
