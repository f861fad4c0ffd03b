"""What `serve` and `check` say alike of a keys file that lets nobody in."""

from collections.abc import Sequence
from pathlib import Path

from gateway.limits.keys import KeyEntry


def no_file(file: Path) -> str | None:
    """The words for a file that is not there; None: it is."""
    try:
        file.stat()
    except FileNotFoundError:
        return f"{file} does not exist: {_make_one(file)}"
    except OSError:
        # Whoever reads it says why it cannot be read.
        return None
    return None


def no_key(file: Path, entries: Sequence[KeyEntry]) -> str | None:
    """The words for a file without entries; None: it has some."""
    return None if entries else f"{file} holds no key: {_make_one(file)}"


def _make_one(file: Path) -> str:
    return f"make one with 'poolgate keys create --team TEAM --file {file}'"
