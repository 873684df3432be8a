"""Linear models in numpy, with analytic gradients; x may be dense or csr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TaskError
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.losses import cross_entropy, penalise
from paramserver.worker.tasks.options import check_count, check_l2, describe_classes
from paramserver.worker.tasks.scores import accuracy, regression


@dataclass(frozen=True)
class LinearRegression:
    """Mean squared error of x · w + b, plus l2 · ‖w‖²; w (features,) and b (1,) begin at zero."""

    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return zeros: the loss is convex."""
        return {"w": np.zeros(batch.x.shape[1], batch.x.dtype), "b": np.zeros(1, batch.x.dtype)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        residual = self.predict(params, batch)
        residual -= batch.y
        loss = float(np.dot(residual, residual)) / batch.n
        residual *= 2 / batch.n
        grad = {"w": batch.x.T @ residual, "b": residual.sum(keepdims=True)}
        return loss + penalise(self.l2, params["w"], grad["w"]), grad

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return x · w + b, shape (n,)."""
        return np.asarray(batch.x @ params["w"] + params["b"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return rmse and r2."""
        return regression(self.predict(params, batch), batch)


@dataclass(frozen=True)
class LogisticRegression:
    """Mean log loss of two classes, labelled 0/1 or −1/+1, plus l2 · ‖w‖².

    w (features,) and b (1,) begin at zero. A score x · w + b above 0 means class 1.
    """

    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return zeros: the loss is convex.

        Raises:
            TaskError: if the labels are not of two classes.
        """
        if batch.classes not in (1, 2):
            raise TaskError(f"logistic_regression needs labels 0/1 or -1/+1; found {describe_classes(batch)}")
        return {"w": np.zeros(batch.x.shape[1], batch.x.dtype), "b": np.zeros(1, batch.x.dtype)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        score = self._score(params, batch)
        sign = np.where(batch.y > 0, -1, 1).astype(score.dtype)
        # The loss log(1 + e^s), s = sign · score, has the derivative e^s / (1 + e^s): neither overflows here.
        score *= sign
        losses = np.logaddexp(0, score)
        delta = sign * np.exp(score - losses) / batch.n
        grad = {"w": batch.x.T @ delta, "b": delta.sum(keepdims=True)}
        loss = float(np.mean(losses, dtype=np.float64))
        return loss + penalise(self.l2, params["w"], grad["w"]), grad

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return class numbers 0 and 1, shape (n,)."""
        return np.asarray(self._score(params, batch) > 0, dtype=np.int64)

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return the accuracy."""
        return accuracy(self.predict(params, batch), batch)

    def _score(self, params: Params, batch: Batch) -> NDArray[Any]:
        return np.asarray(batch.x @ params["w"] + params["b"])


@dataclass(frozen=True)
class SoftmaxRegression:
    """Mean cross-entropy of softmax(x · w + b), plus l2 · ‖w‖².

    w (features, classes) and b (classes,) begin at zero.
    """

    #: Number of classes; 0 takes it from the data.
    classes: int = 0
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)
        check_count("classes", self.classes, least=0)

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:  # noqa: ARG002
        """Return zeros: the loss is convex.

        Raises:
            TaskError: if the labels are no class numbers, or more classes than the option allows.
        """
        classes = self.classes or batch.classes
        if not 0 < batch.classes <= classes:
            allowed = f"up to {self.classes} classes" if self.classes else "labels 0, 1, 2, …"
            raise TaskError(f"softmax_regression needs {allowed}; found {describe_classes(batch)}")
        dtype = batch.x.dtype
        return {"w": np.zeros((batch.x.shape[1], classes), dtype), "b": np.zeros(classes, dtype)}

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the loss and its gradient."""
        loss, delta = cross_entropy(self._scores(params, batch), batch.labels)
        grad = {"w": batch.x.T @ delta, "b": delta.sum(axis=0)}
        return loss + penalise(self.l2, params["w"], grad["w"]), grad

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return class numbers, shape (n,)."""
        return np.asarray(np.argmax(self._scores(params, batch), axis=1))

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return the accuracy."""
        return accuracy(self.predict(params, batch), batch)

    def _scores(self, params: Params, batch: Batch) -> NDArray[Any]:
        return np.asarray(batch.x @ params["w"] + params["b"])
