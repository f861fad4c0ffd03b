"""A configuration is validated whole, and each fault told with its line and what to do."""

from pathlib import Path

import pytest

from gateway.config import ConfigError, add_key, load_config, load_keys

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
    assert config.pool_values()["chat"].deadlines.ttft_seconds == 30
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
        ("discovery:\n  mode: kubernetes\n  pods: [{url: 'http://a:1', pool: a}]\n", 1, "for mode static"),
        ("discovery:\n  namespaces: [Models]\n", 2, "'Models' is no namespace"),
        ("discovery:\n  namespaces: [a, a]\n", 2, "twice"),
        ("discovery:\n  namespaces: []\n", 2, "discovery.namespaces"),
        ("discovery:\n  pod_networks: [10.0.0.1/8]\n", 2, "host bits"),
        ("server:\n  port: 1\n  port: 2\n", 3, "twice"),
        ("server: [\n", 2, "not valid YAML"),
        ("- 1\n", 1, "must hold sections"),
        ("upstream:\n\n  api_key: ${MISSING}\n", 3, "MISSING"),
        ("upstream:\n  api_key: file:/nowhere/key\n", 2, "cannot be read"),
        ("upstream:\n  pool_idle_seconds: 5\n", 2, "less than 5"),
        (
            "discovery:\n  pods:\n" + "  - {url: 'http://a:1', pool: a, name: x}\n" * 2,
            1,
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


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", {})


def test_keys_are_added_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    entry = {"id": "a1b2c3d4", "sha256": "0" * 64, "team": "acme", "models": ["qwen*"]}
    add_key(file, entry)
    add_key(file, entry | {"id": "b", "expires": "2030-01-01T00:00:00+00:00"})
    assert file.stat().st_mode & 0o777 == 0o600
    first, second = load_keys(file)
    assert (first.tenant.key_id, first.tenant.models, first.tenant.expires_at) == ("a1b2c3d4", ("qwen*",), None)
    assert second.tenant.expires_at == 1_893_456_000


def test_the_contracts_example_of_a_keys_file_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        'keys: [{id: a1b2c3d4, sha256: "' + "a" * 64 + '", team: acme, models: ["*"], requests_per_minute: null,'
        " tokens_per_minute: null, concurrent: null, priority: 0, expires: null, disabled: false, debug: false,"
        ' allow_fields: [], forwards_user: false, note: ""}]\n'
    )
    assert load_keys(file)[0].tenant.team == "acme"


def test_a_limit_that_would_not_be_kept_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f'keys:\n- id: a\n  sha256: "{"a" * 64}"\n  team: acme\n  requests_per_minute: 5\n')
    with pytest.raises(ConfigError, match=r"keys\.yaml:5: keys\.0\.requests_per_minute"):
        load_keys(file)


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
