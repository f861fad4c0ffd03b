"""Tables that fit: columns that do not fit are left out, the least important first; rows that do not are counted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.text import Text

GAP = "  "
LAST_WIDTH = 24
"""So much at least of a table's last column, which takes the room that the others leave."""


@dataclass(frozen=True, slots=True)
class Column:
    """One of a table's."""

    head: str
    cell: Callable[[Any], Text]
    rank: int = 0
    """Those with the highest go first where there is no room."""
    justify: Literal["left", "right"] = "right"
    widest: int = 1000
    """What is longer is cut."""


def table(columns: Sequence[Column], rows: Sequence[Any], width: int, share: int) -> list[Text]:
    """A table of `share` lines, one for each row, the blank one before it included."""
    if not share:
        return []
    room = share - 2
    shown = rows if len(rows) <= room else rows[: room - 1]
    cells = [[column.cell(row) for column in columns] for row in shown]
    widths = widths_of(columns, cells)
    kept = fitting(columns, widths, width)
    others = sum(widths[at] for at in kept[:-1]) + len(GAP) * (len(kept) - 1)
    widths[kept[-1]] = max(1, min(widths[kept[-1]], width - others))
    lines = [Text(), row_of([Text(columns[at].head, "dim") for at in kept], columns, widths, kept)]
    lines += [row_of([each[at] for at in kept], columns, widths, kept) for each in cells]
    if len(shown) < len(rows):
        lines.append(Text(f"and {len(rows) - len(shown)} more", "dim"))
    return lines


def widths_of(columns: Sequence[Column], cells: Sequence[Sequence[Text]]) -> list[int]:
    """What each column would like to have."""
    return [
        min(column.widest, max([len(column.head), *(each[at].cell_len for each in cells)]))
        for at, column in enumerate(columns)
    ]


def fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The places of the columns that there is room for."""
    kept = list(range(len(columns)))
    wants = [*widths[:-1], min(widths[-1], LAST_WIDTH)]
    while len(kept) > 1 and sum(wants[at] for at in kept) + len(GAP) * (len(kept) - 1) > width:
        # What comes last in its rank goes first; what is never left out is cut.
        least = max(kept, key=lambda at: (columns[at].rank, at))
        if not columns[least].rank:
            break
        kept.remove(least)
    return kept


def row_of(cells: Iterable[Text], columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int]) -> Text:
    """One line."""
    line = Text()
    for at, cell in zip(kept, cells, strict=True):
        if at != kept[0]:
            line.append(GAP)
        fitted = cut(cell, widths[at])
        blank = " " * (widths[at] - fitted.cell_len)
        line.append_text(Text(blank) + fitted if columns[at].justify == "right" else fitted + Text(blank))
    return line


def cut(line: Text, width: int) -> Text:
    """A line that fits; what does not fit ends in a sign that there is more."""
    shown = line.copy()
    shown.no_wrap, shown.overflow = True, "ellipsis"
    shown.rstrip()
    shown.truncate(max(1, width), overflow="ellipsis")
    return shown
