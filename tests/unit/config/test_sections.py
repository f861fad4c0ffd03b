"""What may stand in a section is said by its model, and what may not is told with its line and what to do."""

from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.reading import load_config
from gateway.pipeline.caps import Caps
from tests.unit.config.files import GOOD, write


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  prot: 1\n", 2, "server.prot: this key does not exist"),
        ("server:\n  port: 99999\n", 2, "server.port"),
        ("discovery:\n  pods:\n    - {url: 'ftp://x', pool: a}\n", 3, "http://HOST:PORT"),
        ("discovery:\n  pods:\n    - {url: 'http://a:0', pool: a}\n", 3, "give the pod a port from 1 to 65535"),
        ("discovery:\n  pods:\n    - {url: 'http://a:65536', pool: a}\n", 3, "give the pod a port from 1 to 65535"),
        ("tracing:\n  endpoint: http://a:65536\n", 2, "give the receiver a port from 1 to 65535"),
        ("server:\n  tls: {cert: a.crt}\n", 2, "server.tls.cert: TLS wants both files: set key beside it"),
        ("server:\n  tls:\n    key: a.key\n", 3, "server.tls.key: TLS wants both files: set cert beside it"),
        ("server:\n  trusted_proxies: [10.0.0.1/8]\n", 2, "did you mean 10.0.0.0/8?"),
        ("server:\n  trusted_proxies: [proxy]\n", 2, "give a network such as 10.244.0.0/16"),
        ("server:\n  cors_origins: ['*', 'https://a.example']\n", 2, "let it stand alone"),
        ("server:\n  cors_origins:\n    - https://a.example\n    - https://b.example/\n", 4, "as https://b.example:"),
        ("server:\n  cors_origins: ['https://A.example:443/x']\n", 2, "writes this origin as https://a.example"),
        ("server:\n  cors_origins: ['https://u:secret@a.example']\n", 2, "as https://a.example"),
        ("server:\n  cors_origins: [a.example]\n", 2, "give an origin such as https://chat.example.com"),
        ("server:\n  cors_origins: ['https://*.example']\n", 2, "a * is no part of an origin"),
        ("server:\n  cors_origins: ['https://bücher.example']\n", 2, "xn--"),
        ("server:\n  cors_origins: ['null']\n", 2, "null is every page without an origin"),
        ("server:\n  cors_origins: ['https://a.example', 'https://a.example']\n", 2, "stands here twice"),
        ("requests:\n  max_n: 0\n", 2, "requests.max_n"),
        ("requests:\n  max_logprobs: -1\n", 2, "requests.max_logprobs"),
        ("requests:\n  media_url_hosts:\n    - a.example\n    - https://b.example\n", 4, "is no host"),
        ("requests:\n  media_url_hosts: ['*']\n", 2, "is no host"),
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


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:8080",
        "tauri://localhost",
        "chrome-extension://ab",
    ],
)
def test_an_origin_stands_as_a_browser_writes_it(origin: str) -> None:
    assert load_config(None, {}, {"server.cors_origins": [origin]}).server.cors_origins == (origin,)


def test_what_a_request_may_ask_for_has_bounds_without_a_word() -> None:
    assert load_config(None, {}).caps() == Caps(8, 20, ()) == Caps()
    told = {"requests": {"max_n": 1, "max_logprobs": 0, "media_url_hosts": ["*.Example.com", "[::1]"]}}
    assert load_config(None, {}, told).caps() == Caps(1, 0, ("*.example.com", "[::1]"))


def test_without_a_mode_a_list_of_pods_makes_it_static(tmp_path: Path) -> None:
    assert load_config(None, {}).discovery.mode == "kubernetes"
    assert load_config(write(tmp_path, GOOD), {}).discovery.mode == "static"
    listed = {"discovery.pods": [{"url": "http://a:1", "pool": "a"}]}
    assert load_config(None, {"POOLGATE_DISCOVERY__NAMESPACES": "[a, b]"}).discovery.namespaces == ("a", "b")
    assert load_config(None, {}, listed).discovery.mode == "static"


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_for_pods_is_one_that_a_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError, match=r"upstream\.api_key"):
        load_config(None, {}, {"upstream.api_key": key})


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
