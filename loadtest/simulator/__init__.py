"""A vLLM look-alike on real sockets, cheap enough to share a core with a load generator.

    async with SimulatedPod(PodSettings(model="m")) as pod:
        ...

or `python -m loadtest.simulator --pool chat:3`. What it imitates, and what not, is in docs/simulator.md.

Imports point down: `__main__` → `pod` → `routes` → `translated` → `sabotage` → `generation`, and `routes` →
`upkeep` and `routing` → one module per API (`messages`, `responses`, `audio`, `pooling`, `tokenizing`) →
`dialects`, `schema`; both → `connection`, `engine`, `bodies`, `asked` → `logprobs` → `composing` → `wishes` →
`instances` → `patterns` → `settings` → values (`answers`, `blocks`, `faults`, `gauges`, `prompts`, `refusals`,
`timing`, `wire`).
"""

from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.faults import BadFault, Fault, FaultKind, Garbage
from loadtest.simulator.pod import SimulatedPod, Stage
from loadtest.simulator.settings import PodSettings, Scheduling, Shutdown, Task
from loadtest.simulator.timing import FAST, TimeModel

__all__ = [
    "FAST",
    "BadFault",
    "Fault",
    "FaultKind",
    "Garbage",
    "PodSettings",
    "ReceivedRequest",
    "Scheduling",
    "Shutdown",
    "SimulatedPod",
    "Stage",
    "Task",
    "TimeModel",
]
