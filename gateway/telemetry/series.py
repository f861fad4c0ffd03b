"""Counters and histograms that cost a fifth of a microsecond, and are rendered by prometheus_client.

Everything is counted on one loop's thread, so a child needs no lock: it is a number, or a list of bucket counts and a
sum. A scrape reads them from another thread; between two of a histogram's numbers it may see one observation more
or less, which Prometheus allows.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Count:
    """One series of a counter: whoever holds it adds to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Buckets:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the histogram's unit."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counters(Collector):
    """A counter family; its name without `_total`."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._children: dict[tuple[str, ...], Count] = {}

    def of(self, *labels: str) -> Count:
        """The series with these label values, made when first asked for. Hold it: the look-up is what costs."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = Count()
        return child

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, child in list(self._children.items()):
            family.add_metric(labels, child.value)
        yield family


class Histograms(Collector):
    """A histogram family with fixed bucket bounds, ascending, without the infinite one."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, tuple(bounds)
        self._children: dict[tuple[str, ...], Buckets] = {}

    def of(self, *labels: str) -> Buckets:
        """The series with these label values, made when first asked for. Hold it: the look-up is what costs."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = Buckets(self._bounds)
        return child

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, child in list(self._children.items()):
            total = 0
            buckets = []
            for name, count in zip(names, list(child.counts), strict=True):
                total += count
                buckets.append((name, float(total)))
            family.add_metric(labels, buckets, child.sum)
        yield family
