"""The few shapes of PromQL that the dashboards are made of.

What adds up and what does not: counters, and what runs or waits, are summed over the gateway's replicas. Every replica
sees all pods, so of the pods' states one replica's view is taken, by `min` or `max`.
"""

from collections.abc import Mapping

OURS = 'job="$job"'
"""This gateway's series, of all its replicas."""
ASKED = f'{OURS},model=~"$model"'
"""Of the models chosen, by the name that was asked for."""


def rate(name: str, matchers: str = OURS) -> str:
    """What a counter's series gain in a second."""
    return f"rate({name}{{{matchers}}}[$__rate_interval])"


def per_second(name: str, matchers: str = OURS, by: str = "") -> str:
    """The same, added up."""
    return f"sum{by_of(by)} ({rate(name, matchers)})"


def per_minute(name: str, matchers: str = OURS, by: str = "") -> str:
    """The same for what is rare."""
    return f"60 * {per_second(name, matchers, by)}"


def gained(name: str, matchers: str = OURS, by: str = "", window: str = "$__range") -> str:
    """What a counter's series gained in the time shown, added up."""
    return f"sum{by_of(by)} (increase({name}{{{matchers}}}[{window}]))"


def now(how: str, name: str, matchers: str = OURS, by: str = "") -> str:
    """A gauge, added up or otherwise made one."""
    return f"{how}{by_of(by)} ({name}{{{matchers}}})"


def quantile(of: float, name: str, matchers: str = OURS) -> str:
    """One quantile of a histogram."""
    return f"histogram_quantile({of}, {per_second(f'{name}_bucket', matchers, 'le')})"


def quantiles(name: str, matchers: str = OURS) -> Mapping[str, str]:
    """The usual three."""
    return {f"p{of * 100:.0f}": quantile(of, name, matchers) for of in (0.5, 0.9, 0.99)}


def mean(name: str, matchers: str = OURS) -> str:
    """A histogram's mean."""
    return f"{per_second(f'{name}_sum', matchers)} / {per_second(f'{name}_count', matchers)}"


def share(part: str, whole: str) -> str:
    """What each series of a part is of one whole."""
    return f"{part} / on () group_left () {whole}"


def only(expr: str) -> str:
    """Without the series that are 0: of what is seldom, the legend names what has happened."""
    return f"{expr} > 0"


def by_of(labels: str) -> str:
    """The grouping of an aggregation; empty for none."""
    return f" by ({labels})" if labels else ""
