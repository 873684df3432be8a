"""A task that computes nothing, so that only the moving, adding up and applying of its gradient takes time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.worker.batches import Batch

#: Of every element of the gradient; exact in float32.
VALUE = 2.0**-10

Params = dict[str, NDArray[Any]]


class Constant:
    """One tensor of `size` elements whose gradient is the same everywhere."""

    def __init__(self, size: int) -> None:
        self._size = size

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:
        """Return random parameters: zeros would be cheaper to move than they should be."""
        return {"theta": rng.random(self._size, dtype=np.float32).astype(batch.y.dtype, copy=False)}

    def loss_and_grad(self, _params: Params, _batch: Batch, out: Params) -> tuple[float, Params]:
        """Return the gradient where it travels from; it is written there once and stays."""
        gradient = out["theta"]
        if gradient[-1] != VALUE:
            gradient[:] = VALUE
        return 1.0, out


def rows() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return data of which every shard has one row for each of up to 64 workers."""
    return np.zeros((64, 1)), np.zeros(64)
