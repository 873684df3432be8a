"""Tells growth from noise in measurements over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Growth of memory that a line may show: noise of the allocator.
GROWTH_SHARE, GROWTH_MB = 0.02, 4.0


def slope(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the median slope of all pairs, which a few outliers do not move (Sen 1968)."""
    # Medians of up to 200 groups of neighbours keep the pairs few.
    groups = np.array_split(np.arange(x.size), min(200, x.size))
    x, y = (np.array([np.median(values[group]) for group in groups]) for values in (x, y))
    i, j = np.triu_indices(x.size, 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i]))) if i.size else 0.0


def allowed_mb(values: Sequence[float] | NDArray[Any]) -> float:
    """Return how much memory of this size may seem to grow, in MB."""
    return max(GROWTH_MB, GROWTH_SHARE * float(np.mean(values)))


def settled(samples: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the samples without the first quarter, in which everything is touched for the first time."""
    return list(samples[len(samples) // 4 :])


def thinned(samples: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """Return at most `most` samples: the medians of groups of neighbours."""
    groups = np.array_split(np.array(samples, float), min(most, len(samples)))
    return [[round(float(value), 3) for value in np.median(group, axis=0)] for group in groups]
