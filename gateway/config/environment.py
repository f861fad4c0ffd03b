"""Which variables of the environment are configuration: `POOLGATE_SECTION__KEY`, with a double underscore.

Those with a single one are not: Kubernetes' service links make such.
"""

from collections.abc import Iterator, Mapping

from gateway.config.faults import KeyPath
from gateway.config.fields import Section
from gateway.config.whole import Config

PREFIX = "POOLGATE_"


def variable(path: KeyPath) -> str:
    """The one that sets a key."""
    return PREFIX + "__".join(path).upper()


def settings_in(environment: Mapping[str, str]) -> Iterator[tuple[str, KeyPath, str]]:
    """(The variable, the key that it sets, its value) for each that is configuration."""
    for name, value in sorted(environment.items()):
        path = name.removeprefix(PREFIX).lower().split("__")
        if name.startswith(PREFIX) and len(path) > 1 and all(path):
            yield name, tuple(path), value


def one_underscore(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(A variable that is not configuration, since it has one underscore where two are wanted, the one that is)."""
    known = {}
    for section, below in Config.model_fields.items():
        kind = below.annotation
        for key in kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ():
            right = variable((section, key))
            known[right.replace("__", "_")] = right
    for name in sorted(known.keys() & environment.keys()):
        # A Service whose name begins like a section makes the others.
        if not environment[name].startswith("tcp://"):
            yield name, known[name]
