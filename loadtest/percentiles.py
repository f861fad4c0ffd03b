"""The percentile of everything here, the bench's and the reports': a value that occurred (nearest rank)."""

import math
from collections.abc import Sequence


def percentile(in_order: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed; 0 if there are none."""
    return float(in_order[max(math.ceil(share * len(in_order) - 1e-9), 1) - 1]) if in_order else 0.0
