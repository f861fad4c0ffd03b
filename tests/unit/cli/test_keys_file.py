"""An entry is added to a keys file or disabled in it, and nothing else in the file changes."""

import fcntl
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.keys_file import add_key, disable_key
from gateway.config.faults import ConfigError
from gateway.config.keys import load_keys

ENTRY = {"id": "a1b2c3d4", "sha256": "0" * 64, "team": "acme", "models": ["qwen*"]}
OTHER = ENTRY | {"id": "b", "sha256": "1" * 64}
THIRD = ENTRY | {"id": "c", "sha256": "2" * 64, "expires": "2030-01-01T00:00:00+00:00", "note": "née: #1"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def ids(file: Path) -> list[str]:
    return [entry.tenant.key_id for entry in load_keys(file)]


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_keys_are_added_to_a_file_that_only_its_owner_reads(file: Path) -> None:
    add_key(file, ENTRY)
    add_key(file, THIRD)
    assert mode(file) == 0o600
    first, second = load_keys(file)
    assert (first.tenant.key_id, first.tenant.models, first.tenant.expires_at) == ("a1b2c3d4", ("qwen*",), None)
    assert (second.tenant.expires_at, second.note) == (1_893_456_000, "née: #1")


IN_LINES = f"""\
# The keys of the cluster.
keys:   # by team
  # acme's, see the ticket
  - id: a1b2c3d4     # their app
    sha256: "{"0" * 64}"
    team: acme
    models: ["qwen*"]
    note: |
      Two lines,
      # and no comment.

  - {{id: b, sha256: '{"1" * 64}', team: acme, disabled: false}}   # in one line
  - id: c
    sha256: {"2" * 63}a
    disabled: no   # not yet
    team: acme
  # the end
"""
ONE_LINE = f'{{"keys": [{{"id": "a1b2c3d4", "sha256": "{"0" * 64}", "team": "acme"}}]}}\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "keys: []",
        "# None yet.\nkeys: []   # come later\n",
        "keys:\n  []\n",
        '{"keys": []}',
        IN_LINES,
        IN_LINES.rstrip(),
        ONE_LINE,
        ONE_LINE.replace("}]", "},]"),
        f"keys:\n- id: old\n  sha256: '{'0' * 64}'\n  team: acme\n  models:\n  - a\n  - b",
        f"---\nkeys: [{{id: old, sha256: '{'0' * 64}', team: acme}}]\n",
    ],
)
def test_an_entry_is_added_and_every_line_that_was_there_stays(file: Path, text: str) -> None:
    file.write_text(text)
    before = ids(file) if text.strip() else []
    add_key(file, OTHER | {"id": "new", "sha256": "f" * 64})
    assert ids(file) == [*before, "new"]
    if before and "\n  " in text:
        assert file.read_text().startswith(text)
    for comment in (part for line in text.splitlines() for part in line.split("   ") if part.lstrip().startswith("#")):
        assert comment in file.read_text()


@pytest.mark.parametrize(("index", "key_id"), list(enumerate(("a1b2c3d4", "b", "c"))))
def test_an_entry_is_disabled_and_nothing_else_changes(file: Path, index: int, key_id: str) -> None:
    file.write_text(IN_LINES)
    before = yaml.safe_load(IN_LINES)["keys"]
    assert disable_key(file, key_id).tenant.key_id == key_id
    now = yaml.safe_load(file.read_text())["keys"]
    assert now == [each | ({"disabled": True} if at == index else {}) for at, each in enumerate(before)]
    old, new = IN_LINES.splitlines(), file.read_text().splitlines()
    assert len([line for line in old if line not in new]) == (0 if key_id == "a1b2c3d4" else 1)
    assert file.read_text().count("#") == IN_LINES.count("#")


def test_an_entry_in_one_line_is_disabled(file: Path) -> None:
    file.write_text(ONE_LINE)
    disable_key(file, "a1b2c3d4")
    assert load_keys(file)[0].disabled


def test_a_key_that_is_disabled_already_leaves_the_file_alone(file: Path) -> None:
    add_key(file, ENTRY | {"disabled": True})
    before = file.stat()
    assert disable_key(file, "a1b2c3d4").disabled
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_id_that_the_file_does_not_have_is_told(file: Path) -> None:
    add_key(file, ENTRY)
    with pytest.raises(ConfigError, match=r"keys\.yaml: no key here has the id 'a1b2': 'poolgate keys list' shows"):
        disable_key(file, "a1b2")


SHARED = f"""\
keys:
- &one
  id: a
  sha256: {"0" * 63}a
  team: acme
- <<: *one
  id: b
  sha256: {"1" * 63}a
"""
ENDED = f"keys:\n- id: a\n  sha256: {'0' * 63}a\n  team: acme\n...\n"


@pytest.mark.parametrize(("text", "change"), [(SHARED, "disable"), (ENDED, "add")])
def test_where_a_change_would_do_more_than_it_should_the_file_stays(file: Path, text: str, change: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="change it by hand"):
        disable_key(file, "a") if change == "disable" else add_key(file, ENTRY)
    assert file.read_text() == text
    assert os.listdir(file.parent) == ["keys.yaml"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys: [", "not valid YAML"),
        ("keys:\n", "write 'keys: \\[\\]'"),
        ("server: {}\n", "server: this key does not exist"),
        ("keys: [{id: a}]\n", r"keys\.0\.sha256"),
        ("- a\n", "must hold 'keys:'"),
    ],
)
def test_what_is_no_keys_file_is_left_alone(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        add_key(file, ENTRY)
    assert file.read_text() == text


@pytest.mark.parametrize("more", [{"team": ""}, {"requests_per_minute": 0}, {"priority": 1000}, {"no": 1}])
def test_an_entry_that_could_not_be_read_is_not_written(file: Path, more: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"the new key.*{next(iter(more))}"):
        add_key(file, {**ENTRY, **more})
    assert not file.exists()


def test_a_key_that_stands_there_already_is_not_added(file: Path) -> None:
    add_key(file, ENTRY)
    with pytest.raises(ConfigError, match="'a1b2c3d4' is that of the key on line 2 too"):
        add_key(file, ENTRY)
    assert ids(file) == ["a1b2c3d4"]
    assert os.listdir(file.parent) == ["keys.yaml"]


def test_a_symbolic_link_is_not_written_and_it_is_said_what_to_change(file: Path) -> None:
    """As Kubernetes mounts a Secret: the link would become a file, which no update ever reaches."""
    real = file.with_name("real.yaml")
    add_key(real, ENTRY)
    file.symlink_to(real.name)
    for change in (lambda: add_key(file, OTHER), lambda: disable_key(file, "a1b2c3d4")):
        with pytest.raises(ConfigError, match=r"symbolic link.*the Secret is made from"):
            change()
    assert file.is_symlink()
    assert ids(real) == ["a1b2c3d4"]


def test_a_directory_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be changed: No such file or directory"):
        add_key(file.parent / "none" / "keys.yaml", ENTRY)


def test_who_could_read_the_file_can_read_the_new_one_and_nobody_else(file: Path) -> None:
    """A gateway that runs as another user reads it by its group."""
    for before, now in ((0o640, 0o640), (0o600, 0o600), (0o664, 0o640), (0o400, 0o600)):
        file.unlink(missing_ok=True)
        add_key(file, ENTRY)
        file.chmod(before)
        add_key(file, OTHER)
        assert mode(file) == now


def test_the_file_is_replaced_whole_and_what_a_killed_command_left_does_not_matter(file: Path) -> None:
    add_key(file, ENTRY)
    left = file.with_name(".keys.yaml.new")
    left.write_text("keys:")
    left.chmod(0o666)
    with file.open() as held:
        add_key(file, OTHER)
        assert "id: b" not in held.read()
    assert (ids(file), mode(file)) == (["a1b2c3d4", "b"], 0o600)
    assert os.listdir(file.parent) == ["keys.yaml"]


def test_two_commands_at_once_both_take_effect(file: Path) -> None:
    add_key(file, ENTRY)
    held = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    others = [threading.Thread(target=add_key, args=(file, each)) for each in (OTHER, THIRD)]
    for other in others:
        other.start()
    assert ids(file) == ["a1b2c3d4"]
    os.close(held)
    for other in others:
        other.join(10)
    assert sorted(ids(file)) == ["a1b2c3d4", "b", "c"]
