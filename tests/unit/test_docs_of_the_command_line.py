"""docs/command-line.md tells of every command and of every option there is, and of no other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli.main import app
from gateway.config.faults import ConfigError
from gateway.config.reading import load_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
HELP = "--help"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    below = getattr(command, "commands", {})
    if not below or name == "poolgate":
        yield name, command
    for word, each in below.items():
        yield from commands(each, f"{name} {word}")


COMMANDS = dict(commands(typer.main.get_command(app), "poolgate"))
SECTIONS = dict(
    re.findall(r"^## (poolgate[^\n]*)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
)


def flags(command: Any) -> set[str]:
    """Its options, each by all of its names; the help is everywhere."""
    return {flag for option in command.params for flag in option.opts if flag.startswith("-")} - {HELP}


def test_every_command_has_a_section() -> None:
    assert list(SECTIONS) != []
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_lists_every_option_there_is(name: str) -> None:
    rows = re.findall(r"^\| (`-[^|]*) \|", SECTIONS[name], re.MULTILINE)
    assert {flag for row in rows for flag in re.findall(r"`(-[^`]*)`", row)} == flags(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_shows_how_it_is_called(name: str) -> None:
    examples = re.findall(r"^```sh\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    assert any(re.search(rf"^(.*\| )?{name}\b", line) for example in examples for line in example.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_says_what_it_means(name: str) -> None:
    for option in COMMANDS[name].params:
        if HELP not in option.opts:
            assert option.help, f"{name}: {option.opts}"


def test_the_faults_of_the_page_are_what_is_said(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(
        "server:\n  prot: 1\n\n\n\n\npools:\n  chat:\n    policy: leest\n\n\n\nupstream:\n  api_key: ${VLLM_KEY}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    for line in str(caught.value).replace(f"{tmp_path}/", "").splitlines():
        assert f"poolgate: {line}\n" in SECTIONS["poolgate check"]
