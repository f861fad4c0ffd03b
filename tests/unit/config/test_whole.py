"""What the others receive of a configuration, and what must hold between its sections."""

from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.reading import load_config
from gateway.core.fleet import Deadlines, Pool
from gateway.core.naming import Alias, Target
from tests.unit.config.files import GOOD, write


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), {})
    assert [(pod.name, pod.host, pod.port) for pod in config.static_pods()] == [
        ("chat-0", "127.0.0.1", 8101),
        ("second", "::1", 8102),
        ("embed-0", "pod.local", 8103),
    ]
    pools = config.pool_values()
    assert pools["chat"] == Pool("chat", ("qwen*",), Deadlines(ttft_seconds=30))
    assert pools["embed"] == Pool("embed", ("*",), Deadlines(), "p2c", 8, 0, 0, 90)
    assert config.aliases() == {
        "gpt-4o-mini": Alias(
            "gpt-4o-mini", (Target("qwen3-8b", 90), Target("qwen3-8b-fp8", 10)), fallback=("qwen3-0.6b",)
        ),
        "qwen3-8b": Alias("qwen3-8b", (Target("qwen3-8b", 1),), fallback=("qwen3-0.6b",)),
    }
    assert config.upstream.api_key == "none"
    assert "none" not in repr(config.upstream)


def test_a_split_may_fall_back_on_one_of_its_own_models(tmp_path: Path) -> None:
    file = write(tmp_path, "models: {a: {to: [{model: new, weight: 1}, {model: old, weight: 9}], fallback: [old]}}\n")
    assert load_config(file, {}).aliases()["a"].fallback == ("old",)


STATIC = 'discovery: {pods: [{url: "http://a:1", pool: chat}]}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {to: [{model: b}]}}\n", []),
        ("models: {a: {to: [{model: b}]}}\n" + STATIC, []),
        ("models: {a: {to: [{model: b}]}}\npools: {chat: {}}\n", []),
        ("models: {a: {to: [{model: b1}]}}\npools: {chat: {models: [x]}, other: {models: ['b*']}}\n", []),
        ("models: {a: {to: [{model: b}]}}\npools: {chat: {models: ['x*']}}\n", ["models.a: no pool", "'b'"]),
        ("models: {a: {to: [{model: x}], fallback: [b]}}\npools: {chat: {models: [x]}}\n" + STATIC, ["'b'"]),
        ("models: {a: {to: [{model: b}]}, b: {to: [{model: c}]}}\n", ["models.a: 'b' is an alias too"]),
        ("models: {a: {to: [{model: b}]}, b: {to: [{model: b}], fallback: [c]}}\n", []),
    ],
)
def test_targets_that_were_perhaps_not_meant_are_told(tmp_path: Path, text: str, words: list[str]) -> None:
    doubts = list(load_config(write(tmp_path, text), {}).doubtful_targets())
    assert len(doubts) == bool(words)
    assert all(word in doubts[0] for word in words)


def test_a_pod_stands_in_its_pool_once(tmp_path: Path) -> None:
    pods = [{"url": "http://a:1", "pool": pool, "name": name} for pool, name in (("x", "one"), ("y", "two"))]
    assert len(load_config(None, {}, {"discovery.pods": pods}).static_pods()) == 2
    with pytest.raises(ConfigError, match="one and three are the same pod, by pool and url"):
        load_config(None, {}, {"discovery.pods": [*pods, {"url": "http://a:1/", "pool": "x", "name": "three"}]})


def test_the_globs_that_a_pool_was_given_are_told_from_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'pools: {a: {models: ["*"]}, b: {ttft_seconds: 9}, c: {models: ["x*", y]}}\n')
    assert load_config(file, {}).explicit_globs() == {"a": ("*",), "c": ("x*", "y")}
