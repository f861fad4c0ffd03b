"""Secrets over HTTP: `get` by name and `create`, with the validation that can refuse one. Nothing else is allowed."""

import asyncio
import json
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from tests.apiserver.access import Target
from tests.apiserver.http import Answer, Request
from tests.apiserver.statuses import already_exists, bad_request, encode, invalid, method_not_allowed, no_such

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ENTRY = re.compile(r"(?!\.\.)[-._a-zA-Z0-9]+")
MAX_BYTES = 1 << 20

Key = tuple[str, str]
"""(namespace, name)."""


class Secrets:
    """What there is. A test may look, put and take away."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.namespaces: set[str] | None = None
        """None: every namespace exists."""
        self.together: asyncio.Barrier | None = None
        """Creations wait here for each other, so that of two callers each has read before either writes."""

    def put(self, namespace: str, name: str, content: Mapping[str, bytes]) -> None:
        """As a person would."""
        self.objects[namespace, name] = {
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
            "data": {entry: b64encode(value).decode() for entry, value in content.items()},
        }

    def content(self, namespace: str, name: str) -> dict[str, bytes]:
        """The entries of one that is there."""
        return {entry: b64decode(value) for entry, value in self.objects[namespace, name].get("data", {}).items()}

    async def answer(self, request: Request, target: Target) -> Answer:
        if target.verb == "get" and target.name:
            held = self.objects.get((target.namespace, target.name))
            if held is None:
                return no_such("secrets", target.name)
            return Answer(200, encode({"kind": "Secret", "apiVersion": "v1", **held}) + b"\n")
        if target.verb != "create" or not target.namespace:
            return method_not_allowed()
        if self.together is not None:
            await self.together.wait()
        return self._create(request.body, target.namespace)

    def _create(self, body: bytes, namespace: str) -> Answer:
        try:
            told = json.loads(body)
            name, data = told["metadata"]["name"], told.get("data", {})
            size = sum(len(b64decode(value, validate=True)) for value in data.values())
        except (ValueError, KeyError, TypeError, NotBase64):
            return bad_request('Secret in version "v1" cannot be handled as a Secret: illegal base64 data or no JSON')
        if told["metadata"].get("namespace", namespace) != namespace:
            return bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if self.namespaces is not None and namespace not in self.namespaces:
            return no_such("namespaces", namespace)
        if not _NAME.fullmatch(name):
            return invalid("Secret", name, "metadata.name", "a lowercase RFC 1123 subdomain must consist of ...")
        if wrong := next((entry for entry in data if not _ENTRY.fullmatch(entry)), None):
            return invalid("Secret", name, f"data[{wrong}]", "a valid config key must consist of ...")
        if size > MAX_BYTES:
            return invalid("Secret", name, "data", "Too long: may not be more than 1048576 bytes")
        if (namespace, name) in self.objects:
            return already_exists("secrets", name)
        metadata = {**told["metadata"], "namespace": namespace, "uid": str(uuid4())}
        made = self.objects[namespace, name] = {**told, "metadata": metadata}
        return Answer(201, encode(made) + b"\n")
