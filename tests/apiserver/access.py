"""Who may do what: tokens, accounts, RBAC verbs; and what a request asks leave for."""

from dataclasses import dataclass

from tests.apiserver.http import Request

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PUBLIC = {"/version", "/healthz", "/livez", "/readyz"}


@dataclass(frozen=True)
class Grant:
    """One verb on one resource; without a namespace, in all of them; without a name (resourceNames), on all of them."""

    verb: str
    resource: str = "pods"
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True)
class Account:
    """A user. `grants` None: everything is allowed."""

    user: str
    grants: frozenset[Grant] | None = None

    def may(self, target: "Target") -> bool:
        if target.path in _PUBLIC or self.grants is None:
            return True
        # What is created has no name yet, so a rule with names never allows it.
        ways = {
            Grant(target.verb, target.resource, namespace, name)
            for namespace in ("", target.namespace)
            for name in ("", target.name)
        }
        return bool(target.resource) and not self.grants.isdisjoint(ways)


ANONYMOUS = Account("system:anonymous", frozenset())
"""Who sends no token at all: not 401, but 403 on all that is not public."""


def service_account(
    *namespaces: str, name: str = "gw", home: str = "cap", verbs: tuple[str, ...] = ("list", "watch")
) -> Account:
    """What a Role and its RoleBinding in each of these namespaces give on pods."""
    grants = frozenset(Grant(verb, "pods", namespace) for verb in verbs for namespace in namespaces)
    return Account(f"system:serviceaccount:{home}:{name}", grants)


@dataclass(frozen=True)
class Target:
    """A request in the words of RBAC. Without a resource it is one for a path."""

    verb: str
    path: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""


def target_of(request: Request) -> Target:
    """From the method and the path, as the server's RequestInfo: a GET of a collection lists or watches it."""
    parts = [part for part in request.path.split("/") if part]
    group, rest = "", []
    if parts[:1] == ["api"]:
        rest = parts[2:]
    elif parts[:1] == ["apis"]:
        group, rest = "".join(parts[1:2]), parts[3:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return Target(request.method.lower(), request.path)
    resource, name = "/".join((rest[0], *rest[2:3])), "".join(rest[1:2])
    verb = _VERBS.get(request.method, "")
    if not verb:
        watched = request.query.get("watch", "false").lower() not in ("false", "0")
        verb = "get" if name else "watch" if watched else "list"
    return Target(verb, request.path, group, resource, namespace, name)
