"""Results as tables: for people as aligned text, shares in percent; for programs as plain values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows; floats are shares in [0, 1], None is what cannot be computed."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def text(self) -> str:
        """Markdown, which also reads well as it is."""
        cells = [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        lines = [_line(row, widths) for row in cells]
        rule = "| " + " | ".join("-" * width for width in widths) + " |"
        return "\n".join([self.title, "", lines[0], rule, *lines[1:]])


@dataclass(frozen=True)
class Evaluation:
    """What was measured of explanations.

    Attributes:
        settings: what the numbers depend on.
        tables: the numbers.
        lines: how many questions or pictures there were.
        errors: share without any answer; `unreadable`: share whose answer made no sense.
        needs_review: explanations that ask for a person; None where only questions were answered.
        usage: calls, pictures, tokens, seconds.
    """

    settings: dict[str, Any]
    tables: tuple[Table, ...]
    lines: int
    errors: float
    unreadable: float
    needs_review: int | None
    usage: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self) -> str:
        """All tables, then what it cost and how much went wrong."""
        used = self.usage
        spent = f"{used['calls']} calls, {used['images_sent']} pictures, {used['prompt_tokens']} tokens read, "
        spent += f"{used['completion_tokens']} written, {used['seconds']:.1f} s"
        wrong = f"{self.lines} answers: {self.errors:.1%} failed, {self.unreadable:.1%} unreadable"
        if self.needs_review is not None:
            wrong += f", {self.needs_review} need review"
        return "\n\n".join([*(table.text() for table in self.tables), f"{wrong}\n{spent}"])


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{100 * cell:.1f}"
    return "n/a" if cell is None else str(cell)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return " | ".join(["| " + first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"
