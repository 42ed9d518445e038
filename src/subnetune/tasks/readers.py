"""Read tables of text (TSV, CSV, JSON lines, parquet; plain or gzip) without changing a character of the text.

Nothing is taken for a missing value: `NA`, `None` and `null` are words like others. pandas and `datasets.load_dataset`
read them as missing, so neither is used here.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from subnetune.core.errors import DataError, MissingDataError, nearest

_LONGEST_FIELD = 2**30  # characters

Row = tuple[int, list[Any]]  # (line number in the file, from 1; values in the order of the columns)


@dataclass(frozen=True)
class Table:
    """Rows of one file. `columns` are the header's names; `short_rows` counts rows dropped because fields lack."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    short_rows: int = 0

    def column(self, *names: str) -> int:
        """Return the place of the first of `names` that is a column. DataError names what is there."""
        for name in names:
            if name in self.columns:
                return self.columns.index(name)
        wanted = " or ".join(repr(n) for n in names)
        raise DataError(
            f"{self.path}: no column {wanted}; the file has {', '.join(map(repr, self.columns))}"
            + nearest(names[0], self.columns)
        )

    def has(self, *names: str) -> bool:
        """Say whether any of `names` is a column."""
        return any(name in self.columns for name in names)

    def texts(self, place: int) -> list[str]:
        """Return one column as text. DataError, with the line, for a value that is none."""
        for line, values in self.rows:
            if not isinstance(values[place], str):
                raise DataError(
                    f"{self.path}, line {line}: column {self.columns[place]!r} must be text, got {values[place]!r}"
                )
        return [values[place] for _, values in self.rows]

    def class_ids(self, place: int, ids: Mapping[str, int]) -> list[int]:
        """Return a column of labels as class ids. DataError, with the line, for a label that has none."""
        for line, values in self.rows:
            if values[place] not in ids:
                raise DataError(
                    f"{self.path}, line {line}: label {values[place]!r} in column {self.columns[place]!r} "
                    f"is not one of {', '.join(map(repr, ids))}"
                )
        return [ids[values[place]] for _, values in self.rows]

    def numbers(self, place: int) -> list[float]:
        """Return a column as finite numbers. DataError, with the line, for anything else."""
        found = [_number(values[place]) for _, values in self.rows]
        for (line, values), value in zip(self.rows, found, strict=True):
            if not math.isfinite(value):
                raise DataError(
                    f"{self.path}, line {line}: column {self.columns[place]!r} must be a finite number, "
                    f"got {values[place]!r}"
                )
        return found


def find_file(folders: Sequence[Path], names: Sequence[str], what: str) -> Path:
    """Return the first of `folders`/`names` (each plain or with .gz) that exists. MissingDataError: what was tried."""
    found = find_optional(folders, names)
    if found is None:
        tried = "\n  ".join(str(folder / name) for folder in folders for name in names)
        raise MissingDataError(
            f"{what}: no such file; looked for (plain or with .gz)\n  {tried}\nPut the file at one of these."
        )
    return found


def find_optional(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the first of `folders`/`names` (each plain or with .gz) that is a file, or None."""
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    return None


def read_tsv(
    path: Path,
    header: Sequence[str] | None = None,
    drop_short_rows: bool = False,
    optional_tail: Sequence[str] = (),
) -> Table:
    """Read a tab-separated file with quoting off: a quotation mark is a character.

    `header` gives the columns of a file that has no header line. A row with more or fewer fields than columns is a
    DataError with its line number, or, with `drop_short_rows`, dropped and counted if it has fewer. The last columns
    that are named in `optional_tail` may be missing from a row; they are '' then.
    """
    columns = tuple(header) if header else None
    rows: list[Row] = []
    short_rows = 0
    with open_text(path, newline="\n") as file:
        for line, text in guarded(path, enumerate(file, start=1)):
            values: list[Any] = text.rstrip("\n").removesuffix("\r").split("\t")
            if values == [""]:
                continue
            if columns is None:
                columns = _checked_header(path, values)
                continue
            while len(values) < len(columns) and columns[len(values)] in optional_tail:
                values.append("")
            if drop_short_rows and len(values) < len(columns):
                short_rows += 1
            else:
                rows.append((line, _checked_row(path, line, values, columns)))
    return _checked_table(path, columns, rows, short_rows)


def read_csv(path: Path) -> Table:
    """Read a comma-separated file as RFC 4180 has it: quoted fields may hold commas, line ends and doubled quotes."""
    columns: tuple[str, ...] | None = None
    rows: list[Row] = []
    csv.field_size_limit(_LONGEST_FIELD)  # csv's own limit would refuse a long document
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        for values in guarded(path, reader):
            if not values:
                continue
            if columns is None:
                columns = _checked_header(path, values)
            else:
                rows.append((reader.line_num, _checked_row(path, reader.line_num, values, columns)))
    return _checked_table(path, columns, rows)


def read_jsonl(path: Path) -> Table:
    """Read one JSON object a line; the first object's keys are the columns, and every object must have them."""
    columns: tuple[str, ...] | None = None
    rows: list[Row] = []
    with open_text(path, newline="\n") as file:
        for line, text in guarded(path, enumerate(file, start=1)):
            if not text.strip():
                continue
            try:
                item = json.loads(text, object_pairs_hook=_no_key_twice)
            except KeyError as error:
                raise DataError(f"{path}, line {line}: the key {error.args[0]!r} stands there twice") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {line}: not valid JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(item, dict) or not item:
                raise DataError(f"{path}, line {line}: expected a JSON object with keys, got {text.strip()[:60]!r}")
            columns = columns or tuple(item)
            if missing := [c for c in columns if c not in item]:
                raise DataError(f"{path}, line {line}: key {missing[0]!r} is missing, which the first object has")
            rows.append((line, [item[c] for c in columns]))
    return _checked_table(path, columns, rows)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for key, value in pairs:
        if key in item:
            raise KeyError(key)
        item[key] = value
    return item


def read_parquet(path: Path) -> Table:
    """Read a parquet file with pyarrow (comes with the `data` extra). Rows count from 1."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: reading parquet needs pyarrow; install subnetune[data]") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None
    columns = tuple(str(name) for name in table.column_names)
    values = [table.column(name).to_pylist() for name in columns]
    return _checked_table(path, columns, [(n, list(row)) for n, row in enumerate(zip(*values, strict=True), start=1)])


READERS = {".tsv": read_tsv, ".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}


def read_table(path: Path) -> Table:
    """Read a file by its ending: .tsv, .csv, .jsonl (each also with .gz) or .parquet."""
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in READERS:
        raise DataError(
            f"{path}: cannot tell the format from the ending; use one of {', '.join(READERS)}, "
            "or for tagged words, which have no columns to name, .conll, .iob2, .txt (also .gz)"
        )
    return READERS[ending](path)


def _number(value: Any) -> float:
    """Return a value as a number, nan for what is none (Python takes `1_000` and True for numbers; data does not)."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def open_text(path: Path, newline: str) -> IO[str]:
    """Open a plain or gzip file as UTF-8; a byte order mark is skipped. Line ends are left as `newline` asks."""
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file")
    if path.name.endswith(".gz"):
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=newline))
    return path.open(encoding="utf-8-sig", newline=newline)


def guarded(path: Path, items: Iterator[Any] | Any) -> Iterator[Any]:
    """Yield from a reader, turning what a damaged file raises into a DataError that names it."""
    try:
        yield from items
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert the file to UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {getattr(items, 'line_num', '?')}: not a valid CSV row ({error})") from None


def _checked_header(path: Path, values: list[str]) -> tuple[str, ...]:
    columns = tuple(value.strip() for value in values)
    if repeated := [c for c in columns if columns.count(c) > 1]:
        raise DataError(f"{path}: the header names {repeated[0]!r} twice")
    return columns


def _checked_row(path: Path, line: int, values: list[Any], columns: tuple[str, ...]) -> list[Any]:
    if len(values) != len(columns):
        raise DataError(f"{path}, line {line}: {len(values)} fields where the header has {len(columns)}")
    return values


def _checked_table(path: Path, columns: tuple[str, ...] | None, rows: list[Row], short_rows: int = 0) -> Table:
    if columns is None:
        raise DataError(f"{path}: the file is empty")
    if not rows:
        raise DataError(f"{path}: the file has a header but no examples")
    return Table(path, columns, rows, short_rows)
