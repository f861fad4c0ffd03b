"""Files that people write, and lines that logs bring: refused with a line and a mend, or read."""

from fnmatch import fnmatchcase
from pathlib import Path

from gateway.cli.keys_file import in_lines, keys_in, with_disabled, with_key
from gateway.cli.ledger import Ledger
from gateway.config.document import parsed
from gateway.config.faults import ConfigError
from gateway.config.keys import entries_in
from gateway.config.reading import load_config
from gateway.config.validating import validated
from gateway.config.variables import filled
from gateway.config.whole import Config
from gateway.core.globs import name_in_both, parts_of
from tests.fuzz.target import Target

ENVIRONMENT = {"A": "1", "LONG_NAME": "x"}


def told(error: ConfigError) -> None:
    """Every fault says where it is, and what to do."""
    assert error.faults
    assert all(fault.text for fault in error.faults)
    assert str(error)


def configuration(data: bytes) -> None:
    """A file is a configuration, or its faults are told."""
    try:
        document = filled(parsed(data, "poolgate.yaml"), ENVIRONMENT, file_alone=True)
        if isinstance(document.value, dict):
            validated(Config, document.value, document)
    except ConfigError as error:
        told(error)


def variable(data: bytes) -> None:
    """So is a value that comes by a variable."""
    name, _, value = data.decode("utf-8", "replace").replace("\0", "").partition("=")
    try:
        load_config(None, {f"POOLGATE_{name}": value})
    except ConfigError as error:
        told(error)


def keys(data: bytes) -> None:
    """A keys file is read, or its faults are told; one that is read can be added to, and the rest stays as it was."""
    try:
        entries = entries_in(parsed(data, "keys.yaml"))
    except ConfigError as error:
        told(error)
        return
    assert len({entry.tenant.key_id for entry in entries}) == len(entries)


def keys_edits(data: bytes) -> None:
    """Texts of all kinds beside an entry: it alone changes."""
    said = data.decode("utf-8", "replace")
    text = "keys:\n" + in_lines({"id": "a", "note": said}, 2) + in_lines({"id": "b", "note": "x"}, 2)
    before = keys_in(text)
    assert before[0]["note"] == said
    assert keys_in(with_key(text, {"id": "new", "team": said})) == [*before, {"id": "new", "team": said}]
    assert keys_in(with_disabled(text, 0)) == [{**before[0], "disabled": True}, before[1]]


def access_lines(data: bytes) -> None:
    """Lines are summed or counted as strange, one by one as all at once."""
    lines = data.split(b"\n")
    whole, pieces = Ledger(), Ledger()
    whole.add(lines)
    for line in lines:
        pieces.add([line])
    assert whole.rows() == pieces.rows()
    counted = sum(row.requests for row in whole.rows())
    assert counted + whole.strange + whole.without_tokens == len(lines)
    assert all(row.prompt_tokens >= 0 and row.completion_tokens >= 0 for row in whole.rows())


def globs(data: bytes) -> None:
    """A name in both is matched by both, as `fnmatchcase` reads them."""
    one, _, other = data[:64].decode("utf-8", "replace").partition("\n")
    assert "".join(parts_of(one)) == one
    name = name_in_both(one, other)
    if name is not None:
        assert fnmatchcase(name, one)
        assert fnmatchcase(name, other)
    assert (name is None) == (name_in_both(other, one) is None)
    if fnmatchcase(one, other) and fnmatchcase(one, one):
        assert name is not None


LINE = (
    b'{"ts":"2026-11-30T00:00:00.1Z","level":"info","request_id":"r","tenant":"acme","key_id":"k","operation":"chat",'
    b'"model":"m","usage_source":"reported","prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}'
)
EXAMPLE = Path(__file__).parents[2] / "examples"
KEYS = (
    b"keys:\n- id: a1b2c3d4\n  sha256: " + b"a" * 64 + b"\n  team: acme\n  models: ['*']\n  expires: 2027-01-01\n"
    b"- {id: b, sha256: " + b"b" * 64 + b", team: x, disabled: true, priority: 5}\n"
)
TARGETS = {
    "configuration": Target(
        configuration,
        (
            "gateway.config.document",
            "gateway.config.variables",
            "gateway.config.fields",
            "gateway.config.sections",
            "gateway.config.whole",
        ),
        (
            b"server: {port: 1, ops_token: ${A:-x}}\ndiscovery:\n  pods: [{url: 'http://127.0.0.1:1', pool: chat}]\n",
            b"pools: {chat: {models: ['a*'], max_in_flight_per_pod: 5}}\nmodels: {a: {to: [{model: b, weight: 1}]}}\n",
            b"limits: {default: {requests_per_minute: 5}, rules: [{per: tenant, match: '*', tokens_per_minute: 9}]}\n",
            b"auth: {mode: none}\ndiscovery: {pod_networks: [10.0.0.0/8], namespaces: [vllm]}\n",
            b"a: &a [1, *a]\n",
            b"server: 2026-13-45\nserver: {}\n",
            b"? [a, b]\n: c\n",
            b"upstream: {api_key: 'file:/nowhere'}\n!!python/object:os.system x\n",
            b"\xff\xfe",
            b"server: !!int x\n",
            b"<<: {server: {}}\n",
        ),
        max_bytes=1024,
        tokens=(b"server:", b"discovery:", b"pools:", b": {", b"- ", b"&a", b"*a", b"!!", b"${A}", b"file:", b"\n  "),
    ),
    "variable": Target(
        variable,
        ("gateway.config.reading", "gateway.config.environment"),
        (b"SERVER__PORT=1", b"POOLS__CHAT__MODELS=[a, b]", b"LIMITS__RULES={", b"SERVER__TLS__CERT=", b"X__Y=!!int x"),
        max_bytes=256,
        tokens=(b"SERVER__", b"DISCOVERY__", b"__", b"=", b"[", b"{"),
    ),
    "keys": Target(
        keys,
        ("gateway.config.keys", "gateway.config.document"),
        (KEYS, b"keys: []\n", b"keys:\n", b"", b"keys: [{}]\n", b"keys: {a: b}\n", KEYS.replace(b"2027-01-01", b"9")),
        max_bytes=1024,
        tokens=(b"\n- id: ", b"expires: ", b"sha256: ", b"a" * 64, b"models: "),
    ),
    "keys_edits": Target(
        keys_edits,
        ("gateway.cli.keys_file",),
        (
            "\x85\u2028".encode(),
            b"plain",
            b"a: b # c",
            b"'\"\\",
            b"\n\n  - x\n",
            b"---\n...\n",
            b"\x00\x7f",
            b"*a &b !c",
        ),
        max_bytes=128,
    ),
    "access_lines": Target(
        access_lines,
        ("gateway.cli.ledger",),
        (
            LINE + b"\n" + LINE,
            b"[pod/gateway-0/gateway] " + LINE,
            b"2026-11-30T00:00:00.1Z stdout F " + LINE,
            b'{"log":' + repr(LINE.decode()).replace("'", '"').encode() + b',"stream":"stdout"}',
            LINE.replace(b"Z", b"+01:00") + b"\n{}\nINFO x\n",
            LINE.replace(b'"reported"', b"null").replace(b":3,", b":null,"),
        ),
        tokens=(b'"prompt_tokens":', b"\n", b"null", b'"ts":"', b" | "),
    ),
    "globs": Target(
        globs,
        ("gateway.core.globs",),
        (b"qwen*\n*-8b", b"[a-c]?\n[!b]x", b"[\n[[]", b"*a*b*\n*b*a*", b"[]-a]\n]", b"[!]\n[!]]", b"a\nb"),
        max_bytes=64,
        tokens=(b"*", b"?", b"[!", b"[", b"]", b"-"),
    ),
}
