"""Reads Parquet by row groups; pyarrow, which does it, is an optional part of the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features
from paramserver.worker.data.columns import label_column


class ParquetSource:
    """A Parquet file of numbers as a source of float64; only the row groups that hold the rows are read.

    Raises:
        DataError: if pyarrow is missing, the file malformed, or a column not of numbers or with empty cells.
    """

    def __init__(self, path: Path, label: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(
                f"{path}: Parquet needs pyarrow, which is missing: pip install 'paramserver[parquet]'"
            ) from None
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a Parquet file that can be read: {error}") from None
        self._path = path
        metadata, schema = self._file.metadata, self._file.schema_arrow
        for field in schema:
            kinds = pyarrow.types
            if not any(known(field.type) for known in (kinds.is_integer, kinds.is_floating, kinds.is_boolean)):
                raise DataError(f"{path}: column {field.name!r} is {field.type}; numbers are expected")
        self._label = label_column(str(path), label, len(schema.names), schema.names)
        self.rows, self.features = metadata.num_rows, len(schema.names) - 1
        if not self.rows:
            raise DataError(f"{path}: the file has no rows")
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        #: The first row of every row group, and the end of the last.
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Read the row groups that hold these rows."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        table = self._file.read_row_groups(range(first, last)).slice(start - int(self._starts[first]), stop - start)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if column.null_count:
                raise DataError(
                    f"{self._path}: {column.null_count} empty cells in {name!r}, rows {start} to {stop - 1}"
                )
        columns = [column.to_numpy().astype(np.float64) for column in table.columns]
        y = columns.pop(self._label)
        return np.column_stack(columns), y
