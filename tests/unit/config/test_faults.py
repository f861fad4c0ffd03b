"""What is said of a fault: where it stands, what is wanted there, what was perhaps meant; and never a secret."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.faults import PATTERNS, ConfigError, every_key
from gateway.config.keys import KeysFile, load_keys
from gateway.config.reading import load_config, load_settings
from gateway.config.whole import Config

SECRET = "hunter2-hunter2-hunter2"


def told(folder: Path, text: str, environment: dict[str, str] | None = None, **more: Any) -> list[str]:
    """The faults of a file, a line each, without the folder."""
    file = folder / "poolgate.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environment or {}, **more)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # An unknown key: which was meant, or where it belongs, or which there are.
        ("server:\n  prot: 1\n", "2: server.prot: this key does not exist: did you mean port?"),
        ("server:\n  Ops-Port: 1\n", "2: server.Ops-Port: this key does not exist: did you mean ops_port?"),
        ("sever: {}\n", "1: sever: this key does not exist: did you mean server?"),
        ("pools:\n  a:\n    polcy: p2c\n", "3: pools.a.polcy: this key does not exist: did you mean policy?"),
        (
            "server:\n  keys_file: x\n",
            "2: server.keys_file: this key does not exist here: did you mean auth.keys_file?",
        ),
        (
            "server: {policy: p2c}\n",
            "1: server.policy: this key does not exist here: did you mean pools.NAME.policy?",
        ),
        (
            "upstream: {xyzzy: 1}\n",
            (
                "1: upstream.xyzzy: this key does not exist: correct or remove it; here are connect_seconds, "
                "pool_idle_seconds, api_key"
            ),
        ),
        # One of a few words.
        (
            "pools:\n  a: {policy: leest}\n",
            (
                "2: pools.a.policy: give one of auto, least, p2c, session, prefix, round_robin, not 'leest'; did you "
                "mean least?"
            ),
        ),
        ("auth: {mode: 5}\n", "1: auth.mode: give one of keys, none, not 5"),
        # Another type.
        (
            "pools:\n  a:\n    queue_limit: ten\n",
            "3: pools.a.queue_limit: give a whole number from 0 to 100000, not 'ten'",
        ),
        ("server: {max_body_bytes: 1024.5}\n", "1: server.max_body_bytes: give a whole number from 1024 to 1073741824"),
        (
            "pools: {a: {ttft_seconds: 30s}}\n",
            "1: pools.a.ttft_seconds: give a number above 0 and at most 86400, not '30s'",
        ),
        ("server:\n  host: yes\n", "2: server.host: give a text, not true: put it in quotes"),
        ("pools: {a: {models: qwen}}\n", "1: pools.a.models: give a list, such as [a, b], not a single value"),
        ("discovery: {pods: {url: x}}\n", "1: discovery.pods: give a list, such as [{...}, {...}], not keys"),
        ("server: 8000\n", "1: server: put keys such as host: and port: below it, not a single value"),
        ("server: [8000]\n", "1: server: put keys such as host: and port: below it, not a list"),
        ("pools: [a]\n", "1: pools: put names below it, and the settings of each below its name, not a list"),
        ("pools:\n  a:\n", "2: pools.a: put keys such as models: and ttft_seconds: below it; here stands nothing"),
        ("auth: {keys_file: [x]}\n", "1: auth.keys_file: give a path, not a list"),
        # Out of range, too short, too long.
        ("server: {port: 70000}\n", "1: server.port: give a whole number from 0 to 65535, not 70000"),
        (
            "upstream: {pool_idle_seconds: 5}\n",
            "1: upstream.pool_idle_seconds: give a number above 0 and less than 5, not 5",
        ),
        (
            "limits: {default: {concurrent: 0}}\n",
            "1: limits.default.concurrent: give a whole number from 1 to 1000000 or null, not 0",
        ),
        ("discovery: {selector: ''}\n", "1: discovery.selector: give at least 1 character"),
        ("discovery: {namespaces: []}\n", "1: discovery.namespaces: give at least 1 entry"),
        ("models:\n  a: {to: [{model: b, weight: x}]}\n", "2: models.a.to.0.weight: give a number above 0"),
        # Missing.
        (
            "discovery:\n  pods:\n  - url: http://a:1\n",
            "3: discovery.pods.0.pool: this key is missing: give a text",
        ),
        # A form.
        ("auth: {jwt: {issuer: x, audience: y}}\n", "1: auth.jwt.issuer: give a URL that begins with http://"),
        ("limits: {redis_url: localhost}\n", "1: limits.redis_url: give a URL such as redis://HOST:PORT/0"),
        (
            "discovery: {pod_networks: [10.0.0.1/8]}\n",
            "1: discovery.pod_networks.0: 10.0.0.1/8 has host bits set: did you mean 10.0.0.0/8?",
        ),
        ("discovery:\n  pod_networks:\n  - x\n", "3: discovery.pod_networks.0: give a network such as 10.244.0.0/16"),
        ("discovery: {pod_networks: [7]}\n", "1: discovery.pod_networks.0: give a network such as"),
        # What stands twice is told at its second place, with the first.
        ("server:\n  port: 1\n\n  port: 2\n", "4: server.port: this key stands here twice, on line 2 too: keep one"),
        ("discovery:\n  namespaces:\n  - a\n  - b\n  - a\n", "5: discovery.namespaces.2: the namespace a stands"),
        (
            "limits:\n  rules:\n  - {per: key, concurrent: 1}\n  - {per: key, requests_per_day: 1}\n",
            "4: limits.rules.1: this and another rule are per key with the same match, model and count",
        ),
        (
            "discovery:\n  pods:\n  - {url: 'http://a:1', pool: p}\n  - {url: 'http://a:1/', pool: p}\n",
            "4: discovery.pods.1: p-0 and p-1 are the same pod, by pool and url: keep one of them",
        ),
    ],
)
def test_a_fault_is_told_with_what_is_wanted(tmp_path: Path, text: str, fault: str) -> None:
    (line,) = told(tmp_path, text)
    assert line.startswith(f"poolgate.yaml:{fault}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("server:\n\tport: 1\n", "2: is not valid YAML: a tab stands here: YAML is indented by blanks only"),
        ("server:\n  port: 1\n\thost: x\n", "3: is not valid YAML: a tab"),
        ("a: 'x\nb: 1\n", "1: is not valid YAML: the quote that opens here is not closed"),
        ("server: {port: 1\nauth: {}\n", "1: is not valid YAML: the { that opens here is not closed"),
        ("a: [1, 2\nb: 3\n", "1: is not valid YAML: the [ that opens here is not closed"),
        ("pools: {a: {models: [*]}}\n", "1: is not valid YAML: a text that begins with * or & is put in quotes"),
        ("pools: {a: {models: [*qwen]}}\n", "1: is not valid YAML: a text that begins with * or & is put in quotes"),
        ("a: @x\n", "1: is not valid YAML: found character '@': put the text in quotes"),
        ("server: {ops_token: !x9}\n", "1: is not valid YAML: a text that begins with ! is put in quotes"),
        ("server: {ops_token: !x9!y}\n", "1: is not valid YAML: a text that begins with ! is put in quotes"),
        ("server:\n  port: 1\n   host: x\n", "3: is not valid YAML: a colon where none may be"),
        ("a:\n  b: 1\n c: 2\n", "3: is not valid YAML: this line does not fit to those above"),
        ("a: 1\n---\nb: 2\n", "2: is not valid YAML: a second document begins here"),
        *(
            (
                f"server:\n  host: x\n  ops_token: {value}\n",
                "3: is not valid YAML: what looks like a date, or is tagged as a number, is none: put it in quotes",
            )
            for value in ("2024-13-45", "!!int secret", "!!float secret", "!!bool secret", "!!timestamp secret")
        ),
        ("a: 1\nb: \x07\n", "2: is not valid YAML: a control character stands here"),
    ],
)
def test_what_is_no_yaml_is_told_with_the_line_to_look_at(tmp_path: Path, text: str, fault: str) -> None:
    (line,) = told(tmp_path, text)
    assert line.startswith(f"poolgate.yaml:{fault}")


def test_a_file_in_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_bytes("server:\n  host: schön\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r":2: is not UTF-8 text"):
        load_config(file, {})


def test_all_faults_of_all_kinds_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = (
        "upstream:\n  api_key: ${MISSING}\n  connect_seconds: x\nserver:\n  port: 1\n  port: -1\n  prot: 2\n"
        "limits:\n  redis_url: file:/nowhere/at/all\n"
    )
    lines = told(tmp_path, text, {"POOLGATE_SERVER__HOST": "[1]", "POOLGATE_AUTH__MODE": "{"})
    assert [line.partition(": ")[0].removeprefix("poolgate.yaml:") for line in lines] == (
        ["2", "3", "6", "6", "7", "9", "POOLGATE_AUTH__MODE", "POOLGATE_SERVER__HOST"]
    )


def test_what_a_missing_variable_would_have_been_is_not_a_second_fault(tmp_path: Path) -> None:
    assert told(tmp_path, "server:\n  port: ${PORT}\n") == [
        "poolgate.yaml:2: server.port: the variable PORT is not set: set it, or write ${PORT:-default}"
    ]
    assert told(tmp_path, "auth:\n  jwt:\n    issuer: file:/nowhere\n    audience: x\n") == [
        "poolgate.yaml:3: auth.jwt.issuer: the file /nowhere cannot be read: No such file or directory"
    ]


def test_a_variable_that_is_set_under_a_name_like_it_is_named(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "upstream: {api_key: '${VLLM_APIKEY}'}\n", {"VLLM_API_KEY": SECRET})
    assert line.endswith("; did you mean VLLM_API_KEY, which is set?")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (
            "POOLGATE_SERVER__PROT",
            "1",
            "POOLGATE_SERVER__PROT: server.prot: this key does not exist: did you mean POOLGATE_SERVER__PORT?",
        ),
        (
            "POOLGATE_SEVER__PORT",
            "1",
            "POOLGATE_SEVER__PORT: sever: this key does not exist: did you mean POOLGATE_SERVER__PORT?",
        ),
        (
            "POOLGATE_SERVER__KEYS_FILE",
            "x",
            (
                "POOLGATE_SERVER__KEYS_FILE: server.keys_file: this key does not exist here: did you mean "
                "POOLGATE_AUTH__KEYS_FILE?"
            ),
        ),
        (
            "POOLGATE_SERVER__PORT",
            "x",
            "POOLGATE_SERVER__PORT: server.port: give a whole number from 0 to 65535",
        ),
        ("POOLGATE_SERVER__PORT", "[", "POOLGATE_SERVER__PORT: server.port: its value is not valid YAML"),
        ("POOLGATE_AUTH__MODE", "nome", "POOLGATE_AUTH__MODE: auth.mode: give one of keys, none; did you mean none?"),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(tmp_path: Path, name: str, value: str, fault: str) -> None:
    (line,) = told(tmp_path, "server: {port: 1}\n", {name: value})
    assert line.startswith(fault)


def test_a_fault_in_a_flag_names_the_flag(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "server: {port: 1}\n", flags={"server.ops_port": 70_000})
    assert line == "--ops-port: server.ops_port: give a whole number from 0 to 65535"


def test_without_a_file_no_line_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"POOLGATE_SERVER__PORT": "x"}, {"pools": {"a": {"policy": "x"}}})
    assert [fault.line for fault in caught.value.faults] == [None, None]


def test_the_keys_file_is_told_of_in_the_same_words(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        f'keys:\n- id: a\n  sha256: "{"A" * 64}"\n  taem: acme\n- {{id: b, sha256: "{"0" * 64}", team: b}}\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value).replace(f"{file}:", "").splitlines() == [
        "2: keys.0.team: this key is missing: give a text",
        "3: keys.0.sha256: give a SHA-256 in 64 lower-case hex digits, as 'poolgate keys create' writes it",
        "4: keys.0.taem: this key does not exist: did you mean team?",
    ]


SECRETS = ("server.ops_token", "upstream.api_key", "auth.forwarded_user_secret", "limits.redis_url")


@pytest.mark.parametrize("value", [[SECRET], {SECRET: SECRET}, f"{SECRET} ", f"\n{SECRET}"])
@pytest.mark.parametrize("key", SECRETS)
def test_no_fault_repeats_a_secret(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {key: value, "server.port": -1})
    assert SECRET not in str(caught.value)


def test_no_fault_repeats_what_a_variable_held(tmp_path: Path) -> None:
    """A secret's variable may stand at the wrong key."""
    lines = told(tmp_path, "server: {port: '${TOKEN}'}\nauth: {mode: '${TOKEN}'}\n", {"TOKEN": SECRET})
    assert len(lines) == 2
    assert SECRET not in "".join(lines)


def patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for below in node.values():
            yield from patterns(below)
    elif isinstance(node, list):
        for below in node:
            yield from patterns(below)


def test_every_pattern_of_the_models_has_words() -> None:
    found = {pattern for model in (Config, KeysFile) for pattern in patterns(model.model_json_schema())}
    assert found <= set(PATTERNS)
    assert len(found) > 3


def test_every_key_of_the_models_is_known_by_its_place() -> None:
    keys = set(every_key(Config.model_json_schema()))
    assert {
        ("server", "port"),
        ("pools", "*", "policy"),
        ("limits", "rules", "*", "per"),
        ("auth", "jwt", "issuer"),
    } <= keys
