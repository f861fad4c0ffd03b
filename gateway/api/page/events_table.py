"""The status page's table of events."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from gateway.api.page.drawing import dot, moment, text
from gateway.api.page.parts import Group
from gateway.api.page.tables import cell, leaves, listing, row

MAX_EVENTS = 50
COLUMNS = ("Time", "Level", "Of what", "What happened")

Said = Mapping[str, Any]


def events_table(events: Sequence[Said]) -> Group:
    """The youngest first."""
    return listing(
        "events",
        "What happened to pods, limits and the configuration, the youngest first",
        COLUMNS,
        leaves("event", islice(events, MAX_EVENTS), lambda it: (it["ts"], it["what"], it["subject"]), _event_row),
        len(events) - MAX_EVENTS,
        "events",
        "Nothing has happened yet",
    )


def _event_row(part_id: str, event: Said) -> str:
    cells = (
        cell("Level", dot(event["level"], event["level"]), "state"),
        cell("Of what", text(event["subject"])),
        cell("What happened", text(event["text"]), "wide"),
    )
    return row(part_id, moment(event["ts"]), cells)
