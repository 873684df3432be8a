"""Linear models in numpy, with analytic gradients; x may be dense or csr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TaskError
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.scores import regression


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
        w = params["w"]
        residual = self.predict(params, batch) - batch.y
        loss = float(np.mean(np.square(residual), dtype=np.float64)) + penalty(self.l2, w)
        residual *= 2 / batch.n
        return loss, {"w": batch.x.T @ residual + 2 * self.l2 * w, "b": residual.sum(keepdims=True)}

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return x · w + b, shape (n,)."""
        return np.asarray(batch.x @ params["w"] + params["b"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return rmse and r2."""
        return regression(self.predict(params, batch), batch)


def penalty(l2: float, w: NDArray[Any]) -> float:
    """Return l2 · ‖w‖²."""
    return l2 * float(np.sum(np.square(w), dtype=np.float64)) if l2 else 0.0


def check_l2(l2: Any) -> None:
    """Refuse a penalty that is no number of 0 or more.

    Raises:
        TaskError: naming the value.
    """
    if isinstance(l2, bool) or not isinstance(l2, int | float) or not 0 <= l2 < float("inf"):
        raise TaskError(f"option 'l2' is {l2!r}; a finite number of 0 or more is expected")
