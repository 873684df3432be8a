"""Rows that do not lie side by side, and labels without their rows, of sources that are read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.worker.batches import Features
from paramserver.worker.data.idx_file import IdxSource
from paramserver.worker.data.source import ArraySource, Source
from paramserver.worker.data.sparse import stack_rows

#: Rows in memory at once that may turn out not to be wanted.
BLOCK_ROWS = 1 << 14


def all_labels(source: Source) -> NDArray[Any]:
    """Return the labels of all rows, shape (rows,); what keeps them apart from the features reads nothing else."""
    if isinstance(source, ArraySource | IdxSource):
        return source.labels(0, source.rows)
    return np.concatenate([source.read(start, stop)[1] for start, stop in _blocks(source.rows)])


def pick(source: Source, rows: NDArray[np.int64]) -> tuple[Features, NDArray[Any]]:
    """Return x and y of ascending rows; of other sources than arrays all is read but only these are kept."""
    if isinstance(source, ArraySource):
        return source.pick(rows)
    parts = []
    for start, stop in _blocks(source.rows):
        wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if wanted.size:
            x, y = source.read(start, stop)
            parts.append((x[wanted], y[wanted]))
    return stack_rows([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, BLOCK_ROWS):
        yield start, min(start + BLOCK_ROWS, rows)
