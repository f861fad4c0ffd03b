"""A configuration is validated whole, and each fault told with its line and what to do."""

from pathlib import Path

import pytest

from gateway.config import ConfigError, ConfigFile, differences, load_config, load_keys
from gateway.core.fleet import Deadlines, Pool
from gateway.core.naming import Alias, Target

GOOD = """\
server: {port: 8100}
discovery:
  mode: static
  pods:
    - {url: "http://127.0.0.1:8101", pool: chat}
    - {url: "http://[::1]:8102", pool: chat, name: second}
    - {url: "http://pod.local:8103", pool: embed}
pools:
  chat: {models: ["qwen*"], ttft_seconds: 30}
  embed: {policy: p2c, max_in_flight_per_pod: 8, queue_limit: 0, queue_wait_seconds: 0, hold_empty_seconds: 90}
models:
  gpt-4o-mini: {to: [{model: qwen3-8b, weight: 90}, {model: qwen3-8b-fp8, weight: 10}], fallback: [qwen3-0.6b]}
  qwen3-8b: {to: [{model: qwen3-8b}], fallback: [qwen3-0.6b]}
auth: {mode: keys, keys_file: keys.yaml}
upstream: {api_key: "${POD_KEY:-none}"}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "poolgate.yaml"
    file.write_text(text)
    return file


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


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    assert load_config(file, {}).server.port == 8100
    environment = {"POOLGATE_SERVER__PORT": "8200", "POOLGATE_SERVICE_HOST": "10.0.0.1", "POD_KEY": "secret"}
    assert load_config(file, environment).server.port == 8200
    assert load_config(file, environment).upstream.api_key == "secret"
    assert load_config(file, environment, {"server.port": 8300, "server.host": None}).server.port == 8300
    assert load_config(None, {}).server.port == 8000


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  prot: 1\n", 2, "server.prot: this key does not exist"),
        ("server:\n  port: 99999\n", 2, "server.port"),
        ("discovery:\n  pods:\n    - {url: 'ftp://x', pool: a}\n", 3, "http://HOST:PORT"),
        ("discovery:\n  mode: consul\n", 2, "discovery.mode"),
        ("discovery:\n  mode: kubernetes\n  pods: [{url: 'http://a:1', pool: a}]\n", 3, "for mode static"),
        ("discovery:\n  namespaces: [Models]\n", 2, "'Models' is no namespace"),
        ("discovery:\n  namespaces: [a, a]\n", 2, "twice"),
        ("discovery:\n  namespaces: []\n", 2, "discovery.namespaces"),
        ("discovery:\n  pod_networks: [10.0.0.1/8]\n", 2, "host bits"),
        ("server:\n  port: 1\n  port: 2\n", 3, "twice"),
        ("server: [\n", 2, "not valid YAML"),
        ("- 1\n", 1, "must hold sections"),
        ("server: {port: 2024-13-45}\n", 1, "not valid YAML"),
        ("? [a]\n: b\n", 1, "not valid YAML"),
        ("server: &x [*x]\n", 1, "holds itself"),
        ("server: " + "[" * 5000 + "]" * 5000, 1, "nests too deeply"),
        ("upstream:\n\n  api_key: ${MISSING}\n", 3, "MISSING"),
        ("upstream:\n  api_key: file:/nowhere/key\n", 2, "cannot be read"),
        ("upstream:\n  pool_idle_seconds: 5\n", 2, "less than 5"),
        ("pools:\n  a:\n    policy: random\n", 3, "pools.a.policy"),
        ("pools:\n  a:\n    queue_limit: 100001\n", 3, "pools.a.queue_limit"),
        ("pools:\n  a:\n    max_in_flight_per_pod: 0\n", 3, "pools.a.max_in_flight_per_pod"),
        ("models:\n  a: {}\n", 2, "models.a.to"),
        ("models:\n  a:\n    to: []\n", 3, "models.a.to"),
        ("models:\n  a:\n    to:\n      - {model: b, weight: 0}\n", 4, "models.a.to.0.weight"),
        ("models:\n  a:\n    to:\n      - {model: b}\n      - {weight: 1}\n", 5, "models.a.to.1.model"),
        ("models:\n  a:\n    to:\n      - {model: ''}\n", 4, "is no model's name"),
        ('models:\n  x: {to: [{model: b}]}\n  "a\\n": {to: [{model: b}]}\n', 3, "is no model's name"),
        ("models:\n  a: {to: [{model: b}, {model: b}]}\n", 2, "to.1: 'b' stands here twice"),
        ("models:\n  a: {to: [{model: b}], fallback: [c, c]}\n", 2, "fallback.1: 'c' stands here twice"),
        ("models:\n  a: {to: [{model: b}], fallback: [c, b]}\n", 2, "'b' is the only model in 'to'"),
        (f"models:\n  a:\n    to: [{', '.join(f'{{model: m{n}}}' for n in range(17))}]\n", 3, "models.a.to"),
        (f"models:\n  a:\n    to: [{{model: b}}]\n    fallback: {list('cdefghijk')}\n", 4, "models.a.fallback"),
        (
            "discovery:\n  pods:\n" + "  - {url: 'http://a:1', pool: a, name: x}\n" * 2,
            4,
            "'x'",
        ),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value).startswith(f"{file}:{line}:")
    assert words in str(caught.value)


def test_without_a_mode_a_list_of_pods_makes_it_static(tmp_path: Path) -> None:
    assert load_config(None, {}).discovery.mode == "kubernetes"
    assert load_config(write(tmp_path, GOOD), {}).discovery.mode == "static"
    listed = {"discovery.pods": [{"url": "http://a:1", "pool": "a"}]}
    assert load_config(None, {"POOLGATE_DISCOVERY__NAMESPACES": "[a, b]"}).discovery.namespaces == ("a", "b")
    assert load_config(None, {}, listed).discovery.mode == "static"


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "server: {port: x, prot: 1}\npools: {a: {ttft_seconds: -1}}\n"), {})
    assert len(str(caught.value).splitlines()) == 3


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


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_for_pods_is_one_that_a_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError, match=r"upstream\.api_key"):
        load_config(None, {}, {"upstream.api_key": key})


def test_two_configurations_differ_in_the_keys_that_are_told() -> None:
    before = load_config(None, {}, {"pools": {"a": {"policy": "p2c"}, "b": {}}, "models.x": {"to": [{"model": "y"}]}})
    flags = {"pools": {"a": {"policy": "p2c", "queue_limit": 1}, "c": {}}, "server.port": 1}
    now = load_config(None, {}, {**flags, "models.x": {"to": [{"model": "z"}]}})
    assert differences(before, now) == ("server.port", "pools.a.queue_limit", "pools.b", "pools.c", "models.x.to")
    assert differences(now, now) == ()


def test_a_configuration_file_is_read_with_the_flags_and_the_environment_it_was_first_read_with(tmp_path: Path) -> None:
    file = ConfigFile(
        write(tmp_path, "server: {port: 1, ops_port: 2}\n"), {"POOLGATE_SERVER__HOST": "h"}, {"server.port": 9}
    )
    for ops_port in (2, 3):
        file.file.write_text(f"server: {{port: 1, host: x, ops_port: {ops_port}}}\n")
        server = file.load().server
        assert (server.host, server.port, server.ops_port) == ("h", 9, ops_port)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", {})


def test_the_contracts_example_of_a_keys_file_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        'keys: [{id: a1b2c3d4, sha256: "' + "a" * 64 + '", team: acme, models: ["*"], requests_per_minute: null,'
        " tokens_per_minute: null, concurrent: null, priority: 0, expires: null, disabled: false, debug: false,"
        ' allow_fields: [], forwards_user: false, note: ""}]\n'
    )
    assert load_keys(file)[0].tenant.team == "acme"


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"id": "a"}, ":5: keys.1.id: the id 'a' is that of the key on line 2 too: give each key its own"),
        ({"sha256": f'"{"0" * 64}"'}, ":6: keys.1.sha256: this is the key on line 3 again: keep one of them"),
    ],
)
def test_a_key_or_an_id_that_stands_twice_is_refused_with_both_lines(
    tmp_path: Path, second: dict[str, str], told: str
) -> None:
    """Of two entries of one key the one that revokes it might be the one that loses."""
    file = tmp_path / "keys.yaml"
    lines = {"id": "b", "sha256": f'"{"1" * 64}"', "team": "acme"} | second
    of_second = "\n  ".join(f"{name}: {value}" for name, value in lines.items())
    file.write_text(f'keys:\n- id: a\n  sha256: "{"0" * 64}"\n  team: acme\n- {of_second}\n')
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value) == f"{file}{told}"


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [
        ("2030-01-01T00:00:00Z", 1_893_456_000),
        ("'2030-01-01T00:00:00'", 1_893_456_000),
        ("2030-01-01 01:00:00 +01:00", 1_893_456_000),
        ("2030-01-01", 1_893_456_000),
        ("null", None),
        ("2030", ValueError),
        ("'90'", ValueError),
        ("90d", ValueError),
        ("-1", ValueError),
        ("1.5", ValueError),
    ],
)
def test_an_expiry_is_a_time_and_never_a_count_of_seconds(
    tmp_path: Path, expires: str, seconds: int | type[ValueError] | None
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f'keys:\n- id: a\n  sha256: "{"0" * 64}"\n  team: acme\n  expires: {expires}\n')
    if isinstance(seconds, type):
        with pytest.raises(ConfigError, match=r":5: keys\.0\.expires: give a time such as 2027-01-01T00:00:00Z"):
            load_keys(file)
    else:
        assert load_keys(file)[0].tenant.expires_at == seconds


def test_an_id_may_not_be_one_of_an_issuers_tokens(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f'keys: [{{id: jwt-1, sha256: "{"0" * 64}", team: acme}}]')
    with pytest.raises(ConfigError, match=r":1: keys\.0\.id: ids that begin with 'jwt-' are those of an issuer's"):
        load_keys(file)


def test_the_limits_of_a_key_are_its_tenants(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        f'keys:\n- id: a\n  sha256: "{"a" * 64}"\n  team: acme\n  requests_per_minute: 5\n  tokens_per_minute: 6\n'
        "  concurrent: 7\n  priority: -1\n  forwards_user: true\n"
    )
    (entry,) = load_keys(file)
    tenant = entry.tenant
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent) == (5, 6, 7)
    assert (tenant.priority, tenant.forwards_user) == (-1, True)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("[{per: tenant}]", "a rule without a limit"),
        ("[{per: team, requests_per_minute: 1}]", r"limits\.rules\.0\.per"),
        ("[{per: key, requests_per_minute: 0}]", r"limits\.rules\.0\.requests_per_minute"),
        ("[{per: key, concurrent: 1}, {per: key, requests_per_day: 1}]", "make them one"),
    ],
)
def test_a_rule_that_limits_nothing_or_stands_twice_is_refused(tmp_path: Path, rules: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(write(tmp_path, f"limits: {{rules: {rules}}}\n"), {})


def test_a_token_of_the_ops_port_is_kept_to_itself_and_never_empty(tmp_path: Path) -> None:
    file = write(tmp_path, 'server: {ops_token: "${OPS_TOKEN:-}"}\n')
    config = load_config(file, {"OPS_TOKEN": "s3cret"})
    assert config.server.ops_token == "s3cret"
    assert "s3cret" not in repr(config)
    with pytest.raises(ConfigError, match=r"server\.ops_token"):
        load_config(file, {})


def test_the_globs_that_a_pool_was_given_are_told_from_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'pools: {a: {models: ["*"]}, b: {ttft_seconds: 9}, c: {models: ["x*", y]}}\n')
    assert load_config(file, {}).explicit_globs() == {"a": ("*",), "c": ("x*", "y")}
