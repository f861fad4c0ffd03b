"""Which models a name leads to. A caller may ask for a model by its own name, or by an alias: another name for it, a
split over several by weight, with others to fall back on.

What stands in an alias are names of models, and never aliases again: there is no chain to follow and no circle to
fear. So an alias may bear the name of a model too, to split its requests, or to give it something to fall back on.
Limits and the globs of keys apply to the name asked for; the pod reads the model's own name in the body
(`intake.renamed`).

`targets(aliases, asked, draw)` gives the models to try, in order. The first one is taken for the whole request, its
retries included; each further one only on `no_ready_pod`, `queue_full`, `queue_timeout` and connect failures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Target(NamedTuple):
    """A model that an alias leads to, with its share of the alias' requests, as a part of the sum of all weights."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for one model or several."""

    name: str
    to: tuple[Target, ...]
    """At least one; each model once, each weight above 0."""
    fallback: tuple[str, ...] = ()
    """Models to try after the one that was chosen, in this order."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it may lead to, each once."""
        return tuple(dict.fromkeys((*(target.model for target in self.to), *self.fallback)))


Aliases = Mapping[str, Alias]
"""By name. Replaced whole when the configuration changes."""


def targets(aliases: Aliases, asked: str, draw: float) -> tuple[str, ...]:
    """The models to try for a name, in order, each once. `draw`, in [0, 1), is the chance that chooses in a split.

    A name that is no alias is a model's.
    """
    alias = aliases.get(asked)
    if alias is None:
        return (asked,)
    first = chosen(alias.to, draw)
    return (first, *(model for model in alias.fallback if model != first))


def chosen(to: tuple[Target, ...], draw: float) -> str:
    """The model whose share of [0, 1) the draw falls into; the shares lie there in order."""
    left = draw * sum(target.weight for target in to)
    for target in to:
        if left < target.weight:
            return target.model
        left -= target.weight
    # Sums of fractions are rounded: the end of the last share may lie a little before 1.
    return to[-1].model
