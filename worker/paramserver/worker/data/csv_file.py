"""Reads csv: numbers, separated by commas, semicolons or tabs, with or without a header line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features
from paramserver.worker.data.columns import hashed_columns, label_column, without_column
from paramserver.worker.data.lines import Lines
from paramserver.worker.data.sparse import HASHED_FEATURES, csr, hashed

BYTE_ORDER_MARK = "\ufeff"


class CsvSource:
    """A csv file of finite numbers as a source of float64.

    The first line is a header if none of its cells is a number, and a row if all are. If some are, it is a
    header when the label names one of its cells, and refused otherwise: a typing error must not hide a row.

    The columns that `hash` names may hold any text. x is then csr: first their hashes, each with the value 1, and then
    the other columns, under their numbers in the file. The first line is a header if `hash` or the label names a cell.

    Raises:
        DataError: with file and line, if a cell is no finite number or a row has another number of cells.
    """

    def __init__(self, path: Path, label: str, hash: Sequence[str] = ()) -> None:
        self._lines = Lines(path)
        self._delimiter = ","
        first = self._text(0).removeprefix(BYTE_ORDER_MARK)
        self._delimiter = max(",;\t", key=first.count)
        cells = self._cells(first)
        self._skipped = int(bool({*hash, label} & {*cells}) if hash else self._is_header(cells, label))
        self._columns = len(cells)
        header = cells if self._skipped else ()
        self._label = label_column(str(path), label, self._columns, header)
        #: Titles of the hashed columns, by number in the order of `hash`.
        self._hashed = hashed_columns(str(path), hash, self._columns, self._label, header)
        self._numeric = [column for column in range(self._columns) if column not in self._hashed]
        self.rows = len(self._lines) - self._skipped
        self.features = HASHED_FEATURES if hash else self._columns - 1
        if not self.rows:
            raise DataError(f"{path}: there is a header but no row")

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Parse these rows."""
        first, last = start + self._skipped, stop + self._skipped
        lines = self._lines.read(first, last)
        try:
            text = [line.decode() for line in lines]
            text[0] = text[0].removeprefix(BYTE_ORDER_MARK)
            columns = self._numeric if self._hashed else None
            table = np.loadtxt(text, delimiter=self._delimiter, comments=None, quotechar='"', ndmin=2, usecols=columns)
        except ValueError as error:
            raise self._explain(first, last, str(error)) from None
        if table.shape != (len(lines), len(self._numeric)) or not np.isfinite(table).all():
            raise self._explain(first, last, f"{table.shape[1]} cells in a row, {self._columns} are expected")
        if self._hashed:
            return self._with_hashes(first, last, text, table)
        return without_column(table, self._label), table[:, self._label]

    def _with_hashes(
        self, first: int, last: int, text: list[str], table: NDArray[Any]
    ) -> tuple[Features, NDArray[Any]]:
        rows = list(csv.reader(text, delimiter=self._delimiter))
        if any(len(row) != self._columns for row in rows) or len(rows) != len(text):
            raise self._explain(first, last, "a cell goes on in the next line")
        keys = [hashed(title, [row[column].strip() for row in rows]) for column, title in self._hashed.items()]
        label = self._numeric.index(self._label)
        numbers = [column for column in self._numeric if column != self._label]
        indices = np.column_stack([*keys, np.tile(np.array(numbers, np.int64), (len(rows), 1))])
        values = np.column_stack([np.ones((len(rows), len(keys))), np.delete(table, label, axis=1)])
        starts = np.arange(len(rows) + 1, dtype=np.int64) * indices.shape[1]
        return csr(values.ravel(), indices.ravel(), starts, HASHED_FEATURES), table[:, label]

    def _text(self, index: int) -> str:
        try:
            return self._lines.read(index, index + 1)[0].decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self._lines.place(index)}: not UTF-8 text: {error.reason}") from None

    def _cells(self, text: str) -> list[str]:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=self._delimiter))]

    def _is_header(self, cells: list[str], label: str) -> bool:
        words = [column for column, cell in enumerate(cells) if not _is_number(cell)]
        if 0 < len(words) < len(cells) and label not in cells:
            raise DataError(
                f"{self._lines.place(0)}: column {words[0]} is {cells[words[0]]!r} among numbers; "
                "a header of names only or a row of numbers only is expected"
            )
        return bool(words)

    def _explain(self, start: int, stop: int, reason: str) -> DataError:
        """Return the error that names the first wrong cell, found by parsing again, cell by cell."""
        for index in range(start, stop):
            cells = self._cells(self._text(index).removeprefix(BYTE_ORDER_MARK))
            if len(cells) != self._columns:
                return DataError(f"{self._lines.place(index)}: {len(cells)} cells, {self._columns} are expected")
            for column, cell in enumerate(cells):
                if column not in self._hashed and not _is_number(cell):
                    title = f"column {column}"
                    if self._skipped:
                        title += f" ({self._cells(self._text(0).removeprefix(BYTE_ORDER_MARK))[column]!r})"
                    return DataError(f"{self._lines.place(index)}: {title} is {cell!r}; a finite number is expected")
        return DataError(f"{self._lines.place(start)}: {reason}")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell)) and "_" not in cell
    except ValueError:
        return False
