"""Count, mean and squared deviations of every feature, and how those of several shards become those of all.

This module imports neither data sources nor the network: workers compute moments, the server combines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The moments of `count` rows: per feature the mean and the sum of squared deviations from it."""

    #: Rows that were seen, at least 1.
    count: int
    #: float64, shape (features,).
    mean: NDArray[np.float64]
    #: float64, shape (features,), never negative.
    m2: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Return the standard deviation (divided by the count) of every feature."""
        return np.sqrt(self.m2 / self.count)

    def to_flat(self) -> NDArray[np.float64]:
        """Return the means followed by the squared deviations: float64, shape (2 · features,)."""
        return np.concatenate([self.mean, self.m2])

    @classmethod
    def from_flat(cls, count: int, flat: NDArray[Any]) -> Moments:
        """Read what `to_flat` wrote.

        Raises:
            DataError: if the array is not one that `to_flat` can have written.
        """
        values = np.asarray(flat)
        if count < 1 or values.ndim != 1 or values.size % 2 or values.dtype != np.float64:
            raise DataError(
                f"moments: found count {count} and {values.dtype} values of shape {values.shape}; "
                "a count of 1 or more and an even number of float64 values are expected"
            )
        mean, m2 = np.split(values, 2)
        if not np.isfinite(values).all() or (m2 < 0).any():
            raise DataError("moments: finite means and squared deviations of 0 or more are expected")
        return cls(count, mean, m2)


def combine(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all rows from those of disjoint parts.

    The parts are folded from first to last, so give them in shard order: the bits depend on it.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), equation 2.1.

    Raises:
        DataError: if there are no parts, or their numbers of features differ.
    """
    if not parts:
        raise DataError("moments: at least one part is expected, found none")
    total = parts[0]
    for part in parts[1:]:
        if part.mean.shape != total.mean.shape:
            raise DataError(
                f"moments: one part has {part.mean.size} features, the parts before it have {total.mean.size}"
            )
        count = total.count + part.count
        delta = part.mean - total.mean
        mean = total.mean + delta * (part.count / count)
        m2 = total.m2 + part.m2 + delta * delta * (total.count * (part.count / count))
        total = Moments(count, mean, m2)
    return total
