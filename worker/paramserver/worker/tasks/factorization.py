"""Matrix factorization: what two kinds of things, such as users and films, make of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TaskError
from paramserver.wire.tables import Keys, Table
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.losses import squared_loss
from paramserver.worker.tasks.options import check_count, check_l2, check_scale
from paramserver.worker.tasks.scores import regression


@dataclass(frozen=True)
class MatrixFactorization:
    """Squared error of mean + bias of one + bias of the other + the product of their factors.

    A row of the table `factors` holds a bias and then `rank` factors, all of which begin uniform in [−scale, scale).
    The data name both sides by two hashed columns, `data.hash = ["user", "item"]`; since the column's title is part of
    a key, one table holds both. Each example adds `l2` times the squares of its two rows.

    Source: Koren, Bell & Volinsky, "Matrix Factorization Techniques for Recommender Systems", 2009, equation 5.

    Warning: of a user or film that training has not seen it knows nothing: its row is the random one it would begin at.
    """

    rank: int = 8
    scale: float = 0.1
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_count("rank", self.rank, least=1)
        check_scale(self.scale)
        check_l2(self.l2)

    def tables(self) -> dict[str, Table]:
        """Return the one table."""
        return {"factors": Table(1 + self.rank, self.scale)}

    def keys(self, batch: Batch) -> dict[str, Keys]:
        """Return the two keys of each example, shape (n, 2).

        Raises:
            TaskError: if the examples are not pairs of keys.
        """
        x = batch.x
        if isinstance(x, np.ndarray) or x.indices.size != 2 * batch.n or (np.diff(x.indptr) != 2).any():
            raise TaskError(
                'matrix_factorization needs two keys for each example: csv with data.hash = ["user", "item"]'
            )
        return {"factors": x.indices.reshape(-1, 2)}

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return the mean label of the batch."""
        return {"mean": batch.y.mean(keepdims=True)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        rows = params["factors"]
        loss, delta = squared_loss(self.predict(params, batch), batch.y)
        # By the factors of either side, the slope of the product is the other side.
        grad = delta[:, None, None] * rows[:, ::-1]
        grad[:, :, 0] = delta[:, None]
        if self.l2:
            loss += self.l2 * float(np.sum(np.square(rows), dtype=np.float64)) / batch.n
            grad += (2 * self.l2 / batch.n) * rows
        return loss, {"factors": grad, "mean": delta.sum(keepdims=True)}

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:  # noqa: ARG002
        """Return values, shape (n,)."""
        rows = params["factors"]
        biases = rows[:, 0, 0] + rows[:, 1, 0]
        return np.asarray(params["mean"] + biases + (rows[:, 0, 1:] * rows[:, 1, 1:]).sum(axis=1))

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return rmse and r2."""
        return regression(self.predict(params, batch), batch)
