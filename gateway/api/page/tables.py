"""Tables of a page: a caption, columns, and rows that can be replaced one by one.

Roles are told beside the elements: on a phone the style makes cards of the rows, and then browsers do not count them as
a table's any more.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gateway.api.page.drawing import named, text
from gateway.api.page.parts import Group, Leaf, Part


def table(name: str, caption: str, columns: Sequence[str], bodies: Sequence[Part]) -> Group:
    """A table of several bodies, whose columns stand in line."""
    heads = "".join(f'<th scope="col" role="columnheader">{text(column)}</th>' for column in columns)
    head = f'<thead id="{name}-head" role="rowgroup"><tr role="row">{heads}</tr></thead>'
    parts = (
        Leaf(f"{name}-caption", f'<caption id="{name}-caption">{text(caption)}.</caption>'),
        Leaf(f"{name}-head", head),
        *bodies,
    )
    return Group(name, f'<table id="{name}" role="table">', parts, "</table>")


def body(part_id: str, rows: Sequence[Leaf], more: int, what: str) -> Group:
    """A body; below its rows, how many more of what there are."""
    rest = [words(f"{part_id}-more", f"and {more:,} more {what}, in the JSON")] if more > 0 else []
    return Group(part_id, f'<tbody id="{part_id}" role="rowgroup">', (*rows, *rest), "</tbody>")


def listing(
    name: str, caption: str, columns: Sequence[str], rows: Sequence[Leaf], more: int, what: str, none: str
) -> Group:
    """A table of one body, or of the words that there is nothing."""
    shown = rows or [words(f"{name}-none", none)]
    return table(name, caption, columns, [body(f"{name}-rows", shown, more, what)])


def words(part_id: str, said: str) -> Leaf:
    """A row of words only."""
    # Wider than any table: a cell spans no more columns than there are.
    return Leaf(part_id, f'<tr id="{part_id}" role="row"><td role="cell" colspan="20">{text(said)}.</td></tr>')


def leaves(
    kind: str,
    things: Iterable[Any],
    names: Callable[[Any], tuple[str, ...]],
    html: Callable[[str, Any], str],
) -> list[Leaf]:
    """A leaf for each thing, by its id and itself. Who bears the same names as another has an id of its own as well."""
    met: dict[str, int] = {}
    made = []
    for thing in things:
        part_id = named(kind, *names(thing))
        met[part_id] = met.get(part_id, 0) + 1
        if met[part_id] > 1:
            part_id = f"{part_id}-{met[part_id]}"
        made.append(Leaf(part_id, html(part_id, thing)))
    return made


def row(part_id: str, head: str, cells: Iterable[str], *, scope: str = "row", more: str = "") -> str:
    """A row whose head says what it is about. `more`: further attributes."""
    return f'<tr id="{part_id}" role="row"{more}><th scope="{scope}" role="rowheader">{head}</th>{"".join(cells)}</tr>'


def cell(label: str, html: str, kind: str = "") -> str:
    """A cell. On a phone its label stands above it; `n` is a number, `wide` has a line for itself."""
    return f'<td role="cell" data-label="{label}" class="{kind}">{html}</td>'


def drawn(label: str, drawing: str, value: str) -> str:
    """A cell with something drawn and its number, each in line with those above."""
    return cell(label, f'<span class="pair">{drawing}<span>{value}</span></span>', "n")


def counted_if(count: int, level: str) -> str:
    """A number that had better be 0."""
    return f'<span class="{level}">{count:,}</span>' if count else '<span class="none">0</span>'


def out_of(most: int | None) -> str:
    """How many there may be."""
    return "" if most is None else f"<small> / {most:,}</small>"
