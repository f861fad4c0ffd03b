"""The port to where limits are counted. Two modules implement it, `memory_store` and `redis_store`, with one meaning;
a property test drives both with the same histories.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from gateway.limits.bucket import Bucket, Costs, Taken

Mode = Literal["memory", "redis", "local"]
LOCAL_BECAUSE = {
    "connecting": "is not connected yet",
    "timeout": "does not answer in time",
    "slow": "is slow",
    "refused": "cannot be reached",
    "denied": "does not let us in",
    "readonly": "takes no writes",
    "memory": "has no memory left",
    "loading": "is not ready yet",
    "error": "answers with errors",
}
"""What Redis does, for each reason of the mode `local`."""


class Store(Protocol):
    """Takes from a request's buckets, all or none, and settles at its end."""

    @property
    def mode(self) -> Mode:
        """`memory`: this replica counts for itself. `redis`: all count together. `local`: they should, but Redis is
        slow or away, so each keeps to its share."""
        ...

    @property
    def since(self) -> float:
        """Since when it is in this mode; monotonic seconds."""
        ...

    @property
    def reason(self) -> str:
        """Why it is `local`, in one word; else empty."""
        ...

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken | None:
        """What can be said at once; None: it has to be asked, by `take`."""
        ...

    async def take(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        """Ask. Answers within tens of milliseconds whatever happens; never raises. Cancelled, nothing stays taken."""
        ...

    def settle(self, taken: Taken, buckets: Sequence[Bucket], reserved: Costs, used: Costs) -> None:
        """A request that was let in has ended. Never waits."""
        ...

    def level(self, bucket: Bucket) -> float | None:
        """Where a bucket stands, as far as that is known without asking: see `Taken.levels`. None: it is not."""
        ...

    async def run(self) -> None:
        """What runs beside the requests; ends by cancellation."""
        ...
