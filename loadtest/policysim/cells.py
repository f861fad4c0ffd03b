"""Where the policies are compared: workload × pods × replicas of the gateway × load × what is the matter."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from loadtest.policysim.profiles import LARGE, MEASURED, Profile
from loadtest.policysim.workloads import WORKLOADS

TUNING_SEEDS = (101, 102, 103, 104, 105)
"""For whoever works on a policy."""
REPORT_SEEDS = (9001, 9002, 9003, 9004, 9005, 9006)
"""For the report alone: no policy has been changed by what they show."""

LOADS = (0.5, 0.8, 0.95)
USUAL_LOAD = 0.8
MANY_REPLICAS = 4


class Condition(StrEnum):
    """What is the matter in a cell."""

    EVEN = "even"
    """Nothing."""
    SLOW = "slow pod"
    """One pod has a quarter of the others' speed."""
    COLD = "cold pod"
    """One pod joins midway, with an empty cache."""
    UNREAD = "no /load"
    """The pods do not count their requests (vLLM does so only when told to)."""


SLOWNESS = 4.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of comparison."""

    workload: str
    pods: int = 8
    replicas: int = MANY_REPLICAS
    load: float = USUAL_LOAD
    condition: Condition = Condition.EVEN
    profile: Profile = LARGE

    @property
    def name(self) -> str:
        return (
            f"{self.workload}, {self.profile.name}, {self.pods} pods, {self.replicas} gw, load {self.load:g}, "
            f"{self.condition}"
        )

    @property
    def requests(self) -> int:
        """As many as let p99 mean something, without a large pool's being left empty or a small one's taking long."""
        return min(max(500 * self.pods, 2000), 8000)

    @property
    def speed(self) -> float:
        """Of all pods together, in pods."""
        if self.condition is Condition.SLOW:
            return self.pods - 1 + 1 / SLOWNESS
        return float(self.pods)


def full() -> Iterator[Cell]:
    """The matrix of the report."""
    for workload in WORKLOADS:
        for replicas in (1, MANY_REPLICAS):
            for load in LOADS:
                yield Cell(workload, replicas=replicas, load=load)
        for condition in (Condition.SLOW, Condition.COLD, Condition.UNREAD):
            yield Cell(workload, condition=condition)
        yield Cell(workload, profile=MEASURED)
    for workload in ("mixed", "sessions", "tenants"):
        yield Cell(workload, pods=2)
        yield Cell(workload, pods=32)
    for workload in ("mixed", "tenants"):
        # More pods than `auto` weighs one by one.
        yield Cell(workload, pods=64)


def quick() -> Iterator[Cell]:
    """A look at each workload, and at each condition once."""
    for workload in WORKLOADS:
        yield Cell(workload)
    yield Cell("mixed", condition=Condition.SLOW)
    yield Cell("tenants", condition=Condition.COLD)
    yield Cell("sessions", condition=Condition.UNREAD)
    yield Cell("mixed", load=0.95)
