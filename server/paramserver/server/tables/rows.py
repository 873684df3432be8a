"""The rows of one table on one partition: gives them out, updates them, forgets the old ones. Decides nothing else.

Nothing here depends on the order in which keys came: what is computed from a row depends on its key and its updates
alone, and wherever an order is needed it is that of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paramserver.server.optimizers import Optimizer, StepInfo
from paramserver.server.tables.column import Column
from paramserver.server.tables.index import KeyIndex
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, initial_rows

#: Rows are updated in blocks of about so many values, so that gradient, θ and state stay in cache.
BLOCK_VALUES = 1 << 15

#: Old rows are looked for this often in the time after which a row is old, and a full table is emptied by this share.
SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which rows are forgotten; 0 is no bound."""

    #: How many rows a table may have after an update.
    max_rows: int = 0
    #: After how many versions without an update a row may be forgotten.
    max_age: int = 0


@dataclass(frozen=True, slots=True)
class Contents:
    """A copy of a table: keys in any order, and for each its row, the version of its last update, its state."""

    table: Table
    keys: Keys
    rows: Array
    #: The optimizer's, by name, each of the shape of `rows`.
    state: Mapping[str, Array]
    #: int64; None where nothing is ever forgotten.
    touched: Array | None

    def in_order(self) -> tuple[Keys, Array]:
        """Return keys and rows sorted by key."""
        order = np.argsort(self.keys)
        return self.keys[order], self.rows[order]


class Rows:
    """Rows by key. Reading writes nothing: a row that has had no update is computed, and is kept from its first one.

    Args:
        name, table, seed, dtype: what the initial rows are made of.
        optimizer: updates rows elementwise.
        bounds: what is forgotten, and when.

    Source: lazy updates are those of torch.optim.SparseAdam: a row without a gradient is not touched.

    Warning: so its momentum does not decay and weight decay does not shrink it, and a row that comes back after long
    moves by an old velocity.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        seed: int,
        dtype: np.dtype[np.generic],
        optimizer: Optimizer,
        bounds: Bounds = Bounds(),
    ) -> None:
        self.name, self.table, self.dtype = name, table, dtype
        self._seed = seed
        self._optimizer = optimizer
        self._bounds = bounds
        self._index = KeyIndex()
        self.count = 0
        self._keys = Column(np.dtype(np.int64))
        self._rows = Column(dtype, (table.dim,))
        self._state_type = type(optimizer.init(0, dtype))
        self._state = [Column(dtype, (table.dim,)) for _ in self._state_type._fields]
        forgets = bounds.max_rows > 0 or bounds.max_age > 0
        #: The version of each row's last update, where it matters.
        self._touched = Column(np.dtype(np.int64)) if forgets else None
        self._block = max(1, BLOCK_VALUES // table.dim)
        self._scratch = np.empty((optimizer.scratch_rows, self._block * table.dim), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that rows, optimizer state and all that it takes to find them need."""
        columns = (self._rows, *self._state, self._keys, *([self._touched] if self._touched else []))
        return self._index.nbytes + sum(column.values[: self.count].nbytes for column in columns)

    def read(self, keys: Keys) -> Array:
        """Return the rows of these keys, shape (n, dim), as they are now."""
        places = self._index.find(self._keys.values, keys)
        rows = self._rows.take(places)
        absent = np.flatnonzero(places < 0)
        if absent.size:
            rows[absent] = self._initial(keys[absent])
        return rows

    def update(self, keys: Keys, gradient: Array, info: StepInfo) -> None:
        """Let the optimizer update the rows of these keys, each of which stands there once.

        `gradient`, shape (n, dim), is overwritten. `info.number` is the version that the update makes.
        """
        places = self._places(keys)
        dim = self.table.dim
        for start in range(0, keys.size, self._block):
            chosen = places[start : start + self._block]
            block = self._rows.take(chosen)
            state = [column.take(chosen) for column in self._state]
            theta, flat = block.reshape(-1), self._state_type(*(values.reshape(-1) for values in state))
            gradients = gradient[start : start + chosen.size].reshape(-1)
            self._optimizer.update(theta, gradients, flat, info, theta, flat, self._scratch[:, : chosen.size * dim])
            self._rows.put(chosen, block)
            for column, values in zip(self._state, state, strict=True):
                column.put(chosen, values)
        if self._touched is not None:
            self._touched.values[places] = info.number
            self._forget(info.number)

    def contents(self) -> Contents:
        """Return a copy of the whole table."""
        state = dict(zip(self._state_type._fields, self._state, strict=True))
        return Contents(
            self.table,
            self._keys.values[: self.count].copy(),
            self._rows.values[: self.count].copy(),
            {name: column.values[: self.count].copy() for name, column in state.items()},
            None if self._touched is None else self._touched.values[: self.count].copy(),
        )

    def restore(self, contents: Contents) -> None:
        """Fill the table, which must be empty, with a copy of what `contents` holds."""
        self._reserve(contents.keys.size)
        stop = self.count = contents.keys.size
        self._keys.values[:stop] = contents.keys
        self._rows.values[:stop] = contents.rows
        for name, column in zip(self._state_type._fields, self._state, strict=True):
            column.values[:stop] = contents.state[name]
        if self._touched is not None and contents.touched is not None:
            self._touched.values[:stop] = contents.touched
        self._index.add(self._keys.values, 0, stop)

    def _initial(self, keys: Keys) -> Array:
        return initial_rows(self._seed, self.name, self.table, keys, self.dtype)

    def _places(self, keys: Keys) -> Array:
        """Return the places of these keys, making rows for those that have none."""
        places = self._index.find(self._keys.values, keys)
        absent = np.flatnonzero(places < 0)
        if not absent.size:
            return places
        start, stop = self.count, self.count + absent.size
        new = keys[absent]
        self._reserve(stop)
        self._keys.values[start:stop] = new
        self._rows.values[start:stop] = self._initial(new)
        fresh = self._optimizer.init(absent.size * self.table.dim, self.dtype)
        for column, values in zip(self._state, fresh, strict=True):
            column.values[start:stop] = values.reshape(-1, self.table.dim)
        self._index.add(self._keys.values, start, stop)
        self.count = stop
        places[absent] = np.arange(start, stop)
        return places

    def _reserve(self, rows: int) -> None:
        for column in (self._keys, self._rows, *self._state, *([self._touched] if self._touched else [])):
            column.reserve(rows)

    def _forget(self, version: int) -> None:
        """Drop rows that are too old, and the oldest of a table that is too full; of equally old ones the lower keys.

        Both are done seldom and then for many, since dropping builds the index anew. When, follows from the version
        and the number of rows alone.
        """
        assert self._touched is not None
        max_rows, max_age = self._bounds.max_rows, self._bounds.max_age
        is_full = 0 < max_rows < self.count
        sweeps = max_age > 0 and version % -(-max_age // SWEEPS) == 0
        if not is_full and not sweeps:
            return
        touched = self._touched.values[: self.count]
        kept = np.flatnonzero(touched >= version - max_age) if sweeps else np.arange(self.count)
        if max_rows and kept.size > max_rows:
            youngest_last = np.lexsort((self._keys.values[kept], touched[kept]))
            kept = np.sort(kept[youngest_last[-(max_rows - max_rows // SWEEPS) :]])
        if kept.size == self.count:
            return
        for column in (self._keys, self._rows, *self._state, self._touched):
            column.keep(kept)
        self.count = int(kept.size)
        self._index.rebuild(self._keys.values, self.count)
