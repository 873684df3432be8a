"""Models of sparse data with a row in a table for each feature: the column numbers of csr x are the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TaskError
from paramserver.wire.tables import Keys, Table
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.losses import log_loss, squared_loss
from paramserver.worker.tasks.options import check_choice, check_count, check_l2, check_scale, describe_classes
from paramserver.worker.tasks.scores import accuracy, regression


@dataclass(frozen=True)
class SparseLogisticRegression:
    """Mean log loss of two classes, labelled 0/1 or −1/+1, with one weight per feature in the table `w`.

    Weights and `b` begin at zero. With the optimizer `ftrl` this is the model of McMahan et al., "Ad Click Prediction:
    a View from the Trenches", 2013, section 3, and with its `l1` above 0 weights of features that tell nothing are
    exactly zero.

    Warning: with other optimizers hardly any weight is zero, and what only pairs of features tell is not learnt.
    """

    def tables(self) -> dict[str, Table]:
        """Return the one table."""
        return {"w": Table(1)}

    def keys(self, batch: Batch) -> dict[str, Keys]:
        """Return the key of every stored entry of x."""
        return {"w": _keys(batch)}

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return the intercept.

        Raises:
            TaskError: if the labels are not of two classes.
        """
        _check_two_classes("sparse_logistic_regression", batch)
        return {"b": np.zeros(1, batch.y.dtype)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        loss, delta = log_loss(self._score(params, batch), batch.y)
        each = batch.x.data * np.repeat(delta, np.diff(batch.x.indptr))
        return loss, {"w": each[:, None], "b": delta.sum(keepdims=True)}

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return class numbers 0 and 1, shape (n,)."""
        return np.asarray(self._score(params, batch) > 0, dtype=np.int64)

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return the accuracy."""
        return accuracy(self.predict(params, batch), batch)

    def _score(self, params: Params, batch: Batch) -> NDArray[Any]:
        return sum_rows(batch.x.data * params["w"][:, 0], batch.x.indptr) + params["b"]


@dataclass(frozen=True)
class FactorizationMachine:
    """Second-order factorization machine: a weight (table `w`) and `rank` factors (table `v`) for each feature.

        s(x) = b + Σᵢ wᵢ·xᵢ + Σ_{i<j} ⟨vᵢ, vⱼ⟩·xᵢ·xⱼ

    The loss is the log loss for labels of two classes, else the squared error; `loss` chooses. Each example adds
    `l2`·(Σᵢ wᵢ² + ‖vᵢ‖²) over its features. Weights begin at zero, factors uniform in [−scale, scale).

    Source: Rendle, "Factorization Machines", 2010, equation 1, computed as in lemma 3.1.

    Warning: not convex; with scale = 0 all factors have the gradient zero and stay there.
    """

    rank: int = 8
    scale: float = 0.05
    l2: float = 0.0
    loss: str = "auto"

    def __post_init__(self) -> None:
        check_count("rank", self.rank, least=1)
        check_scale(self.scale)
        check_l2(self.l2)
        check_choice("loss", self.loss, ("auto", "logistic", "squared"))

    def tables(self) -> dict[str, Table]:
        """Return both tables."""
        return {"w": Table(1), "v": Table(self.rank, self.scale)}

    def keys(self, batch: Batch) -> dict[str, Keys]:
        """Return the key of every stored entry of x, for both."""
        keys = _keys(batch)
        return {"w": keys, "v": keys}

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return the intercept: zero, or the mean label of the batch for the squared error.

        Raises:
            TaskError: if the labels do not fit the loss.
        """
        if self._is_logistic(batch):
            _check_two_classes("factorization_machine with loss = 'logistic'", batch)
            return {"b": np.zeros(1, batch.y.dtype)}
        return {"b": batch.y.mean(keepdims=True)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        x, w, v = batch.x, params["w"], params["v"]
        weighted = x.data[:, None] * v
        totals = sum_rows(weighted, x.indptr)
        loss, delta = (log_loss if self._is_logistic(batch) else squared_loss)(
            self._score(params, batch, weighted, totals), batch.y
        )
        counts = np.diff(x.indptr)
        each = (x.data * np.repeat(delta, counts))[:, None]
        grad = {"w": each.copy(), "v": each * (np.repeat(totals, counts, axis=0) - weighted)}
        if self.l2:
            for name, rows in (("w", w), ("v", v)):
                loss += self.l2 * float(np.sum(np.square(rows), dtype=np.float64)) / batch.n
                grad[name] += (2 * self.l2 / batch.n) * rows
        return loss, grad | {"b": delta.sum(keepdims=True)}

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return class numbers 0 and 1, or values, shape (n,)."""
        weighted = batch.x.data[:, None] * params["v"]
        score = self._score(params, batch, weighted, sum_rows(weighted, batch.x.indptr))
        return np.asarray(score > 0, dtype=np.int64) if self._is_logistic(batch) else score

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return the accuracy, or rmse and r2."""
        return (accuracy if self._is_logistic(batch) else regression)(self.predict(params, batch), batch)

    def _score(self, params: Params, batch: Batch, weighted: NDArray[Any], totals: NDArray[Any]) -> NDArray[Any]:
        x = batch.x
        pairs = np.square(totals).sum(axis=1) - sum_rows(np.square(weighted).sum(axis=1), x.indptr)
        return np.asarray(sum_rows(x.data * params["w"][:, 0], x.indptr) + pairs / 2 + params["b"])

    def _is_logistic(self, batch: Batch) -> bool:
        return self.loss == "logistic" or (self.loss == "auto" and batch.classes in (1, 2))


def sum_rows(values: NDArray[Any], starts: NDArray[Any]) -> NDArray[Any]:
    """Return the sums of the entries, shape (entries, …), of each row of a csr matrix with these starts of rows."""
    sums = np.zeros((starts.size - 1, *values.shape[1:]), values.dtype)
    # A row without entries has no sum that `reduceat` could start.
    filled = starts[1:] > starts[:-1]
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[:-1][filled], axis=0)
    return sums


def _keys(batch: Batch) -> Keys:
    if isinstance(batch.x, np.ndarray):
        raise TaskError("the features are dense; a task with tables needs sparse data: svmlight, or csv with data.hash")
    return np.asarray(batch.x.indices, dtype=np.int64)


def _check_two_classes(what: str, batch: Batch) -> None:
    if batch.classes not in (1, 2):
        raise TaskError(f"{what} needs labels 0/1 or -1/+1; found {describe_classes(batch)}")
