"""A list, or a page of one, from the log."""

import gzip
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from tests.apiserver.asked import Asked
from tests.apiserver.log import Log, Object
from tests.apiserver.statuses import Refused, bad_request, encode, expired_continue, expired_list

_GZIP_FROM_BYTES = 128 * 1024
_GZIP_PIECE_BYTES = 240


@dataclass(frozen=True)
class Page:
    """What a list says. `version` is that of the whole list, not of its newest pod."""

    pods: tuple[Object, ...]
    version: int
    token: str
    remaining: int | None


def page_of(log: Log, asked: Asked) -> Page:
    """Raises Refused with 410 when the version or the token is older than what etcd keeps."""
    version, start = _from_where(log, asked)
    found = [pod for pod in log.at(version) if asked.wants(pod) and _place(pod, asked) >= start]
    if not asked.limit or len(found) <= asked.limit:
        return Page(tuple(found), version, "", None)
    pods = tuple(found[: asked.limit])
    # etcd cannot count what a selector would leave, so only a list without one tells how much remains.
    remaining = None if asked.selective else len(found) - asked.limit
    return Page(pods, version, _token(version, f"/{_place(pods[-1], asked)}\0"), remaining)


def _from_where(log: Log, asked: Asked) -> tuple[int, str]:
    if asked.token:
        version, start = _read_token(asked.token)
        if 0 <= version < log.kept_from:
            raise Refused(expired_continue(_token(-1, start.removeprefix("/"))))
        return (log.version if version < 0 else version), start.removeprefix("/")
    # Without a match, a limit makes a version exact: an old rule that stayed.
    exact = asked.match == "Exact" or (asked.limit and not asked.match)
    if asked.version and exact:
        if asked.version < log.kept_from:
            raise Refused(expired_list())
        return asked.version, ""
    return log.version, ""


def _place(pod: Object, asked: Asked) -> str:
    metadata = pod["metadata"]
    name: str = metadata["name"]
    return name if asked.namespace else f"{metadata['namespace']}/{name}"


def _token(version: int, start: str) -> str:
    raw = encode({"v": "meta.k8s.io/v1", "rv": version, "start": start}).replace(b"\x00", b"\\u0000")
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        told = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(told["rv"]), str(told["start"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(bad_request("continue key is not valid: " + str(error))) from error


def pieces_of(page: Page) -> list[bytes]:
    """The list's JSON, item by item as the server's streaming encoder writes it. Items carry no kind."""
    metadata = {
        "resourceVersion": str(page.version),
        **({"continue": page.token} if page.token else {}),
        **({"remainingItemCount": page.remaining} if page.remaining is not None else {}),
    }
    head = encode({"kind": "PodList", "apiVersion": "v1", "metadata": metadata})[:-1] + b',"items":['
    items = [b"," * bool(place) + encode(pod) for place, pod in enumerate(page.pods)]
    return [head, *items, b"]}\n"]


def compressed(pieces: list[bytes], accepted: str) -> tuple[list[bytes], Mapping[str, str]]:
    """Lists over 128 KiB are gzipped when asked for; watches never are."""
    if "gzip" not in accepted or sum(map(len, pieces)) <= _GZIP_FROM_BYTES:
        return pieces, {}
    packed = gzip.compress(b"".join(pieces), 1)
    small = [packed[start : start + _GZIP_PIECE_BYTES] for start in range(0, len(packed), _GZIP_PIECE_BYTES)]
    return small, {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
