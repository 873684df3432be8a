"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.optimizer import (
    Array,
    NoState,
    Optimizer,
    State,
    StepInfo,
    add_decay,
    filled,
)


class MomentumState(NamedTuple):
    """What momentum remembers."""

    #: The discounted sum of all gradients so far; zero before the first.
    velocity: Array


def sgd(momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Return stochastic gradient descent, with momentum, Nesterov's look-ahead and L2 weight decay.

        g ← g + weight_decay·θ
        v ← momentum·v + g
        θ ← θ − η·v          or, with Nesterov,  θ ← θ − η·(g + momentum·v)

    The learning rate stands outside the velocity, so that a schedule acts at once. The decay is coupled: it
    passes through the momentum.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, in
    the form that torch.optim.SGD uses (dampening 0).

    Warning: one rate for all parameters, so features of very different scale want `standardize` or another optimizer.
    In async momentum adds to the momentum that delays already bring: lower one of the two.
    """

    def update(
        theta: Array,
        gradient: Array,
        state: NoState,  # noqa: ARG001 (the protocol's)
        step: StepInfo,
        new_theta: Array,
        new_state: NoState,  # noqa: ARG001
        scratch: Array,
    ) -> None:
        add_decay(theta, gradient, weight_decay, scratch[0, : theta.size])
        np.multiply(gradient, step.learning_rate, out=gradient)
        np.subtract(theta, gradient, out=new_theta)

    def update_with_momentum(
        theta: Array,
        gradient: Array,
        state: MomentumState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentumState,
        scratch: Array,
    ) -> None:
        add_decay(theta, gradient, weight_decay, scratch[0, : theta.size])
        velocity = new_state.velocity
        np.multiply(state.velocity, momentum, out=velocity)
        np.add(velocity, gradient, out=velocity)
        if nesterov:
            work = scratch[0, : theta.size]
            np.multiply(velocity, momentum, out=work)
            np.add(gradient, work, out=gradient)
            np.multiply(gradient, step.learning_rate, out=gradient)
        else:
            np.multiply(velocity, step.learning_rate, out=gradient)
        np.subtract(theta, gradient, out=new_theta)

    def init(size: int, dtype: npt.DTypeLike) -> State:
        return MomentumState(filled(size, dtype)) if momentum else NoState()

    return Optimizer(init, update_with_momentum if momentum else update, scratch_rows=1)
