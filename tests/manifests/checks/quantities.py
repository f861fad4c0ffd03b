"""Kubernetes' quantities as numbers: 100m, 1Gi, 2."""

import re
from decimal import Decimal

SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(1000),
    "M": Decimal(1000**2),
    "G": Decimal(1000**3),
    "T": Decimal(1000**4),
    "Ki": Decimal(1024),
    "Mi": Decimal(1024**2),
    "Gi": Decimal(1024**3),
    "Ti": Decimal(1024**4),
}


FORM = re.compile(r"(\d+(?:\.\d+)?)(m|k|[MGT]|[KMGT]i|)")


def quantity(text: str | float) -> Decimal:
    """Raises ValueError where it is none."""
    parts = FORM.fullmatch(str(text))
    if parts is None:
        raise ValueError(f"{text!r} is no quantity")
    number, suffix = parts.groups()
    return Decimal(number) * SUFFIXES[suffix]
