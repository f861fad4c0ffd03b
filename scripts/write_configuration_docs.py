#!/usr/bin/env python3
"""Writes docs/configuration.md from the models in gateway/config; a test fails when the page is stale.

What a key means stands as its docstring in the model, what it may be and its default in its annotation.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config.keys import KeysFile
from gateway.config.whole import Config
from gateway.pipeline.checks import GUARDED_FIELDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by scripts/write_configuration_docs.py. Change the docstrings in gateway/config, not this page. -->

One YAML file, given as `poolgate serve --config FILE`. It is validated whole: an unknown key, a wrong type and a key
that stands twice are errors, each told with file, line, key and what to do. `poolgate check FILE` does that without
serving. All keys are optional but those that say *required*.

```yaml
discovery:
  pods:
    - {url: "http://10.0.0.11:8000", pool: chat}
    - {url: "http://10.0.0.12:8000", pool: chat}
auth:
  keys_file: keys.yaml
```

**Precedence**: flags, then the environment, then the file, then the defaults.

**Environment**: `POOLGATE_SECTION__KEY`, such as `POOLGATE_SERVER__PORT=8100`. Two underscores stand between section
and key. A variable without two underscores is not configuration (Kubernetes makes such variables for services). A
value is read as YAML: quote a text that looks like a number.

**In the file's values**: `${VAR}` and `${VAR:-default}` take a variable of the environment. A value that starts with
`file:` is replaced by that file's content, without the blanks around it. Both are read whenever the file is loaded, but
for a value that a flag or the environment replaces. In values that come from the environment themselves they are left
as they are.

## Reload

A change of the file takes effect within about two seconds, without a restart. The file is looked at every second, and
loaded once two looks in a row saw the same. How it changed does not matter: written, replaced, or by a symlink that
leads elsewhere, as Kubernetes mounts a ConfigMap (not with `subPath`: such a mount never changes).

- **It is validated as at the start**, with the same flags and environment. A file with a fault is refused as a whole,
  and the configuration before stays in force. The log says why in one line, `config.error` of `/status.json` as long
  as it is so, and `poolgate_config_reloads_total{result}` counts `applied` and `refused`.
- **Nothing that runs is cut.** New settings hold for what comes: requests, attempts, connections. A pod that is no more
  in `discovery.pods` gets no requests, and what runs there ends in peace. A pod that stays, by its pool and address, is
  the same pod at any place in the list.
- **Until a restart stay as they were**: `server.host`, `server.port`, `server.ops_host`, `server.ops_port`, whether
  there is TLS (but not which certificate), all of `discovery` but the pods of mode static, `auth` (but not what stands
  in the keys file), `limits.redis_url` and `tracing`. What of it differs in the file is told in the log, and by
  `config.waits_for_restart` of `/status.json`.
- **The keys file** is followed in the same way: a key that is added opens within seconds, and one that is removed,
  disabled or expired opens nothing more. A fault in it leaves all keys as they were. More in [keys](keys.md).
- **The certificate** of `server.tls` is followed in the same way: see [the front door](front-door.md#tls).
- **A secret** that a `file:` names is not looked at by itself. `touch` the configuration file to have it read again.
"""

KEYS_HEAD = """\
## The keys file

`auth.keys_file` names it. `poolgate keys create --team NAME --file FILE` adds an entry and prints the key once. How
keys are made, rotated and revoked, and what happens when the file changes, is in [keys](keys.md). An id, or a digest,
that stands twice is an error. `keys: []` lets nobody in. The environment is not read for this file: do not write
`${VAR}` there.

```yaml
keys:
  - id: a1b2c3d4
    sha256: 6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090
    team: acme
    models: ["qwen*"]
    expires: 2027-01-01T00:00:00+00:00
```

A key reads `sk-pg_<id>_<secret><checksum>`: 8 characters of id, 32 of secret, 6 of checksum. A key of another form
works as well, if its SHA-256 stands in the file.
"""

TAIL = """\
**Guarded fields** reach past the caller's own request. A body that has one is refused with 403 `field_not_allowed`,
unless `allow_fields` names it:

{fields}
"""


FORMATS = {"date-time": "time", "path": "path", "ipv4network": "network", "ipv6network": "network"}


class Key(NamedTuple):
    """A row of a table."""

    name: str
    kind: str
    default: str
    meaning: str


def page() -> str:
    """The whole page."""
    schema = Config.model_json_schema()
    parts = [HEAD]
    for name, section in schema["properties"].items():
        rows = rows_of(name, section, schema["$defs"])
        parts.append(f"## {name}\n\n{section['description']}\n\n{table(rows)}")
    keys = KeysFile.model_json_schema()
    parts.append(f"{KEYS_HEAD}\n{table(rows_of('keys', keys['properties']['keys'], keys['$defs']))}")
    parts.append(TAIL.format(fields="\n".join(f"- `{name}`" for name in GUARDED_FIELDS)))
    return "\n".join(parts)


def rows_of(name: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[Key]:
    """The keys below a section, a list of sections or a mapping of them."""
    below = schema.get("$ref") or schema.get("items", {}).get("$ref")
    if below is None and isinstance(schema.get("additionalProperties"), dict):
        below, name = schema["additionalProperties"].get("$ref"), f"{name}.NAME"
    if schema.get("type") == "array" and below is not None:
        name = f"{name}[]"
    section = defs[below.rpartition("/")[2]]
    for key, value in section["properties"].items():
        inner = next((each for each in (value, *value.get("anyOf", ())) if "$ref" in each), None)
        default = "*required*" if key in section.get("required", ()) else f"`{json.dumps(value.get('default'))}`"
        if "$ref" in value:
            default = "see below"
        yield Key(f"{name}.{key}", kind(value), default, " ".join(value["description"].split()))
        if "$ref" in value.get("items", {}):
            yield from rows_of(f"{name}.{key}", value, defs)
        elif inner is not None:
            yield from rows_of(f"{name}.{key}", inner, defs)


def kind(schema: Mapping[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(each) for each in schema["anyOf"]))
    if "$ref" in schema:
        return "section"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    if schema["type"] == "array":
        items = schema["items"]
        return "list of sections" if "$ref" in items else f"list of {kind(items)}s"
    word = FORMATS.get(schema.get("format", ""), schema["type"])
    return ", ".join((word, *bounds(schema)))


def bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    """What bounds a number or a text."""
    for key, words in (
        ("exclusiveMinimum", "> {}"),
        ("minimum", "≥ {}"),
        ("exclusiveMaximum", "< {}"),
        ("maximum", "≤ {}"),
        ("minLength", "at least {} character"),
        ("maxLength", "at most {} characters"),
    ):
        if key in schema:
            yield words.format(schema[key])


def table(rows: Iterator[Key]) -> str:
    """Rows as a Markdown table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.kind} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
