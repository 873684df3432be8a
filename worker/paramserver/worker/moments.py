"""Standardisation: the moments of a shard's features, and the transformation by the moments of all shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.wire.moments import Moments, combine
from paramserver.worker.batches import Features

#: Values per block, which bounds the float64 copies of a memory-mapped shard to 8 MiB each.
BLOCK_VALUES = 1 << 20


def moments(x: Features) -> Moments:
    """Return the moments of the rows of `x`, dense or csr, of any real dtype, computed in float64.

    Raises:
        DataError: if a feature holds NaN or infinity.
    """
    rows, features = x.shape
    block = max(1, BLOCK_VALUES // max(1, features))
    of_block = _dense if isinstance(x, np.ndarray) else _sparse
    with np.errstate(invalid="ignore", over="ignore"):
        total = combine([of_block(x[start : start + block]) for start in range(0, rows, block)])
    bad = np.flatnonzero(~np.isfinite(total.mean) | ~np.isfinite(total.m2))
    if bad.size:
        raise DataError(f"feature {bad[0]} holds NaN, infinity or too large a value: it has no mean and deviation")
    return total


def _dense(x: NDArray[Any]) -> Moments:
    # Taken relative to the first row, a constant feature has a deviation of exactly 0, whatever its value.
    shift = x[0].astype(np.float64)
    shifted = x - shift
    mean = shifted.mean(axis=0)
    shifted -= mean
    return Moments(len(x), shift + mean, np.square(shifted, out=shifted).sum(axis=0))


def _sparse(x: Features) -> Moments:
    rows, features = x.shape
    stored = np.bincount(x.indices, minlength=features)
    # As above, but only a feature that every row stores may be shifted: elsewhere the absent zeros count.
    shift = np.where(stored == rows, x[:1].toarray()[0], 0.0).astype(np.float64)
    shifted = np.bincount(x.indices, weights=x.data - shift[x.indices], minlength=features)
    mean = shift + shifted / rows
    m2 = np.bincount(x.indices, weights=np.square(x.data - mean[x.indices]), minlength=features)
    return Moments(rows, mean, m2 + (rows - stored) * np.square(mean))


@dataclass(frozen=True, slots=True, eq=False)
class Standardizer:
    """Turns every feature into (x − mean) / std; a feature that never varies keeps its scale.

    Sparse x is scaled but not centred, since centring would fill in every zero.
    """

    #: float64, shape (features,).
    mean: NDArray[np.float64]
    #: float64, shape (features,), never 0.
    std: NDArray[np.float64]

    @classmethod
    def from_moments(cls, total: Moments) -> Standardizer:
        """Return the transformation for data with these moments."""
        std = total.std
        return cls(total.mean, np.where(std == 0, 1.0, std))

    def apply(self, x: Features) -> Features:
        """Return `x`, shape (n, features), standardised in float64."""
        if isinstance(x, np.ndarray):
            shifted = x - self.mean
            return np.divide(shifted, self.std, out=shifted)
        return type(x)((x.data / self.std[x.indices], x.indices, x.indptr), shape=x.shape)
