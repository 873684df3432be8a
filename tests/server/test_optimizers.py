"""Every optimizer against plain scalar formulas, and its bits against the way the vector is cut."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.optimizers import Optimizer, StepInfo, make_optimizer, slice_state
from paramserver.wire.job import OptimizerSection

Floats = list[float]

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "sgd-decay": {"name": "sgd", "weight_decay": 0.05},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "learning_rate": 0.01},
    "adam-decay": {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.95},
}


def scalar_sgd(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    velocity = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient += s.weight_decay * theta
        velocity = s.momentum * velocity + gradient
        theta -= rate * (gradient + s.momentum * velocity if s.nesterov else velocity)
    return theta


def scalar_adam(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    mean = square = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        if s.name == "adam":
            gradient += s.weight_decay * theta
        else:
            theta -= rate * s.weight_decay * theta
        mean = s.beta1 * mean + (1 - s.beta1) * gradient
        square = s.beta2 * square + (1 - s.beta2) * gradient**2
        theta -= rate * (mean / (1 - s.beta1**t)) / (math.sqrt(square / (1 - s.beta2**t)) + s.epsilon)
    return theta


SCALAR = {"sgd": scalar_sgd, "adam": scalar_adam}


def run(
    optimizer: Optimizer,
    theta: npt.NDArray[Any],
    gradients: npt.NDArray[Any],
    rates: Floats,
    block: int,
    in_place: bool,
) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...]]:
    """Apply all gradients block by block and return θ and the state."""
    size = theta.size
    theta = theta.copy()
    state = optimizer.init(size, theta.dtype)
    scratch = np.full((optimizer.scratch_rows, block), np.nan, theta.dtype)
    for count, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient.copy()
        new_theta = theta if in_place else np.full_like(theta, np.nan)
        new_state = state if in_place else type(state)(*(np.full_like(array, np.nan) for array in state))
        for start in range(0, size, block):
            cut = slice(start, min(start + block, size))
            optimizer.update(
                theta[cut],
                gradient[cut],
                slice_state(state, cut.start, cut.stop),
                StepInfo(count, rate),
                new_theta[cut],
                slice_state(new_state, cut.start, cut.stop),
                scratch,
            )
        theta, state = new_theta, new_state
    return theta, tuple(state)


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_agree_with_the_scalar_formulas(case: str) -> None:
    section = OptimizerSection(**CASES[case])
    rng = np.random.default_rng(7)
    theta = rng.normal(size=9)
    gradients = rng.normal(size=(100, 9)) * rng.uniform(0.01, 10, size=9)
    rates = [section.learning_rate / (1 + 0.01 * step) for step in range(100)]
    found, _ = run(make_optimizer(section), theta, gradients, rates, 4, in_place=True)
    expected = [SCALAR[section.name](float(theta[i]), section, gradients[:, i].tolist(), rates) for i in range(9)]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), case=st.sampled_from(sorted(CASES)), dtype=st.sampled_from(["float32", "float64"]))
def test_blocks_and_double_buffers_do_not_change_a_bit(data: st.DataObject, case: str, dtype: str) -> None:
    optimizer = make_optimizer(OptimizerSection(**CASES[case]))
    size = data.draw(st.integers(1, 300), "size")
    block = data.draw(st.integers(1, size), "block")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    theta = rng.normal(size=size).astype(dtype)
    gradients = (rng.normal(size=(4, size)) * rng.uniform(0, 3, size=size)).astype(dtype)
    rates = [0.1, 0.05, 0.2, 0.01]
    whole_theta, whole_state = run(optimizer, theta, gradients, rates, size, in_place=True)
    assert whole_theta.dtype == dtype
    for in_place in (True, False):
        theta_found, state_found = run(optimizer, theta, gradients, rates, block, in_place)
        assert theta_found.tobytes() == whole_theta.tobytes()
        assert [a.tobytes() for a in state_found] == [a.tobytes() for a in whole_state]


@pytest.mark.parametrize("case", CASES)
def test_an_update_allocates_no_array(case: str) -> None:
    optimizer = make_optimizer(OptimizerSection(**CASES[case]))
    size = 100_000
    theta, gradient = np.ones(size, np.float32), np.ones(size, np.float32)
    state = optimizer.init(size, np.float32)
    scratch = np.empty((optimizer.scratch_rows, size), np.float32)
    tracemalloc.start()
    try:
        optimizer.update(theta, gradient, state, StepInfo(1, 0.1), theta, state, scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size
