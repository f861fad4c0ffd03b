"""A request for pods becomes a value, or is refused for options that contradict each other."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.apiserver.http import Request
from tests.apiserver.log import Object
from tests.apiserver.selectors import BadSelector, parse_selector
from tests.apiserver.statuses import Refused, bad_request, invalid_options

_KNOWN = {
    "allowWatchBookmarks",
    "continue",
    "labelSelector",
    "limit",
    "pretty",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
}


@dataclass(frozen=True)
class Asked:
    """Which pods, and from when. `version` None: not given."""

    namespace: str
    """Empty: all."""
    labels_match: Callable[[Object], bool]
    selective: bool
    version: int | None
    match: str
    limit: int
    token: str
    watch: bool
    bookmarks: bool
    initial: bool
    """A watch that begins with what is there."""
    timeout_seconds: int | None

    def wants(self, pod: Object | None) -> bool:
        """Whether the pod, if there is one, is among those asked for."""
        if pod is None:
            return False
        return self.namespace in ("", pod["metadata"]["namespace"]) and self.labels_match(pod)


def read_asked(request: Request, namespace: str) -> Asked:
    """Raises Refused: 400 for what cannot be read, 422 for what is not allowed together."""
    query = request.query
    if unknown := query.keys() - _KNOWN:
        # The real server ignores unknown options; a test wants to hear of them.
        raise Refused(bad_request(f"the stand-in does not know {sorted(unknown)}; teach it, or do not ask"))
    watch = _flag(query.get("watch", "false"))
    version = _number(query.get("resourceVersion", ""), "resourceVersion")
    match, token = query.get("resourceVersionMatch", ""), query.get("continue", "")
    initial = query.get("sendInitialEvents")
    _check(watch, version, match, token, initial)
    try:
        selector = parse_selector(query.get("labelSelector", ""))
    except BadSelector as error:
        raise Refused(bad_request(str(error))) from error
    return Asked(
        namespace=namespace,
        labels_match=lambda pod: selector(pod["metadata"].get("labels", {})),
        selective=bool(query.get("labelSelector")),
        version=version,
        match=match,
        limit=_number(query.get("limit", ""), "limit") or 0,
        token=token,
        watch=watch,
        bookmarks=_flag(query.get("allowWatchBookmarks", "false")),
        # Without a version, and with version 0, a watch begins with what is there in any case.
        initial=_flag(initial) if initial is not None else not version,
        timeout_seconds=_number(query.get("timeoutSeconds", ""), "timeoutSeconds"),
    )


def _check(watch: bool, version: int | None, match: str, token: str, initial: str | None) -> None:
    """From apimachinery's validation of ListOptions, v1.36."""

    def refuse(message: str, field: str = "resourceVersionMatch") -> None:
        raise Refused(invalid_options(field, message))

    if watch:
        if initial is not None and match != "NotOlderThan":
            refuse("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        if match and initial is None:
            refuse("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
        return
    if initial is not None:
        refuse("sendInitialEvents is forbidden for list", "sendInitialEvents")
    if match and version is None:
        refuse("resourceVersionMatch is forbidden unless resourceVersion is provided")
    if match and token:
        refuse("resourceVersionMatch is forbidden when continue is provided")
    if match == "Exact" and version == 0:
        refuse('resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
    if token and version:
        raise Refused(bad_request("specifying resource version is not allowed when using continue"))


def _flag(text: str) -> bool:
    """As Go's conversion of query parameters: present and neither false nor 0."""
    return text.lower() not in ("false", "0")


def _number(text: str, name: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise Refused(
            bad_request(f'{name}: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
        )
    return int(text)
