"""The Markdown twin of the page: the same words and tables, for a repository or a review."""

from __future__ import annotations

import re
from collections.abc import Iterator

from subnetune.experiment.comparison import Comparison, markdown_tables
from subnetune.experiment.comparison_text import escaped
from subnetune.experiment.report.page import Page
from subnetune.experiment.report.table import Column, Table, Value


def markdown_text(page: Page, comparison: Comparison) -> str:
    """Return `report.md`: the same bytes for the same runs."""
    return "\n".join(_lines(page, comparison)).rstrip() + "\n"


def _lines(page: Page, comparison: Comparison) -> Iterator[str]:
    yield f"# {escaped(page.title)}\n"
    for name, text in page.facts:
        yield f"- **{name}:** {escaped(text)}"
    cells = page.cells
    rest = f"{cells['failed']} failed, {cells['missing']} missing"
    yield f"\nState: {cells['done']} of {page.total} cells are done, {rest}.\n"
    for title, listed in (("Missing", page.missing), ("Left out", page.skipped)):
        if listed:
            yield f"{title}:\n"
            yield "\n".join(f"- {escaped(line)}" for line in listed) + "\n"
    yield "## What the scores say\n"
    yield markdown_tables(comparison).strip() + "\n"
    for table in page.tables:
        if table.key in ("cost", "budget"):
            yield f"## {table.title}\n"
            yield from markdown_table(table)
    for table in (page.failed, page.search):
        if table.lines:
            yield f"## {table.title}\n"
            yield from markdown_table(table)
    yield "## Reproducibility\n"
    made = page.reproduction
    for meaning, command in made.commands:
        yield f"{meaning}:\n\n{_code(command, 'sh')}\n"
    if made.definition:
        yield f"The grid (`grid.yaml`):\n\n{_code(made.definition, 'yaml')}\n"
    if made.shared:
        yield "The same in every run: " + ", ".join(f"{escaped(n)} {escaped(v)}" for n, v in made.shared) + "\n"
    for table in made.tables:
        yield f"### {table.title}\n"
        yield from markdown_table(table)


def markdown_table(table: Table) -> Iterator[str]:
    """Yield the lines of a table, its note above it."""
    if table.note:
        yield f"{escaped(table.note)}\n"
    shown = [(index, column) for index, column in enumerate(table.columns) if column.kind != "drawn"]
    yield "| " + " | ".join(escaped(column.name) for _, column in shown) + " |"
    yield "|" + "|".join("---:" if column.kind == "number" else "---" for _, column in shown) + "|"
    for line in table.lines:
        yield "| " + " | ".join(_place(column, line.values[index]) for index, column in shown) + " |"
    yield ""


def _place(column: Column, value: Value) -> str:
    notes = f" ({'; '.join(value.notes)})" if value.notes else ""
    text = escaped(f"{value.text}{notes}")
    return f"**{text}**" if value.tone == "best" and column.kind == "number" else text


def _code(text: str, language: str) -> str:
    """Return a fenced block; the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
