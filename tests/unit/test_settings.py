"""What is in force and where it comes from; what is left to others when a file is read alone; and what is shown."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from gateway.config import MASK, Config, ConfigError, config_schema, load_config, load_settings, one_underscore, shown

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


def write(folder: Path, text: str) -> Path:
    file = folder / "poolgate.yaml"
    file.write_text(text)
    return file


# Where a value comes from.


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


def test_a_variable_with_one_underscore_too_few_is_told() -> None:
    environment = {
        "POOLGATE_SERVER_PORT": "8100",
        "POOLGATE_SERVER_OPS_PORT": "tcp://10.0.0.1:80",
        "POOLGATE_SERVICE_HOST": "10.0.0.1",
        "POOLGATE_API_KEY": "sk-pg_x",
        "POOLGATE_SERVER__HOST": "h",
    }
    assert list(one_underscore(environment)) == [("POOLGATE_SERVER_PORT", "POOLGATE_SERVER__PORT")]


# The file alone.


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


# What is shown.


def fields(model: type[BaseModel], path: str = "") -> list[tuple[str, bool]]:
    """(Each key that holds a value, whether it is a secret)."""
    found: list[tuple[str, bool]] = []
    for name, about in model.model_fields.items():
        sections = [kind for kind in kinds(about.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            found.append((f"{path}{name}", about.repr is False))
        for section in sections:
            found += fields(section, f"{path}{name}.")
    return found


def kinds(annotation: Any) -> list[Any]:
    inner = [kind for each in get_args(annotation) for kind in kinds(each)]
    return inner or [annotation]


SECRET_WORDS = ("token", "secret", "password", "api_key", "credential", "redis_url", "private", "headers")
NO_SECRETS = {
    "auth.jwt.tenant_claim",
    "limits.default.tokens_per_minute",
    "limits.rules.tokens_per_minute",
    "limits.rules.tokens_per_day",
}


def test_every_field_that_sounds_like_a_secret_is_masked() -> None:
    found = fields(Config)
    assert len(found) > 40
    for key, secret in found:
        sounds = any(word in key.rpartition(".")[2] for word in SECRET_WORDS) and key not in NO_SECRETS
        assert secret == sounds, f"{key}: give the field repr=False if it is a secret, or name it here if it is none"


SECRET = "hunter2-hunter2-hunter2"


def test_no_secret_is_shown() -> None:
    flags = {
        "server.ops_token": SECRET,
        "upstream.api_key": SECRET,
        "auth.forwarded_user_secret": SECRET,
        "limits.redis_url": f"rediss://gate:{SECRET}@redis:6379/0?password={SECRET}&x=1",
        "auth.jwt": {"issuer": f"https://me:{SECRET}@idp", "audience": "x"},
    }
    told = shown(load_config(None, {}, flags))
    assert SECRET not in json.dumps(told)
    assert (told["server"]["ops_token"], told["upstream"]["api_key"]) == (MASK, MASK)
    assert told["limits"]["redis_url"] == f"rediss://gate:{MASK}@redis:6379/0?password={MASK}&x={MASK}"
    assert told["auth"]["jwt"]["issuer"] == f"https://me:{MASK}@idp"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        (f"redis://:{SECRET}@redis", f"redis://:{MASK}@redis"),
        (f"redis://{SECRET}@redis", f"redis://{MASK}@redis"),
        (f"redis://a:{SECRET}@{SECRET}@redis", f"redis://a:{MASK}@redis"),
        (f"unix://:{SECRET}@/run/redis.sock?db=1", f"unix://:{MASK}@/run/redis.sock?db={MASK}"),
    ],
)
def test_of_a_redis_url_all_but_the_secret_is_shown(url: str, masked: str) -> None:
    assert shown(load_config(None, {}, {"limits.redis_url": url}))["limits"]["redis_url"] == masked


def test_what_is_not_set_is_shown_as_not_set() -> None:
    told = shown(load_config(None, {}))
    assert (told["server"]["ops_token"], told["limits"]["redis_url"], told["auth"]["jwt"]) == (None, None, None)


# The schema.


def schema_types(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(schema_types(each) for name, each in node.items() if name != "default"))
    if isinstance(node, list):
        return set().union(*map(schema_types, node))
    return set()


def test_the_schema_is_one_for_editors() -> None:
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    pool = schema["$defs"]["PoolSection"]["properties"]
    assert pool["policy"]["description"].startswith("How the pod for a request is chosen.")
    assert pool["policy"]["anyOf"][0]["enum"][0] == "auto"
    assert {"integer", "number", "array", "object", "string"} <= schema_types(schema)


def test_the_schema_lets_a_variable_stand_for_any_value() -> None:
    port = config_schema()["$defs"]["ServerSection"]["properties"]["port"]
    number, variable = port["anyOf"]
    assert (number["maximum"], variable["type"]) == (65_535, "string")
    keys = config_schema(keys=True)
    assert keys["$defs"]["_KeySection"]["properties"]["disabled"]["type"] == "boolean"
