"""How well predictions fit the labels of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.worker.batches import Batch


def accuracy(predicted: NDArray[Any], batch: Batch) -> dict[str, float]:
    """Return the share of class numbers, shape (n,), that are right."""
    return {"accuracy": float(np.mean(predicted == batch.labels))}


def regression(predicted: NDArray[Any], batch: Batch) -> dict[str, float]:
    """Return rmse, the root of the mean squared error, and r2 unless all labels are equal."""
    y = batch.y.astype(np.float64)
    squared = float(np.mean(np.square(predicted - y)))
    variance = float(np.var(y))
    scores = {"rmse": squared**0.5}
    if variance > 0:
        scores["r2"] = 1 - squared / variance
    return scores
