"""What is in force and where it comes from; and what is left to others when a file is read alone."""

from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.reading import ConfigFile, load_config, load_settings
from tests.unit.config.files import GOOD, write


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    assert load_config(file, {}).server.port == 8100
    environment = {"POOLGATE_SERVER__PORT": "8200", "POOLGATE_SERVICE_HOST": "10.0.0.1", "POD_KEY": "secret"}
    assert load_config(file, environment).server.port == 8200
    assert load_config(file, environment).upstream.api_key == "secret"
    assert load_config(file, environment, {"server.port": 8300, "server.host": None}).server.port == 8300
    assert load_config(None, {}).server.port == 8000


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "server: {port: x, prot: 1}\npools: {a: {ttft_seconds: -1}}\n"), {})
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", {})


def test_a_configuration_file_is_read_with_the_flags_and_the_environment_it_was_first_read_with(tmp_path: Path) -> None:
    file = ConfigFile(
        write(tmp_path, "server: {port: 1, ops_port: 2}\n"), {"POOLGATE_SERVER__HOST": "h"}, {"server.port": 9}
    )
    for ops_port in (2, 3):
        file.file.write_text(f"server: {{port: 1, host: x, ops_port: {ops_port}}}\n")
        server = file.load().server
        assert (server.host, server.port, server.ops_port) == ("h", 9, ops_port)


def test_each_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    file = write(tmp_path, "server:\n  port: 1\n  ops_port: 2\npools:\n  a:\n    policy: p2c\n")
    settings = load_settings(file, {"POOLGATE_SERVER__OPS_PORT": "3"}, {"server.host": "h", "server.port": None})
    assert settings.config.server.ops_port == 3
    assert settings.source_of("server", "host") == "--host"
    assert settings.source_of("server", "ops_port") == "POOLGATE_SERVER__OPS_PORT"
    assert settings.source_of("server", "port") == f"{file}:2"
    assert settings.source_of("pools", "a", "policy") == f"{file}:6"
    assert settings.source_of("pools", "a", "queue_limit") == "default"
    assert (settings.line_of("pools", "a", "policy"), settings.line_of("auth", "mode")) == (6, None)


# The file alone.


FILE = """\
server:
  port: 8100
  ops_token: ${OPS_TOKEN}
discovery:
  pods:
  - {url: "${POD_URL}", pool: chat}
limits:
  redis_url: file:/run/secrets/redis
  replicas: ${REPLICAS}
upstream: {api_key: "file:/run/secrets/key", connect_seconds: "${CONNECT:-2}"}
"""


def test_a_file_read_alone_needs_neither_variables_nor_secrets(tmp_path: Path) -> None:
    config = load_settings(write(tmp_path, FILE), {}, file_alone=True).config
    assert (config.server.port, config.upstream.connect_seconds) == (8100, 2)
    # What nobody knows has its default, and a pod of which that is so is left out.
    assert (config.limits.redis_url, config.limits.replicas, config.discovery.pods) == (None, 1, ())


def test_a_file_read_alone_is_judged_all_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, FILE + "pools:\n  a: {polcy: p2c, ttft_seconds: '${TTFT}'}\nauth: {mode: kees}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {}, file_alone=True)
    assert [(fault.line, fault.key) for fault in caught.value.faults] == [(12, "pools.a.polcy"), (13, "auth.mode")]


def test_what_holds_between_values_is_judged_though_another_value_is_not_known(tmp_path: Path) -> None:
    rules = "  rules:\n  - {per: key, concurrent: 1}\n  - {per: key, requests_per_day: 1}\n"
    file = write(tmp_path, "limits:\n  replicas: ${REPLICAS}\n" + rules)
    with pytest.raises(ConfigError, match=r":5: limits\.rules\.1: this and another rule"):
        load_settings(file, {}, file_alone=True)


def test_a_file_read_alone_does_not_look_at_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "server: {port: '${PORT:-1}'}\n")
    environment = {"PORT": "x", "POOLGATE_SERVER__HOST": "h", "POOLGATE_NO__SUCH": "1"}
    server = load_settings(file, environment, file_alone=True).config.server
    assert (server.port, server.host) == (1, "0.0.0.0")


@pytest.mark.parametrize("value", ["file:/nowhere/key", "${NOT_SET}"])
def test_what_the_environment_or_a_flag_replaces_is_not_looked_at(tmp_path: Path, value: str) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(f"discovery: {{namespaces: [a]}}\nupstream: {{api_key: '{value}'}}\nserver: {{host: '{value}'}}\n")
    config = load_config(file, {"POOLGATE_UPSTREAM__API_KEY": "other"}, {"server.host": "127.0.0.1"})
    assert (config.upstream.api_key, config.server.host) == ("other", "127.0.0.1")
    with pytest.raises(ConfigError, match=r"upstream\.api_key"):
        load_config(file, {}, {"server.host": "127.0.0.1"})
