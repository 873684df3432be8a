"""Reads svmlight (libsvm) text: `label index:value index:value …`, kept sparse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features
from paramserver.worker.data.lines import Lines
from paramserver.worker.data.sparse import csr

NUMBER = rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
ROW = re.compile(rb"\s*" + NUMBER + rb"(?:[ \t]+\d{1,18}:" + NUMBER + rb")*\s*")
#: What `ROW` begins with, to find where a wrong line goes wrong.
PREFIX = re.compile(rb"\s*(?:" + NUMBER + rb"(?:[ \t]+\d{1,18}:" + NUMBER + rb"(?=\s|$))*)?\s*")
#: Rows whose text is in memory at once while the file's indices are surveyed.
BLOCK_ROWS = 1 << 16


class SvmlightSource:
    """An svmlight file as a source of csr float64; `#` begins a comment.

    Within a row indices must ascend. They count from 1, or from 0 if any row of the file has an index 0. The
    number of features is the file's largest index, so one pass looks at the ends of every line; other files
    of the same data may have another number, see `sparse.with_features`.

    Raises:
        DataError: with file and line, if a row is malformed; if scipy is missing.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path, comment=b"#")
        self.rows = len(self._lines)
        first, last = self._extent()
        self._base = 0 if first == 0 else 1
        self.features = last + 1 - self._base
        if self.features < 1:
            raise DataError(f"{path}: no row has a feature; rows such as '1 3:0.5 7:1' are expected")

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Parse these rows."""
        rows = [line.partition(b"#")[0] for line in self._lines.read(start, stop)]
        for position, row in enumerate(rows):
            if not ROW.fullmatch(row):
                raise self._explain(start + position, row)
        pairs = np.array([row.count(b":") for row in rows], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(pairs)])
        # Every row is a label and pairs, so that in the flat list of all numbers the places are known.
        words = b" ".join(rows).replace(b":", b" ").split()
        numbers = np.fromiter(map(float, words), np.float64, len(words))
        label_places = 2 * starts[:-1] + np.arange(len(rows))
        y = numbers[label_places]
        flat = np.delete(numbers, label_places)
        indices = flat[0::2].astype(np.int64) - self._base
        self._check(start, starts, indices, flat[1::2], y)
        return csr(flat[1::2], indices, starts, self.features), y

    def _extent(self) -> tuple[int, int]:
        """Return the smallest first and the largest last index of all rows."""
        smallest, largest = 1, 0
        for block in range(0, self.rows, BLOCK_ROWS):
            for line in self._lines.read(block, min(self.rows, block + BLOCK_ROWS)):
                ends = line.partition(b"#")[0].replace(b"\t", b" ")
                first = ends.partition(b":")[0].rpartition(b" ")[2]
                last = ends.rpartition(b":")[0].rpartition(b" ")[2]
                # What is no index is refused, with its line, by the worker that reads the row.
                if first.isdigit() and last.isdigit():
                    smallest, largest = min(smallest, int(first)), max(largest, int(last))
        return smallest, largest

    def _check(
        self, start: int, starts: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], y: NDArray[Any]
    ) -> None:
        """Refuse indices that do not ascend, and numbers too large for float64."""
        falls = np.flatnonzero(np.diff(indices) <= 0) + 1
        falls = falls[~np.isin(falls, starts)]
        if falls.size:
            row = int(np.searchsorted(starts, falls[0], side="right")) - 1
            before, after = indices[falls[0] - 1 : falls[0] + 1] + self._base
            raise DataError(f"{self._lines.place(start + row)}: index {after} follows {before}; they must ascend")
        for array, places in ((y, np.arange(len(y) + 1)), (values, starts)):
            infinite = np.flatnonzero(~np.isfinite(array))
            if infinite.size:
                row = int(np.searchsorted(places, infinite[0], side="right")) - 1
                raise DataError(f"{self._lines.place(start + row)}: a number is too large for float64")

    def _explain(self, index: int, row: bytes) -> DataError:
        prefix = PREFIX.match(row)
        rest = row[prefix.end() if prefix else 0 :].decode(errors="replace").split()
        expected = "INDEX:VALUE" if prefix and prefix.group().strip() else "a label and then INDEX:VALUE"
        return DataError(f"{self._lines.place(index)}: {(rest or [''])[0]!r} found; {expected} is expected")
