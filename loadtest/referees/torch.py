"""The CPU build of torch, which the public package index does not carry."""

import os
import subprocess
import sys
from typing import Final

TORCH: Final = "torch==2.13.0+cpu"


def torch_places() -> list[str]:
    """Where to look for its wheel: the folder that TORCH_FIND_LINKS names, else where pip is told to look. Empty: no
    such place is known."""
    named = os.environ.get("TORCH_FIND_LINKS")
    if named:
        return [named]
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    configured = asked.stdout if asked.returncode == 0 else ""  # 1: there is no such key
    return list(dict.fromkeys([*configured.split(), *os.environ.get("PIP_FIND_LINKS", "").split()]))
