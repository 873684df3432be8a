"""Adagrad."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.optimizer import Array, Optimizer, StepInfo, add_decay, filled


class AdagradState(NamedTuple):
    """What Adagrad remembers."""

    #: The sum of all squared gradients so far, plus the initial accumulator.
    accumulator: Array


def adagrad(epsilon: float = 1e-10, initial_accumulator: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Return Adagrad, whose rate for a coordinate falls with the gradients that it has seen.

        g ← g + weight_decay·θ
        a ← a + g²
        θ ← θ − η·g/(√a + ε)

    Good for sparse gradients: what is rarely touched keeps a large rate.

    Source: Duchi, Hazan & Singer, "Adaptive Subgradient Methods", 2011, in the form of torch.optim.Adagrad.

    Warning: the rate never rises again, so that long runs on dense gradients stall.
    """

    def init(size: int, dtype: npt.DTypeLike) -> AdagradState:
        return AdagradState(filled(size, dtype, initial_accumulator))

    def update(
        theta: Array,
        gradient: Array,
        state: AdagradState,
        step: StepInfo,
        new_theta: Array,
        new_state: AdagradState,
        scratch: Array,
    ) -> None:
        work = scratch[0, : theta.size]
        add_decay(theta, gradient, weight_decay, work)
        np.multiply(gradient, gradient, out=work)
        np.add(state.accumulator, work, out=new_state.accumulator)
        np.sqrt(new_state.accumulator, out=work)
        np.add(work, epsilon, out=work)
        np.divide(gradient, work, out=work)
        np.multiply(work, step.learning_rate, out=work)
        np.subtract(theta, work, out=new_theta)

    return Optimizer(init, update, scratch_rows=1)
