"""A task that computes as long as it is told, as on slower hardware."""

from __future__ import annotations

import os
import time

import numpy as np

from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.mlp import Mlp

#: The environment variable of a worker process by whose value all its steps take longer.
SLOWNESS = "SLOWNESS"


class SlowMlp:
    """A perceptron with one hidden layer of 32 whose gradient takes at least `seconds` of wall time."""

    def __init__(self, seconds: float) -> None:
        self._task = Mlp(hidden=(32,))
        self._seconds = seconds * float(os.environ.get(SLOWNESS, "1"))

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:
        """Return the first parameters."""
        return self._task.init(rng, batch)

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return loss and gradient when the time is over."""
        end = time.perf_counter() + self._seconds
        found = self._task.loss_and_grad(params, batch)
        time.sleep(max(0.0, end - time.perf_counter()))
        return found
