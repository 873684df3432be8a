"""Yogi."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.adam import MomentState, bias_correction, moving_average
from paramserver.server.optimizers.optimizer import Array, Optimizer, StepInfo, filled


def yogi(
    beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-3, initial_accumulator: float = 0.0
) -> Optimizer:
    """Return Yogi: Adam whose v changes by at most (1 − β₂)·g² in an update, up or down.

        m ← β₁·m + (1 − β₁)·g
        v ← v − (1 − β₂)·sign(v − g²)·g²
        θ ← θ − η·m̂ / (√v̂ + ε)                      m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    So v does not forget rare large gradients at once, which is where Adam can diverge.
    `initial_accumulator` is v before the first update. The paper finds ε = 1e-3 better than Adam's 1e-8.

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization", 2018, algorithm 2, with the bias
    correction that optax.yogi applies too.

    Warning: from v = 0 the first updates are as long as Adam's; the paper begins with the squared gradient of a first
    batch, which `initial_accumulator` can stand for.
    """

    def init(size: int, dtype: npt.DTypeLike) -> MomentState:
        return MomentState(filled(size, dtype), filled(size, dtype, initial_accumulator))

    def update(
        theta: Array,
        gradient: Array,
        state: MomentState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentState,
        scratch: Array,
    ) -> None:
        work, square = scratch[0, : theta.size], scratch[1, : theta.size]
        np.multiply(gradient, gradient, out=square)
        np.subtract(state.square, square, out=work)
        np.sign(work, out=work)
        np.multiply(square, 1.0 - beta2, out=square)
        np.multiply(work, square, out=work)
        np.subtract(state.square, work, out=new_state.square)
        moving_average(state.mean, gradient, beta1, new_state.mean)
        corrected = bias_correction(step, beta1, beta2, epsilon)
        np.sqrt(new_state.square, out=work)
        np.add(work, corrected.epsilon, out=work)
        np.divide(new_state.mean, work, out=work)
        np.multiply(work, corrected.rate, out=work)
        np.subtract(theta, work, out=new_theta)

    return Optimizer(init, update, scratch_rows=2)
