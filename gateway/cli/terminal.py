"""What operators' commands print with.

Names and reasons come from callers, pods and Kubernetes: they are printed as they are, never read as markup or as codes
that steer a terminal.
"""

import sys

from rich.console import Console, RenderableType
from rich.text import Text

UNBOUNDED_COLUMNS = 500
"""Where nobody looks at a terminal no line is folded."""
PIPED_COLUMNS = 160


def show(page: RenderableType) -> None:
    """Print on stdout."""
    Console(width=None if sys.stdout.isatty() else UNBOUNDED_COLUMNS).print(page)


def width(piped: int = PIPED_COLUMNS) -> int:
    """Of the terminal; `piped`: of what is none. By default one that fits most of them."""
    return Console().width if sys.stdout.isatty() else piped


def plain(text: str, style: str = "") -> Text:
    """Text as it is; what cannot be printed is replaced."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), style)
