"""Follow the regularized leader, proximal, per coordinate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.optimizer import Array, Optimizer, StepInfo, filled


class FtrlState(NamedTuple):
    """What FTRL remembers; both are zero before the first update."""

    #: z, the sum of the gradients, each less σ·θ.
    shifted_sum: Array
    #: n, the sum of the squared gradients.
    square_sum: Array


def ftrl(l1: float = 0.0, l2: float = 0.0, beta: float = 1.0) -> Optimizer:
    """Return FTRL-proximal, whose L1 term gives real zeros: for sparse linear models.

        σ ← (√(n + g²) − √n)/η
        z ← z + g − σ·θ
        n ← n + g²
        θ ← 0  where |z| ≤ l1,  else  −(z − sign(z)·l1) / ((beta + √n)/η + l2)

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, algorithm 1 (α is η).

    Warning: θ follows from z and n alone. Start from θ = 0: another start is forgotten wherever the gradient
    is zero. And η must be the same in all updates, since z holds terms of all of them: scale the gradients.
    """

    def init(size: int, dtype: npt.DTypeLike) -> FtrlState:
        return FtrlState(filled(size, dtype), filled(size, dtype))

    def update(
        theta: Array,
        gradient: Array,
        state: FtrlState,
        step: StepInfo,
        new_theta: Array,
        new_state: FtrlState,
        scratch: Array,
    ) -> None:
        work, root = scratch[0, : theta.size], scratch[1, : theta.size]
        z, inverse_rate = new_state.shifted_sum, 1.0 / step.learning_rate
        np.sqrt(state.square_sum, out=root)
        np.multiply(gradient, gradient, out=work)
        np.add(state.square_sum, work, out=new_state.square_sum)
        np.sqrt(new_state.square_sum, out=work)
        np.subtract(work, root, out=root)
        np.multiply(root, inverse_rate, out=root)
        np.multiply(root, theta, out=root)
        np.subtract(gradient, root, out=gradient)
        np.add(state.shifted_sum, gradient, out=z)
        np.add(work, beta, out=work)
        np.multiply(work, inverse_rate, out=work)
        np.add(work, l2, out=work)
        # z clipped to ±l1 less z is −(z − sign(z)·l1) outside the bounds and exactly zero within them.
        np.clip(z, -l1, l1, out=root)
        np.subtract(root, z, out=root)
        np.divide(root, work, out=new_theta)

    return Optimizer(init, update, scratch_rows=2)
