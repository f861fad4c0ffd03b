"""A configuration as text: YAML that reads back as the same configuration, and steers no terminal."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.config_text import leaves, lines
from gateway.config.reading import load_config
from gateway.config.showing import shown

GOOD = """\
discovery:
  pods:
  - {url: "http://127.0.0.1:8101", pool: chat, name: "yes"}
pools:
  chat: {models: ["qwen*", "no"], ttft_seconds: 30}
  "on": {}
models: {"gpt-4o: mini": {to: [{model: qwen3-8b}], fallback: ["*"]}}
auth: {mode: none}
limits: {rules: [{per: tenant, match: "a:b #c", requests_per_day: 5}], default: {concurrent: null}}
"""


def text_of(told: dict[str, Any]) -> str:
    return "\n".join(lines(told, lambda path: f"from {'.'.join(path)}"))


def test_what_is_shown_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(GOOD)
    config = load_config(file, {})
    file.write_text(text_of(shown(config)))
    assert load_config(file, {}) == config


def test_each_value_stands_in_a_line_with_its_source() -> None:
    told = {"server": {"port": 1, "host": "h"}, "pools": {}, "models": {"a": {"to": [{"model": "b"}]}}}
    assert text_of(told).splitlines() == [
        "server:",
        "  port: 1  # from server.port",
        '  host: "h"  # from server.host',
        "pools: {}  # from pools",
        "models:",
        "  a:",
        '    to: [{"model": "b"}]  # from models.a.to',
    ]
    assert [path for path, _ in leaves(told)] == [
        ("server", "port"),
        ("server", "host"),
        ("pools",),
        ("models", "a", "to"),
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.dictionaries(TEXTS.filter(bool), st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.lists(TEXTS))))
def test_whatever_it_holds_it_is_yaml_of_the_same_values(told: dict[str, Any]) -> None:
    assert (yaml.safe_load(text_of(told)) or {}) == told


@pytest.mark.parametrize("steering", ["\x1b[2J", "\x9b2J", "\x07", "\u202e", "\x7f"])
def test_nothing_steers_the_terminal(steering: str) -> None:
    text = text_of({f"a{steering}": steering})
    assert steering not in text
    assert yaml.safe_load(text) == {f"a{steering}": steering}
