"""Tasks with tables, and data for them, that trainings in tests name."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from paramserver.worker import Table
from paramserver.worker.batches import Batch


def words() -> tuple[Any, Any]:
    """300 short texts of 80 words, some of them common; a few words make the class. One text is empty."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 81)
    dense = (rng.random((300, 80)) < 3 * share / share.sum()) * rng.uniform(0.5, 1.5, (300, 80))
    dense[7] = 0
    x = csr_array(dense)
    score = x[:, [0, 3, 5]].sum(axis=1) - x[:, [1, 2, 10]].sum(axis=1)
    return x, (score + rng.normal(0, 0.3, 300) > 0).astype(float)


class LogisticRows:
    """Logistic regression with a row for each word, named once for every place where it stands."""

    def tables(self) -> dict[str, Table]:
        return {"w": Table(1)}

    def keys(self, batch: Batch) -> dict[str, Any]:
        return {"w": batch.x.indices}

    def init(self, rng: np.random.Generator, batch: Batch) -> dict[str, Any]:  # noqa: ARG002
        return {"b": np.zeros(1)}

    def loss_and_grad(self, params: dict[str, Any], batch: Batch) -> tuple[float, dict[str, Any]]:
        rows = np.repeat(np.arange(batch.n), np.diff(batch.x.indptr))
        weighted = batch.x.data * params["w"][:, 0]
        score = np.bincount(rows, weighted, batch.n).astype(batch.y.dtype) + params["b"]
        delta = ((1 / (1 + np.exp(-score)) - batch.y) / batch.n).astype(batch.y.dtype)
        loss = np.mean(np.logaddexp(0, score) - batch.y * score)
        return float(loss), {"w": (batch.x.data * delta[rows])[:, None], "b": delta.sum(keepdims=True)}


class TwoTables(LogisticRows):
    """As above, with a second table of two columns that begin at random and whose product is added to the weight."""

    def tables(self) -> dict[str, Table]:
        return {"w": Table(1), "v": Table(2, 0.5)}

    def keys(self, batch: Batch) -> dict[str, Any]:
        # Negative keys, in no order, of two dimensions.
        return {"w": batch.x.indices, "v": -batch.x.indices[::-1, None].astype(np.int64)}

    def loss_and_grad(self, params: dict[str, Any], batch: Batch) -> tuple[float, dict[str, Any]]:
        v = params["v"][::-1, 0]
        weights = {"w": params["w"] + v[:, :1] * v[:, 1:], "b": params["b"]}
        loss, grad = super().loss_and_grad(weights, batch)
        grad["v"] = (grad["w"] * v[:, ::-1])[::-1, None]
        return loss, grad
