"""A table as plain values: what the HTML page and the Markdown page both draw from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from subnetune.experiment.report.numbers import NONE


class Forest(NamedTuple):
    """A mean with its interval on an axis from 0 to 100 with the zero in the middle; `low` is None without one."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Value:
    """What stands in one place of a table.

    `sort` is what the column is sorted by (None: after all others); `notes` are small lines below the text; `tone` is
    one of "", "best", "done", "failed", "missing", "quiet"; `forest` is drawn in place of the text; `states`
    are the tones of the text's words, where each has its own.
    """

    text: str = NONE
    sort: float | str | None = None
    notes: tuple[str, ...] = ()
    tone: str = ""
    forest: Forest | None = None
    states: tuple[str, ...] = ()


class Column(NamedTuple):
    """`meaning` is a sentence for the key below the table ("" for what needs none)."""

    name: str
    kind: Literal["text", "number", "code", "drawn"] = "text"
    meaning: str = ""


@dataclass(frozen=True)
class Line:
    """One row. `task`, `method` and `size` are what filters ask for."""

    values: tuple[Value, ...]
    task: str = ""
    method: str = ""
    size: str = ""


@dataclass(frozen=True)
class Table:
    """`key` is unique on the page; the first column heads its rows; `note` is a sentence or two above the table."""

    key: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    sortable: bool = True
    filtered: bool = False
    meanings: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line.values) != len(self.columns):
                raise ValueError(f"table {self.key}: {len(line.values)} values in {len(self.columns)} columns")
        found = tuple((column.name, column.meaning) for column in self.columns if column.meaning)
        object.__setattr__(self, "meanings", found)


def words(text: object, tone: str = "") -> Value:
    """A value that is text, sorted as text; an empty one is shown as a dash and comes last."""
    shown = str(text)
    return Value(shown or NONE, shown or None, tone=tone)


def number(text: str, value: float | None, tone: str = "", *notes: str) -> Value:
    """A value that is a number, sorted by `value`."""
    return Value(text, value, tuple(notes), tone)


def drop_empty(table: Table, *keep: str) -> Table:
    """Return the table without columns that hold nothing in any row, but for those named in `keep`."""
    return _with_columns(
        table,
        [
            index
            for index, column in enumerate(table.columns)
            if column.name in keep
            or any(line.values[index].sort is not None or line.values[index].forest for line in table.lines)
        ],
        table.note,
    )


def say_once(table: Table, *names: str) -> Table:
    """Return the table with those of the named columns that say the same in all rows moved into its note."""
    same = {
        index: f"{column.name[:1].upper()}{column.name[1:]}: {table.lines[0].values[index].text}."
        for index, column in enumerate(table.columns)
        if column.name in names and table.lines and len({line.values[index].text for line in table.lines}) == 1
    }
    kept = [index for index in range(len(table.columns)) if index not in same]
    return _with_columns(table, kept, " ".join(filter(None, (table.note, *same.values()))))


def _with_columns(table: Table, kept: list[int], note: str) -> Table:
    columns = tuple(table.columns[index] for index in kept)
    lines = tuple(
        Line(tuple(line.values[index] for index in kept), line.task, line.method, line.size) for line in table.lines
    )
    return Table(table.key, table.title, columns, lines, note, table.sortable, table.filtered)
