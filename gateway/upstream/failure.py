"""How an attempt at one pod can fail before its answer's first byte reached the client.

The kinds are the rows of the contract's retry table; `pipeline.retries` says what follows from each.
"""

from enum import StrEnum


class Failure(StrEnum):
    """A closed set, and with the outcomes of answered attempts the `outcome` label of the attempts metric."""

    CONNECT = "connect"
    """Refused, unreachable, or no connection in time."""
    STALE = "stale"
    """A reused connection died with no byte of an answer."""
    RESET = "reset"
    """Reset or cut, head seen or not."""
    BUSY = "busy"
    """503 or 429."""
    DYING = "dying"
    """500, or an error as first event: with vLLM's words for a shutdown, or from a pod that terminates or is ill."""
    ENGINE_DEAD = "engine_dead"
    """The same with vLLM's words for an engine that has died, perhaps of this very request."""
    SILENT = "silent"
    """A pod on its way down, or one whose engine is stuck, sent nothing for a short while."""
    SIDECAR = "sidecar"
    """502 or 504, by a proxy before the pod."""
    SERVER_ERROR = "server_error"
    """Any other 5xx, or an error as first event."""
    JUNK = "junk"
    """Not an answer to what was asked: broken framing, a redirect, no JSON, a refusal of our key."""
    TIMEOUT = "timeout"
    """Silent past the deadline."""
    MODEL_GONE = "model_gone"
    """404 for a model that the pod listed."""
    REFUSED = "refused"
    """A 4xx about the request itself."""
    ABANDONED = "abandoned"
    """The client left, or this replica's drain ended: the pod is not to blame."""
