"""RMSprop."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.adam import moving_average
from paramserver.server.optimizers.optimizer import (
    Array,
    Optimizer,
    State,
    StepInfo,
    add_decay,
    filled,
)


class RmsState(NamedTuple):
    """What RMSprop without momentum remembers."""

    #: The moving average of the squared gradient; zero before the first update.
    square: Array


class RmsMomentumState(NamedTuple):
    """What RMSprop with momentum remembers; both are zero before the first update."""

    #: The moving average of the squared gradient.
    square: Array
    #: The discounted sum of all normalised gradients so far.
    velocity: Array


def rmsprop(rho: float = 0.99, epsilon: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Return RMSprop, which divides the gradient by a moving root mean square of itself.

        g ← g + weight_decay·θ
        s ← ρ·s + (1 − ρ)·g²
        u ← momentum·u + g/(√s + ε)
        θ ← θ − η·u

    Source: Tieleman & Hinton, "Lecture 6.5", 2012, in the form of torch.optim.RMSprop (not centered).

    Warning: s starts at zero and is not corrected for it, so that the first steps are up to 1/√(1 − ρ)
    times η.
    """

    def init(size: int, dtype: npt.DTypeLike) -> State:
        if momentum:
            return RmsMomentumState(filled(size, dtype), filled(size, dtype))
        return RmsState(filled(size, dtype))

    def update(
        theta: Array,
        gradient: Array,
        state: State,
        step: StepInfo,
        new_theta: Array,
        new_state: State,
        scratch: Array,
    ) -> None:
        work = scratch[0, : theta.size]
        add_decay(theta, gradient, weight_decay, work)
        np.multiply(gradient, gradient, out=work)
        moving_average(state.square, work, rho, new_state.square)
        np.sqrt(new_state.square, out=work)
        np.add(work, epsilon, out=work)
        np.divide(gradient, work, out=work)
        if momentum:
            np.multiply(state.velocity, momentum, out=new_state.velocity)
            np.add(new_state.velocity, work, out=new_state.velocity)
            np.multiply(new_state.velocity, step.learning_rate, out=work)
        else:
            np.multiply(work, step.learning_rate, out=work)
        np.subtract(theta, work, out=new_theta)

    return Optimizer(init, update, scratch_rows=1)
