"""Tables: CSV (with commas, semicolons, tabs or bars) and Parquet.

Every column but the label must hold numbers (or true and false). What counts as missing: nothing, NA, N/A, NaN, null,
none, ?. The decimal comma is understood where commas do not separate columns. Columns without a name, in a file whose
other columns have one, are row numbers that some program added, and are left out.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.reading import by_part, numbered, one_file, put_together, reading, tell
from tacit.errors import DataError
from tacit.spaces import Vectors

_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
_SEPARATORS = "\t;|,"  # a semicolon separates where commas are decimal, so it is tried first
_LINES = 20_000
_PARQUET_SUFFIXES = (".parquet", ".pq")


def read_tables(
    root: Path,
    files: Sequence[Path],
    *,
    label: str | None = None,
    drop_missing: bool = False,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """One table, or one each for train, valid and test.

    Args:
        label: name of the column that is the label; `column 3` in a file without a header.
        drop_missing: leave out the rows that lack a value; otherwise they are an error.
    """
    tables: dict[str, Table] = {}
    for part, of_part in by_part(files).items():
        path = one_file(root.name, of_part, "tables")
        with reading(path.name, "a table"):
            tables[part] = _Parquet(path) if path.suffix.lower() in _PARQUET_SUFFIXES else _CSV(path)
    return from_tables(root.name, tables, label=label, drop_missing=drop_missing, memory=memory)


class Table(Protocol):
    """Something that gives blocks of rows, (rows, all columns) float64, NaN where a value is missing."""

    name: str
    names: list[str]

    def key(self) -> object:
        """What tells a cache that the contents are the same."""

    def most_rows(self) -> int:
        """At least as many rows as there are."""

    def blocks(self, columns: Columns) -> Iterator[np.ndarray]: ...


def from_tables(
    name: str, tables: Mapping[str, Table], *, label: str | None, drop_missing: bool, memory: float
) -> Dataset:
    """A data set of tables, by part.

    Raises:
        DataError: a column holds text, lacks values or holds infinite ones, or the tables' columns differ.
    """
    x: dict[str, Tensor] = {}
    values: dict[str, np.ndarray | None] = {}
    features: tuple[str, ...] = ()
    mapped = False
    for part, table in tables.items():
        columns = Columns(table.name, table.names, label)
        if features and columns.features != features:
            raise DataError(f"{table.name} has other columns than the other tables of {name}: give all the same")
        features = columns.features
        about: dict[str, Any] = {}
        with reading(table.name, "a table"):
            held, on_disk = storage.store(
                columns.clean(table.blocks(columns), drop_missing, about),
                table.most_rows(),
                (len(features) + (label is not None),),
                np.float32,
                key=(table.key(), label, drop_missing),
                memory=memory,
                about=about,
            )
        if not len(held):
            raise DataError(f"{table.name} holds no row that has a value in every column: give a table that has some")
        values[part] = None
        if label is not None:
            values[part] = np.array(about["classes"])[held[:, -1].long().numpy()]
            held = held[:, :-1] if on_disk else held[:, :-1].contiguous()
        x[part] = held
        mapped |= on_disk
    labels, class_names = numbered(values, f"column {label!r} of {name}")
    return put_together(
        name, Vectors(len(features)), x, labels, class_names=class_names, columns=features, mapped=mapped
    )


class Columns:
    """Which columns of a table are features and which is the label, and what is wrong with their values."""

    def __init__(self, table: str, names: Sequence[str], label: str | None):
        self.table = table
        self.names = tuple(names)
        if label is not None and label not in self.names:
            raise DataError(f"{table} has no column {label!r}: it has {', '.join(map(repr, self.names))}")
        self.label = None if label is None else self.names.index(label)
        self.kept = [i for i, name in enumerate(self.names) if name and i != self.label]
        self.features = tuple(self.names[i] for i in self.kept)
        if not self.kept:
            raise DataError(f"{table} has no column of numbers beside its label: give a table that has some")
        # A label's number is its place in the order of first appearance, until all are known.
        self.classes: dict[str, int] = {}

    def code(self, cell: object) -> int:
        """The number of a label."""
        text = "" if cell is None else str(cell).strip()
        return self.classes.setdefault("" if text.lower() in _MISSING else text, len(self.classes))

    def refuse_text(self, examples: dict[str, str]) -> None:
        """Raise the error that names columns of text, each with one of its values."""
        shown = ", ".join(f"{name!r} (for example {value[:30]!r})" for name, value in list(examples.items())[:5])
        first = next(iter(examples))
        remedy = "leave them out" if len(examples) > 1 else "leave it out"
        if self.label is None:
            remedy += f", or, where one is the label, name it with label={first!r} (--label {first!r})"
        raise DataError(f"{self.table} holds text in column{'s' * (len(examples) > 1)} {shown}: {remedy}")

    def clean(self, blocks: Iterator[np.ndarray], drop_missing: bool, about: dict[str, Any]) -> Iterator[np.ndarray]:
        """Blocks (rows, all columns), NaN where a value is missing -> (rows, features and label) without such rows."""
        missing = np.zeros(len(self.kept), dtype=np.int64)
        dropped = 0
        for block in blocks:
            x = block[:, self.kept]
            with np.errstate(over="ignore"):
                infinite = np.isinf(x.astype(np.float32))
            if infinite.any():
                row, column = np.argwhere(infinite)[0]
                raise DataError(
                    f"{self.table} holds {x[row, column]:g} in column {self.features[column]!r}, which is not finite "
                    f"or too large for float32: replace it or leave the row out"
                )
            lacking = np.isnan(x)
            missing += lacking.sum(0)
            whole = ~lacking.any(1)
            dropped += len(x) - int(whole.sum())
            if drop_missing:
                x, block = x[whole], block[whole]
            yield x if self.label is None else np.concatenate([x, block[:, [self.label]]], 1)
        if dropped and not drop_missing:
            shown = [f"{name!r} ({count})" for name, count in zip(self.features, missing, strict=True) if count]
            more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            raise DataError(
                f"{self.table} lacks values in column{'s' * (len(shown) > 1)} {', '.join(shown[:8])}{more}: fill them, "
                f"or leave those {dropped} rows out with drop_missing=True (--drop-missing)"
            )
        if dropped:
            tell(f"{dropped} rows of {self.table} lack a value and were left out")
        about["classes"] = list(self.classes)


class _CSV:
    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in itertools.islice(file, 20) if line.strip()]
        if not lines:
            raise DataError(f"{path.name} is empty: give a table that has rows")
        self.separator = _separator(lines)
        rows = list(csv.reader(lines, delimiter=self.separator))
        self.header = (len(rows) == 1 and not any(map(_is_number, rows[0]))) or (
            len(rows) > 1 and _is_header(*rows[:2])
        )
        if self.header:
            self.names = [name.strip() for name in rows[0]]
        else:
            self.names = [f"column {i + 1}" for i in range(len(rows[0]))]

    def key(self) -> object:
        return storage.stamp([self.path])

    def most_rows(self) -> int:
        with self.path.open("rb") as file:
            return 1 + sum(block.count(b"\n") + block.count(b"\r") for block in iter(lambda: file.read(2**24), b""))

    def blocks(self, columns: Columns) -> Iterator[np.ndarray]:
        # numpy's parser is three times as fast as Python's csv but knows neither missing values nor text: a block in
        # which it finds some is read again, slowly.
        converters: Any = {} if columns.label is None else {columns.label: columns.code}
        with self.path.open(encoding="utf-8-sig") as file:
            number = 0
            while lines := _whole_rows(file):
                start, number = number, number + len(lines)
                if self.header and start == 0:
                    lines = _without_first(lines)
                if not any(map(str.strip, lines)):
                    continue
                try:
                    block = np.loadtxt(
                        lines, delimiter=self.separator, comments=None, quotechar='"', converters=converters, ndmin=2
                    )
                    fine = block.shape[1] == len(self.names)
                except ValueError:
                    fine = False
                yield block if fine else self._slowly(lines, number - len(lines), columns)

    def _slowly(self, lines: list[str], start: int, columns: Columns) -> np.ndarray:
        rows = []
        reader = csv.reader(lines, delimiter=self.separator, strict=True)
        for row in reader:
            if len(row) == len(self.names):
                rows.append(row)
            elif row:
                raise DataError(
                    f"{self.name} has {len(row)} columns in line {start + reader.line_num} and {len(self.names)} in "
                    f"its first: give every row the same columns, separated by {self.separator!r}"
                )
        block = np.full((len(rows), len(self.names)), np.nan)
        text: dict[str, str] = {}
        for i, cells in enumerate(zip(*rows, strict=True)):
            if i == columns.label:
                block[:, i] = [columns.code(cell) for cell in cells]
            elif i in columns.kept:
                numbers = [_number(cell, decimal_comma=self.separator != ",") for cell in cells]
                if None in numbers:
                    text[self.names[i]] = cells[numbers.index(None)]
                else:
                    block[:, i] = numbers
        if text:
            columns.refuse_text(text)
        return block


def _separator(lines: list[str]) -> str:
    """The character that cuts all lines into equally many cells, or else the one the first line has most of."""
    for separator in _SEPARATORS:
        widths = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(widths) == 1 and widths != {1}:
            return separator
    return max(reversed(_SEPARATORS), key=lines[0].count)


def _is_header(first: list[str], second: list[str]) -> bool:
    """Whether a first row names the columns: it has text where the second has a number, or text alone."""
    text = [cell.strip().lower() not in _MISSING and not _is_number(cell) for cell in first]
    named = all(found or not cell.strip() for found, cell in zip(text, first, strict=True))
    return any(found and _is_number(cell) for found, cell in zip(text, second, strict=False)) or named


def _is_number(cell: str) -> bool:
    number = _number(cell, decimal_comma=True)
    return number is not None and not math.isnan(number)


def _number(cell: str, *, decimal_comma: bool) -> float | None:
    """A cell's number, NaN where it is missing, None where it is text."""
    text = cell.strip().lower()
    if text in _MISSING:
        return math.nan
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return None


def _whole_rows(file: Iterator[str]) -> list[str]:
    """Some lines, and those that a quoted cell goes on for."""
    lines = list(itertools.islice(file, _LINES))
    if any('"' in line for line in lines):
        while sum(line.count('"') for line in lines) % 2 and (line := next(file, "")):
            lines.append(line)
    return lines


def _without_first(lines: list[str]) -> list[str]:
    """The lines after the header, which is the first that is not blank."""
    return lines[next(i for i, line in enumerate(lines) if line.strip()) + 1 :]


class _Parquet:
    def __init__(self, path: Path):
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise DataError(f"{path.name} needs pyarrow to be read: pip install 'tacit[parquet]'") from error
        self.path = path
        self.name = path.name
        self.file = parquet.ParquetFile(path)
        self.names = ["" if name.startswith("__index_level_") else name for name in self.file.schema_arrow.names]

    def key(self) -> object:
        return storage.stamp([self.path])

    def most_rows(self) -> int:
        return self.file.metadata.num_rows

    def blocks(self, columns: Columns) -> Iterator[np.ndarray]:
        for batch in self.file.iter_batches(_LINES):
            yield from_arrow(batch, columns)


def from_arrow(batch: Any, columns: Columns) -> np.ndarray:
    """A block of rows from pyarrow's columns."""
    import pyarrow as pa

    block = np.full((batch.num_rows, len(columns.names)), np.nan)
    text: dict[str, str] = {}
    for i, column in enumerate(batch.columns):
        kind = column.type
        if i == columns.label:
            block[:, i] = [columns.code(cell) for cell in column.to_pylist()]
        elif i not in columns.kept:
            continue
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            block[:, i] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        elif pa.types.is_boolean(kind) or pa.types.is_null(kind):
            block[:, i] = [math.nan if cell is None else cell for cell in column.to_pylist()]
        else:
            text[columns.names[i]] = next((str(cell) for cell in column.to_pylist() if cell is not None), str(kind))
    if text:
        columns.refuse_text(text)
    return block
