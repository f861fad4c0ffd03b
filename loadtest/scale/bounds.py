"""The gateway's own constants that the arithmetic goes by, as the gateway has them."""

from typing import Final

from gateway.config.sections import PoolSection
from gateway.discovery.reflector import Pace as ReflectorPace
from gateway.discovery.rounds import Pace
from gateway.edge.bounds import MOST_CONNECTIONS as _MOST_CONNECTIONS
from gateway.limits.batch import MAX_TOLD as _MAX_TOLD
from gateway.limits.redis_store import Pace as LimitsPace

PACE: Final = Pace()
"""How often pods are asked."""
LIMITS: Final = LimitsPace()
"""How often Redis is told what runs."""
LIST_SECONDS: Final = ReflectorPace().relist
"""Between two full lists of pods."""
MOST_CONNECTIONS: Final = _MOST_CONNECTIONS
"""Of a replica."""
MAX_TOLD: Final = _MAX_TOLD
"""Buckets that one call tells again."""
ROOM: Final = PoolSection().max_in_flight_per_pod
QUEUE: Final = PoolSection().queue_limit
"""Of a pool, at each replica."""
