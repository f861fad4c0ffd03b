"""Judges objects by schemas: a program for the environment of the validators, which has what our own has not.

Reads `{"versions": [...], "objects": [...]}` and writes the objects' faults, a list for each object and in the same
order: "1.37: spec.replicas: 'two' is not of type 'integer'".

What Kubernetes defines is judged by kubernetes-validate in its strict form, for each of the versions. Custom resources
are judged by the schemas beside this file. All are closed: what they do not name is a fault. They refer to
Kubernetes' own definitions (a pod template, a label selector) of the newest version. A kind without a schema is a
fault.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

# All from the validators' environment, which mypy does not see.
import jsonschema  # type: ignore[import-untyped,import-not-found,unused-ignore]
import kubernetes_validate  # type: ignore[import-not-found]
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource  # type: ignore[import-not-found]

HERE = Path(__file__).parent
Object = dict[str, Any]

# The definitions of a version are 2 MB, read anew for each object otherwise.
utils.schema_contents = cache(utils.schema_contents)


@cache
def own() -> dict[tuple[str, str], Any]:
    """A validator for each custom resource, by its version and kind."""
    newest = utils.latest_version()
    path = f"kubernetes-json-schema/v{newest}-local-strict/_definitions.json"
    known = Registry().with_resource(
        "/api/_definitions.json", Resource.from_contents(utils.schema_contents(path, newest))
    )
    found = {}
    for file in sorted(HERE.glob("*.yaml")):
        for each in yaml.safe_load(file.read_text("utf-8")):
            schema = {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "required": ["apiVersion", "kind", "metadata", "spec"],
                "additionalProperties": False,
                **each,
            }
            kind = (each["properties"]["apiVersion"]["const"], each["properties"]["kind"]["const"])
            found[kind] = jsonschema.Draft202012Validator(schema, registry=known)
    return found


def faults(judged: Object, versions: list[str]) -> list[str]:
    """What is wrong with it; nothing of one that is well formed."""
    validator = own().get((judged["apiVersion"], judged["kind"]))
    if validator is not None:
        return [f"{_place(error)}: {error.message}" for error in validator.iter_errors(judged)]
    return [f"{version}: {fault}" for version in versions for fault in _of_kubernetes(judged, version)]


def _of_kubernetes(judged: Object, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(judged, version, strict=True)
    except utils.SchemaNotFoundError as error:
        return [error.message]
    except utils.ValidationError as error:
        return [f"{_place(error)}: {error.message}"]
    return []


def _place(error: Any) -> str:
    return ".".join(str(part) for part in error.absolute_path) or "the whole"


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump([faults(each, asked["versions"]) for each in asked["objects"]], sys.stdout)
