"""What a run has compared, as a table for the end of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    compared: str
    equal: str  # how much of it was equal: "27 events", "611 bytes"; or what was found instead
    direct_seconds: float | None  # None: not asked of vLLM itself
    gateway_seconds: float


@dataclass
class Report:
    """Filled by the tests, one row for each thing compared."""

    rows: list[Row] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)

    def add(self, compared: str, equal: str, direct_seconds: float | None, gateway_seconds: float) -> None:
        self.rows.append(Row(compared, equal, direct_seconds, gateway_seconds))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def lines(self) -> list[str]:
        if not self.rows:
            return []
        width = max(len(row.compared) for row in self.rows)
        head = f"{'compared':{width}}  {'equal':>22}  direct s  gateway s"
        return [head, *(_line(row, width) for row in self.rows), *self.notes]


def _line(row: Row, width: int) -> str:
    direct = "" if row.direct_seconds is None else f"{row.direct_seconds:.2f}"
    return f"{row.compared:{width}}  {row.equal:>22}  {direct:>8}  {row.gateway_seconds:9.2f}"
