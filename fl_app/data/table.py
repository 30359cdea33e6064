"""Tables: rows of numbers and words, and what a model is given of them."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_app.data.embedded import found
from fl_app.data.foreign import printable
from strategies.errors import ConfigError, DataError
from strategies.paths import read_text

CLASSES, NUMBERS = "classes", "numbers"  # what a target can be
EMBEDDED = ("breast-cancer", "diabetes")
_DELIMITERS = ",;\t"
_EMPTY = {"", "?", "na", "n/a", "nan", "null", "none"}  # cells in which nothing is, in lower case
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_MOST_BYTES = 1 << 26  # of a file: its cells take ten times as much in memory
_MOST_WORDS = 100  # different ones in a column
_MOST_CLASSES = 20  # of whole numbers: more are amounts


@dataclass(frozen=True)
class Table:
    """Named columns of cells as they are written. where: for messages."""

    where: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """The cells of a column. DataError if there is none of that name."""
        if name not in self.names:
            raise DataError(
                f"{self.where} has no column {name!r}; it has {', '.join(self.names[:20])}"
            )
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Table":
        """The rows with these numbers."""
        return Table(self.where, self.names, tuple(self.rows[k] for k in chosen))


def embedded(name: str) -> Table:
    """One of EMBEDDED."""
    lines = found(f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    names, *rows = (tuple(map(str, json.loads(line))) for line in lines)
    return Table(name, names, tuple(rows))


def read_csv(path: str | Path) -> Table:
    """A CSV file: the names of the columns in its first line, then a row in each; with commas,
    semicolons or tabs between cells. Numbers may have a decimal comma where no commas are between
    cells. Raises DataError."""
    where = printable(path)
    try:
        text = read_text(path, _MOST_BYTES)
    except ConfigError as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    try:
        read = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{where} is no CSV file: {error}") from error
    lines = [(k, [cell.strip() for cell in row]) for k, row in enumerate(read, 1) if any(row)]
    if len(lines) < 2:
        raise DataError(f"{where} has no rows; give the columns' names, and then a row a line")
    names = lines[0][1]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{where}: the first line must have a name for each column, two at least, and no name "
            f"twice; it has {', '.join(map(printable, names[:20]))}"
        )
    for number, row in lines[1:]:
        if len(row) != len(names):
            raise DataError(
                f"{where}: row {number} has {len(row)} cells, and there are {len(names)} columns"
            )
    rows = [tuple(row) for _, row in lines[1:]]
    if delimiter != ",":
        rows = list(zip(*map(_with_points, zip(*rows, strict=True)), strict=True))
    return Table(where, tuple(names), tuple(rows))


def _with_points(cells: Sequence[str]) -> list[str]:
    """A column whose numbers have a decimal comma with a point there; others as they are. Where a
    cell has a point the comma could part thousands."""
    changed = [c.replace(",", ".") if _DECIMAL_COMMA.fullmatch(c) else c for c in cells]
    numbers = all(_is_empty(cell) or _number(cell) is not None for cell in changed)
    return changed if numbers and not any("." in cell for cell in cells) else list(cells)


@dataclass(frozen=True)
class Column:
    """How the cells of a column become numbers: less `mean`, over `spread`; or, where it has words,
    a 1 in the place of the cell's word. What is empty, or a word that is not known, is zeros."""

    name: str
    mean: float = 0.0
    spread: float = 1.0
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Table, name: str) -> "Column":
        """As the rows of `table` say. Raises DataError for words without end."""
        cells = [cell for cell in table.column(name) if not _is_empty(cell)]
        numbers = [_number(cell) for cell in cells]
        if None not in numbers:
            values = np.array(numbers or [0.0], dtype=np.float64)
            mean, spread = float(values.mean()), float(values.std())
            # Of equal numbers, what rounding leaves of their spread is no spread.
            return cls(name, mean, spread if spread > 1e-9 * abs(mean) else 1.0)
        words = sorted(set(cells))
        if len(words) > _MOST_WORDS:
            raise DataError(
                f"{table.where}: column {name!r} has {len(words)} different words, such as "
                f"{printable(words[0])!r}, and {_MOST_WORDS} are the most; leave it out"
            )
        return cls(name, words=tuple(words))

    def numbers(self, table: Table) -> np.ndarray:
        """(rows, width) float32. Raises DataError for a word among numbers."""
        cells = table.column(self.name)
        if self.words:
            place = {word: k for k, word in enumerate(self.words)}
            chosen = np.zeros((len(cells), len(self.words)), np.float32)
            for row, cell in enumerate(cells):
                if cell in place:
                    chosen[row, place[cell]] = 1
            return chosen
        values = []
        for cell in cells:
            value = self.mean if _is_empty(cell) else _number(cell)
            if value is None:
                raise DataError(
                    f"{table.where}: {printable(cell)!r} in column {self.name!r} is no number"
                )
            values.append((value - self.mean) / self.spread)
        return np.array(values, np.float32)[:, None]


@dataclass(frozen=True)
class Encoding:
    """What a model is given of a table's rows, and what it is to say of each.

    target: the column that is predicted, as a number like the other columns, or as one of
    `classes`.
    """

    columns: tuple[Column, ...]
    target: Column
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, training: Table, test: Table, *, target: str = "", kind: str = "auto"
    ) -> "Encoding":
        """Means, spreads and words are those of the training rows; classes of both.

        target: a column's name, "" for the last. kind: CLASSES, NUMBERS, or "auto": classes where
        there are words, or few whole numbers. Raises DataError for what cannot be predicted.
        """
        table, target = training, target or training.names[-1]
        cells = training.column(target) + test.column(target)
        _check_filled(table.where, target, cells)
        if kind == "auto":
            kind = CLASSES if _look_like_classes(cells) else NUMBERS
        if kind == NUMBERS and None in [_number(cell) for cell in cells]:
            raise DataError(f"{table.where}: column {target!r} has words, and is no number")
        classes = tuple(sorted(set(cells), key=_by_number)) if kind == CLASSES else ()
        if kind == CLASSES and not 2 <= len(classes) <= _MOST_WORDS:
            raise DataError(
                f"{table.where}: column {target!r} has {len(classes)} classes, and there must be "
                f"2 to {_MOST_WORDS}"
            )
        columns = tuple(Column.of(table, name) for name in table.names if name != target)
        return cls(columns, Column(target) if classes else Column.of(table, target), classes)

    @property
    def taken(self) -> tuple[str, str]:
        """What the columns and the target were taken for, a sentence each."""
        words = [f"{column.name} ({len(column.words)})" for column in self.columns if column.words]
        classes = ", ".join(self.classes[:20])
        return (
            f"columns of words, and how many: {', '.join(words) or 'none, all are numbers'}",
            f"target: {self.target.name}, "
            + (f"{len(self.classes)} classes: {classes}" if classes else "a number"),
        )

    def inputs(self, table: Table) -> np.ndarray:
        """(rows, width) float32. Raises DataError."""
        return np.concatenate([column.numbers(table) for column in self.columns], 1)

    def targets(self, table: Table) -> np.ndarray:
        """Numbers of classes (rows,) int64, or standardised numbers (rows, 1) float32. DataError
        for a class that is not known, and for an empty cell."""
        cells = table.column(self.target.name)
        _check_filled(table.where, self.target.name, cells)
        if not self.classes:
            return self.target.numbers(table)
        place = {name: k for k, name in enumerate(self.classes)}
        if unknown := sorted(set(cells) - place.keys()):
            raise DataError(
                f"{table.where}: {printable(unknown[0])!r} in column {self.target.name!r} is none "
                f"of the classes {', '.join(self.classes[:20])}"
            )
        return np.array([place[cell] for cell in cells], np.int64)


def _check_filled(where: str, target: str, cells: Sequence[str]) -> None:
    if empty := sum(map(_is_empty, cells)):
        raise DataError(
            f"{where}: column {target!r} is to be predicted, and is empty in {empty} row(s); leave "
            f"them out, or name another with table-target"
        )


def _is_empty(cell: str) -> bool:
    return cell.casefold() in _EMPTY


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _by_number(word: str) -> tuple[float, str]:
    """2 before 10."""
    value = _number(word)
    return (math.inf if value is None else value, word)


def _look_like_classes(cells: Sequence[str]) -> bool:
    different = set(cells)
    numbers = [_number(cell) for cell in different]
    if any(number is None for number in numbers):
        return True
    return len(different) <= _MOST_CLASSES and all(float(n or 0).is_integer() for n in numbers)
