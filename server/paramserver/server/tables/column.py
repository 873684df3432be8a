"""An array that grows without a copy and takes memory only for what was written."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from paramserver.wire.layout import Array

#: From here on larger pages pay: fewer misses in the address cache when rows are read at random.
HUGE_BYTES = 4 << 20


class Column:
    """Values of one dtype for each row of a table, shape (rows, *shape), in anonymous memory of this process.

    The kernel moves the pages when the column grows, so nothing is ever held twice, and gives a page only when it is
    written, so room in advance costs nothing. `values` is a view that the next `reserve` replaces.
    """

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> None:
        self._dtype = dtype
        self._shape = shape
        self._row_bytes = dtype.itemsize * math.prod(shape)
        self._memory = mmap.mmap(-1, max(mmap.PAGESIZE, self._row_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.values: Array = np.empty(0, dtype)
        #: The same rows as opaque cells.
        self._cells = self.values
        self._look()

    def reserve(self, rows: int) -> None:
        """Make room for at least so many rows, and half as many again."""
        if rows <= len(self.values):
            return
        # A view that is still there would keep the memory from moving.
        self.values = self._cells = np.empty(0, self._dtype)
        pages = -(-rows * 3 // 2 * self._row_bytes // mmap.PAGESIZE)
        self._memory.resize(pages * mmap.PAGESIZE)
        if len(self._memory) >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._look()

    def take(self, places: Array) -> Array:
        """Return a copy of the rows at these places; of an arbitrary row where a place is negative."""
        return self.values.take(places, axis=0, mode="clip")

    def put(self, places: Array, rows: Array) -> None:
        """Write contiguous rows to these places."""
        # numpy copies a row as one opaque cell almost twice as fast as value by value.
        self._cells[places] = rows.reshape(rows.shape[0], -1).view(self._cells.dtype)[:, 0]

    def keep(self, places: Array) -> None:
        """Move the rows at these ascending places to the front, in their order, a block at a time."""
        block = max(1, HUGE_BYTES // self._row_bytes)
        for start in range(0, places.size, block):
            chosen = places[start : start + block]
            # Never ahead of what is still to be moved, since places rise.
            self.values[start : start + chosen.size] = self.values[chosen]

    def _look(self) -> None:
        rows = len(self._memory) // self._row_bytes
        flat = np.frombuffer(self._memory, self._dtype, rows * math.prod(self._shape))
        self.values = flat.reshape(rows, *self._shape)
        self._cells = flat.reshape(rows, -1).view(np.dtype((np.void, self._row_bytes)))[:, 0]
