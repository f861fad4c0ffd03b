"""Counters and histograms that cost a fifth of a microsecond, and are rendered by prometheus_client.

Everything is counted on one loop's thread, so a child needs no lock: it is a number, or a list of bucket counts and a
sum. A scrape reads them from another thread. It copies what it walks over in one step, and counts a histogram's values
by its buckets, so that `_count` is always that of the infinite bucket; only `_sum` may be an observation ahead of them,
which Prometheus allows.

Memory and scrapes are bounded by who gives the names: `Names` gives at most so many of a kind a series of their own.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.telemetry.definitions import OTHER, Definition


class Count:
    """One series of a counter: whoever holds it adds to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Buckets:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the histogram's unit."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


C = TypeVar("C", Count, Buckets)


class _Family(Collector, Generic[C]):
    """What counters and histograms have in common: children by the values of their labels."""

    def __init__(self, definition: Definition, make: Callable[[], C]) -> None:
        self.definition = definition
        self._labels = definition.label_names
        self._make: Callable[[], C] = make
        self._children: dict[tuple[str, ...], C] = {}

    def of(self, *labels: str) -> C:
        """The series with these label values, made when first asked for. Hold it: the look-up is what costs."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._make()
        return child

    def forget(self, label: str, values: Collection[str]) -> None:
        """Let go of all series with one of these values. Who holds one counts where nobody looks any more."""
        if label in self._labels:
            at = self._labels.index(label)
            for labels in [labels for labels in self._children if labels[at] in values]:
                del self._children[labels]

    def _each(self) -> Iterable[tuple[tuple[str, ...], C]]:
        # A copy of a dict is made in one step, so that the loop's thread cannot come in between.
        return self._children.copy().items()


class Counters(_Family[Count]):
    """A counter family."""

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition, Count)

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self.definition.name, self.definition.meaning, labels=self._labels)
        for labels, child in self._each():
            family.add_metric(labels, child.value)
        yield family


class Histograms(_Family[Buckets]):
    """A histogram family."""

    def __init__(self, definition: Definition) -> None:
        bounds = tuple(definition.buckets)
        super().__init__(definition, lambda: Buckets(bounds))
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self.definition.name, self.definition.meaning, labels=self._labels)
        for labels, child in self._each():
            total = 0
            buckets = []
            for name, count in zip(self._names, child.counts.copy(), strict=True):
                total += count
                buckets.append((name, float(total)))
            family.add_metric(labels, buckets, child.sum)
        yield family


class Names:
    """Names of one kind that have series of their own, at most so many; the others share those of `other`.

    When there are too many, those that are not `alive` any more make room: `forget` lets go of their series. Should one
    come back it begins at zero, which Prometheus takes for a restart.
    """

    def __init__(
        self,
        most: int,
        alive: Callable[[str], bool] = lambda name: True,
        forget: Callable[[Collection[str]], None] = lambda gone: None,
    ) -> None:
        self._most = most
        self._alive = alive
        self._forget = forget
        self._names: set[str] = set()

    def label(self, name: str) -> str:
        """The label's value for this name."""
        if name in self._names:
            return name
        if len(self._names) >= self._most:
            gone = {each for each in self._names if not self._alive(each)}
            if gone:
                self._names -= gone
                self._forget(gone)
        if len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name
