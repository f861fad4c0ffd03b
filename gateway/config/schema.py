"""The JSON Schema of the configuration and of the keys file, for editors."""

from typing import Any

from gateway.config.keys import KeysFile
from gateway.config.whole import Config


def config_schema(*, keys: bool = False) -> dict[str, Any]:
    """The JSON Schema of the file, or of the keys file: for editors. A text may be `${VAR}` wherever something else is
    wanted, but in the keys file."""
    kind, title = (KeysFile, "Poolgate: the keys file") if keys else (Config, "Poolgate: the configuration")
    schema = kind.model_json_schema()
    if not keys:
        schema = _with_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _with_variables(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_variables(each) for each in node]
    if not isinstance(node, dict):
        return node
    told = {"title", "description", "default"}
    constrained = node.get("type") in ("integer", "number", "boolean") or (
        node.get("type") == "string" and node.keys() & {"enum", "const", "pattern", "format"}
    )
    if constrained:
        value = {name: each for name, each in node.items() if name not in told}
        variable = {"type": "string", "pattern": r"\$\{[A-Za-z_]|^file:"}
        return {**{name: each for name, each in node.items() if name in told}, "anyOf": [value, variable]}
    return {name: each if name == "default" else _with_variables(each) for name, each in node.items()}
