"""LARS and LAMB: the learning rate scaled for each tensor by a trust ratio, ‖θ‖/‖step‖."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.adam import MomentState, bias_correction, init_moments, moving_average
from paramserver.server.optimizers.optimizer import (
    Array,
    Layerwise,
    Optimizer,
    State,
    StepInfo,
    add_decay,
    filled,
)
from paramserver.server.optimizers.sgd import MomentumState


def lars(
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
) -> Optimizer:
    """Return LARS: SGD with momentum whose rate follows the norm of each tensor over that of its gradient.

        g ← g + weight_decay·θ
        r = trust_coefficient·‖θ‖/‖g‖               trust_coefficient where either norm is zero
        v ← momentum·v + η·r·g
        θ ← θ − v            or, with Nesterov,  θ ← θ − (η·r·g + momentum·v)

    Source: You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1,
    with the decay inside ‖g‖.

    Warning: biases and normalisation scales are scaled like weights; a tensor that starts near zero learns
    slowly.
    """

    def init(size: int, dtype: npt.DTypeLike) -> MomentumState:
        return MomentumState(filled(size, dtype))

    def direction(
        theta: Array,
        gradient: Array,
        state: State,  # noqa: ARG001 (the protocol's)
        step: StepInfo,  # noqa: ARG001
        new_state: State,  # noqa: ARG001
        scratch: Array,
    ) -> None:
        add_decay(theta, gradient, weight_decay, scratch[0, : theta.size])

    def ratio(theta_norm: float, direction_norm: float) -> float:
        return trust_coefficient * _trust(theta_norm, direction_norm)

    def update(
        theta: Array,
        gradient: Array,
        state: MomentumState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentumState,
        scratch: Array,
    ) -> None:
        np.multiply(gradient, step.learning_rate, out=gradient)
        np.multiply(state.velocity, momentum, out=new_state.velocity)
        np.add(new_state.velocity, gradient, out=new_state.velocity)
        if nesterov:
            work = scratch[0, : theta.size]
            np.multiply(new_state.velocity, momentum, out=work)
            np.add(work, gradient, out=work)
            np.subtract(theta, work, out=new_theta)
        else:
            np.subtract(theta, new_state.velocity, out=new_theta)

    return Optimizer(init, update, scratch_rows=1, layerwise=Layerwise(direction, ratio))


def lamb(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 0.0) -> Optimizer:
    """Return LAMB: AdamW whose rate follows the norm of each tensor over that of its step.

        m ← β₁·m + (1 − β₁)·g
        v ← β₂·v + (1 − β₂)·g²
        u = m̂/(√v̂ + ε) + weight_decay·θ             m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)
        θ ← θ − η·(‖θ‖/‖u‖)·u                       a ratio of 1 where either norm is zero

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020,
    algorithm 2 with φ the identity.

    Warning: biases and normalisation scales are scaled like weights.
    """

    def direction(
        theta: Array,
        gradient: Array,
        state: MomentState,
        step: StepInfo,
        new_state: MomentState,
        scratch: Array,
    ) -> None:
        work = scratch[0, : theta.size]
        np.multiply(gradient, gradient, out=work)
        moving_average(state.square, work, beta2, new_state.square)
        moving_average(state.mean, gradient, beta1, new_state.mean)
        corrected = bias_correction(step._replace(learning_rate=1.0), beta1, beta2, epsilon)
        np.sqrt(new_state.square, out=work)
        np.add(work, corrected.epsilon, out=work)
        np.divide(new_state.mean, work, out=gradient)
        np.multiply(gradient, corrected.rate, out=gradient)
        add_decay(theta, gradient, weight_decay, work)

    def update(
        theta: Array,
        gradient: Array,
        state: MomentState,  # noqa: ARG001 (the direction has used it and written the new one)
        step: StepInfo,
        new_theta: Array,
        new_state: MomentState,  # noqa: ARG001
        scratch: Array,  # noqa: ARG001
    ) -> None:
        np.multiply(gradient, step.learning_rate, out=gradient)
        np.subtract(theta, gradient, out=new_theta)

    return Optimizer(init_moments, update, scratch_rows=1, layerwise=Layerwise(direction, _trust))


def _trust(theta_norm: float, direction_norm: float) -> float:
    """Return the ratio of the norms, or 1 where one is zero: a tensor of zeros must be able to move."""
    return theta_norm / direction_norm if theta_norm > 0 and direction_norm > 0 else 1.0
