"""Adam and AdamW."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.optimizer import Array, Optimizer, StepInfo, add_decay, filled


class MomentState(NamedTuple):
    """What Adam and its kin remember; both are zero before the first update."""

    #: m, the moving average of the gradient.
    mean: Array
    #: v, the moving average of the squared gradient.
    square: Array


def init_moments(size: int, dtype: npt.DTypeLike) -> MomentState:
    """Return zero moments for `size` parameters."""
    return MomentState(filled(size, dtype), filled(size, dtype))


def moving_average(old: Array, value: Array, beta: float, new: Array) -> None:
    """Write `beta·old + (1 − beta)·value` to `new`, which may be `old`; `value` is overwritten."""
    np.multiply(value, 1.0 - beta, out=value)
    np.multiply(old, beta, out=new)
    np.add(new, value, out=new)


class BiasCorrection(NamedTuple):
    """Scalars with which `rate·m / (√v + epsilon)` is Adam's bias-corrected update."""

    rate: float
    epsilon: float


def bias_correction(step: StepInfo, beta1: float, beta2: float, epsilon: float) -> BiasCorrection:
    """Move the corrections of m and v out of the arrays into two scalars (Kingma & Ba, end of section 2)."""
    root = math.sqrt(1.0 - beta2**step.number)
    return BiasCorrection(step.learning_rate * root / (1.0 - beta1**step.number), epsilon * root)


def adam(
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Return Adam, or AdamW where the weight decay is `decoupled` from the gradient.

        g ← g + weight_decay·θ                      Adam
        m ← β₁·m + (1 − β₁)·g
        v ← β₂·v + (1 − β₂)·g²
        θ ← (1 − η·weight_decay)·θ                  AdamW
        θ ← θ − η·m̂ / (√v̂ + ε)                      m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    Source: Kingma & Ba, "Adam", 2015, algorithm 1; Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization", 2019, algorithm 2, with η in front of the decay as in torch.optim.AdamW.

    Warning: v forgets rare large gradients, so that Adam can fail to converge even on convex problems
    (Reddi et al., 2018).
    """

    def update(
        theta: Array,
        gradient: Array,
        state: MomentState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentState,
        scratch: Array,
    ) -> None:
        work = scratch[0, : theta.size]
        if not decoupled:
            add_decay(theta, gradient, weight_decay, work)
        np.multiply(gradient, gradient, out=work)
        moving_average(state.square, work, beta2, new_state.square)
        moving_average(state.mean, gradient, beta1, new_state.mean)
        corrected = bias_correction(step, beta1, beta2, epsilon)
        np.sqrt(new_state.square, out=work)
        np.add(work, corrected.epsilon, out=work)
        np.divide(new_state.mean, work, out=work)
        np.multiply(work, corrected.rate, out=work)
        if weight_decay and decoupled:
            np.multiply(theta, 1.0 - step.learning_rate * weight_decay, out=new_theta)
            theta = new_theta
        np.subtract(theta, work, out=new_theta)

    return Optimizer(init_moments, update, scratch_rows=1)
