"""What the trainings of the suite learn, and from what."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from paramserver.worker.batches import Batch

ROWS = 96


def points() -> tuple[Any, Any]:
    """96 points in five dimensions, of three classes in no order."""
    chance = np.random.default_rng(7)
    y = chance.permutation(np.arange(ROWS) % 3)
    return chance.normal(size=(ROWS, 5)) + y[:, None], y


def numbers() -> tuple[Any, Any]:
    """The numbers of the rows."""
    return np.arange(ROWS, dtype=np.float64)[:, None], np.zeros(ROWS)


def ratings() -> tuple[Any, Any]:
    """What 12 users, keys 0 to 11, make of 9 films, keys 20 to 28: two ones in a row of csr."""
    chance = np.random.default_rng(8)
    pairs = np.column_stack([chance.integers(0, 12, ROWS), chance.integers(20, 29, ROWS)])
    return csr_array((np.ones(2 * ROWS), pairs.ravel(), np.arange(0, 2 * ROWS + 1, 2))), chance.normal(3, 1, ROWS)


class Wide:
    """A tensor of two chunks even on each of three servers, beside a small one."""

    def init(self, rng: np.random.Generator, batch: Batch) -> dict[str, Any]:  # noqa: ARG002
        return {"a": rng.standard_normal(1_600_000).astype(np.float32), "b": np.zeros((3, 5), np.float32)}

    def loss_and_grad(self, params: dict[str, Any], batch: Batch) -> tuple[float, dict[str, Any]]:
        mean = batch.x.mean(axis=0)
        return float(mean[0]), {"a": params["a"] * mean[1], "b": np.tile(mean, (3, 1)) - params["b"]}


class Tally:
    """Counts in θ how often every row was in a batch: integers in float64, whose sums are exact in any order."""

    def init(self, rng: np.random.Generator, batch: Batch) -> dict[str, Any]:  # noqa: ARG002
        return {"seen": np.zeros(ROWS), "all": np.zeros(1)}

    def loss_and_grad(self, params: dict[str, Any], batch: Batch) -> tuple[float, dict[str, Any]]:  # noqa: ARG002
        # The server multiplies a mean by the number of rows; a power of two loses nothing.
        seen = np.bincount(batch.x[:, 0].astype(int), minlength=ROWS) / batch.n
        return 1.0, {"seen": seen, "all": np.ones(1)}
