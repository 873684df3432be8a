"""Which rows make the batch of (shard, step): a pure function of the seed, with no state that could be lost.

Row order comes from the raw words of the counter-based generator Philox4x64-10, whose stream numpy promises
never to change; it makes no such promise for `Generator.permutation`. So machines with different numpy
versions, and workers in other languages, draw the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError

#: A dense 2-D ndarray or a `scipy.sparse.csr_array`; scipy is optional, so the type cannot be spelled out.
Features: TypeAlias = Any


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The examples of one step."""

    #: Shape (n, features), dense or csr, floats of the job's dtype.
    x: Features
    #: Shape (n,), floats of the job's dtype, also where the labels are whole numbers.
    y: NDArray[Any]
    #: Number of classes over all shards, or 0 where the labels are no class numbers.
    classes: int = 0

    @property
    def n(self) -> int:
        """Return the number of examples."""
        return int(self.y.shape[0])

    @property
    def nbytes(self) -> int:
        """Return the bytes of the features; of csr those of the values."""
        return int((self.x if isinstance(self.x, np.ndarray) else self.x.data).nbytes)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return `y` as class numbers 0 … classes − 1: int64, shape (n,); of −1/+1 labels, −1 is class 0."""
        return np.asarray(np.maximum(self.y, 0), dtype=np.int64)


def shard_range(rows: int, shards: int, shard: int, weights: Sequence[float] = ()) -> tuple[int, int]:
    """Return (start, stop) of the rows that belong to a shard.

    Sizes differ by at most one, or are proportional to `weights`, rounded so that they add up.

    Raises:
        DataError: if a shard would be empty.
    """
    if not 0 <= shard < shards:
        raise DataError(f"shard {shard} does not exist: the job has shards 0 to {shards - 1}")
    if shards > rows:
        raise DataError(f"{shards} shards are more than the {rows} rows of data: every shard needs a row")
    if not weights:
        return shard * rows // shards, (shard + 1) * rows // shards
    # Exact, so that the rounding of one machine is that of another.
    shares = [Fraction(weight) for weight in weights]
    total, before = sum(shares), sum(shares[:shard])
    start, stop = int(rows * before / total), int(rows * (before + shares[shard]) / total)
    if start == stop:
        raise DataError(
            f"shard {shard} with weight {weights[shard]:g} of {float(total):g} gets none of the {rows} rows of data:"
            " every shard needs a row"
        )
    return start, stop


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many batches cover the rows of a shard once; a batch size of 0 is the whole shard."""
    return -(-rows // batch_size) if batch_size else 1


def epoch_order(seed: int, shard: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the rows of a shard: a permutation, shape (rows,).

    It is the stable argsort of the first `rows` words of Philox4x64-10 with the 128-bit key
    (seed · 2³² + shard, epoch), lower word first. Source: Salmon et al., "Parallel random numbers: as easy
    as 1, 2, 3" (SC 2011).

    Warning: rows never change their shard, so that batches of rows that stand together in the data stay alike.
    """
    key = np.array([(seed << 32) | shard, epoch], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(rows)
    return np.argsort(words, kind="stable")


class BatchOrder:
    """The rows of every batch of one shard, each a pure function of the arguments and the step."""

    def __init__(self, seed: int, shard: int, rows: int, batch_size: int) -> None:
        self._seed = seed
        self._shard = shard
        self._rows = rows
        self._batch_size = batch_size
        self._per_epoch = steps_per_epoch(rows, batch_size)
        #: A cache of the epoch visited last, so that a step costs only its batch.
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @property
    def is_whole(self) -> bool:
        """Is every batch the whole shard?"""
        return self._per_epoch == 1

    def rows_of(self, step: int) -> slice | NDArray[np.int64]:
        """Return the rows of a batch, counted from the start of the shard, in ascending order.

        A batch that covers the whole shard is a slice. The last batch of an epoch may be smaller.
        """
        if self.is_whole:
            return slice(0, self._rows)
        epoch, position = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._order = epoch_order(self._seed, self._shard, epoch, self._rows)
            self._epoch = epoch
        start = position * self._batch_size
        rows = self._order[start : start + self._batch_size].copy()
        # Ascending, so that a memory-mapped file is read forwards.
        rows.sort()
        return rows
