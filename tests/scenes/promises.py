"""What Poolgate promises. Every scene proves a part of one of these."""

from enum import Enum


class Promise(Enum):
    """A promise, in a sentence."""

    TRUTH = "A stream never lies: what was cut is told, what is whole is byte for byte the pod's."
    PODS = "A request reaches a pod that can answer it, and is never the death of the others."
    DISCOVERY = "Discovery cannot rot: what the gateway believes of pods is what the cluster says, soon after."
    LIMITS = "Limits hold across replicas, and whatever happens to Redis."
    COST = "It costs next to nothing, and no client or pod can make it cost more."
    FRONT_DOOR = "Bad input is refused; nothing is lost, leaked or logged."
    ONE_COMMAND = "One command shows it, and nothing that it needs is missing."

    @property
    def besides(self) -> str:
        """What shows it, but for the scenes."""
        return _BESIDES[self]


_BESIDES = {
    Promise.TRUTH: "`make soak`, `make fuzz`",
    Promise.PODS: "`make rollout`, `make soak`",
    Promise.DISCOVERY: "`make rollout`, `make bench-discovery`",
    Promise.LIMITS: "`make soak`",
    Promise.COST: "`make bench`, `make bench-hostile`, `make soak`",
    Promise.FRONT_DOOR: "`make fuzz`, `tests/smuggling`",
    Promise.ONE_COMMAND: "`make demo-check`, `make test-webui` in a browser",
}
