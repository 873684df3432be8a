"""Every optimizer against plain scalar formulas, and its bits against the way the vector is cut."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.optimizers import Optimizer, StepInfo, make_optimizer, norms, slice_state
from paramserver.wire.job import OptimizerSection

Array = npt.NDArray[Any]
Floats = list[float]
#: Of updates, as Adam's bias correction counts them.
Numbers = Sequence[int]
ALL = range(1, 101)

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "sgd-decay": {"name": "sgd", "weight_decay": 0.05},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "learning_rate": 0.01},
    "adam-decay": {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.95},
    "adamw": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    "adagrad": {"name": "adagrad", "weight_decay": 0.02, "initial_accumulator": 0.1},
    "rmsprop": {"name": "rmsprop", "learning_rate": 0.01},
    "rmsprop-momentum": {"name": "rmsprop", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "yogi": {"name": "yogi", "learning_rate": 0.01, "epsilon": 1e-3, "initial_accumulator": 1e-6},
    "ftrl": {"name": "ftrl", "l1": 0.5, "l2": 0.1},
    "lars": {"name": "lars", "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02},
    "lars-nesterov": {"name": "lars", "momentum": 0.7, "nesterov": True, "learning_rate": 5.0},
    "lamb": {"name": "lamb", "learning_rate": 0.01, "weight_decay": 0.05, "epsilon": 1e-6},
}


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


def scalar_sgd(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    velocity = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient += s.weight_decay * theta
        velocity = s.momentum * velocity + gradient
        theta -= rate * (gradient + s.momentum * velocity if s.nesterov else velocity)
    return theta


def scalar_adam(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats, numbers: Numbers = ALL) -> float:
    mean = square = 0.0
    for t, gradient, rate in zip(numbers, gradients, rates, strict=True):
        if s.name == "adam":
            gradient += s.weight_decay * theta
        else:
            theta -= rate * s.weight_decay * theta
        mean = s.beta1 * mean + (1 - s.beta1) * gradient
        square = s.beta2 * square + (1 - s.beta2) * gradient**2
        theta -= rate * (mean / (1 - s.beta1**t)) / (math.sqrt(square / (1 - s.beta2**t)) + s.epsilon)
    return theta


def scalar_yogi(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats, numbers: Numbers = ALL) -> float:
    mean, square = 0.0, s.initial_accumulator
    for t, gradient, rate in zip(numbers, gradients, rates, strict=True):
        mean = s.beta1 * mean + (1 - s.beta1) * gradient
        square -= (1 - s.beta2) * sign(square - gradient**2) * gradient**2
        theta -= rate * (mean / (1 - s.beta1**t)) / (math.sqrt(square / (1 - s.beta2**t)) + s.epsilon)
    return theta


def scalar_adagrad(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    total = s.initial_accumulator
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient += s.weight_decay * theta
        total += gradient**2
        theta -= rate * gradient / (math.sqrt(total) + s.epsilon)
    return theta


def scalar_rmsprop(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    square = velocity = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient += s.weight_decay * theta
        square = s.rho * square + (1 - s.rho) * gradient**2
        velocity = s.momentum * velocity + gradient / (math.sqrt(square) + s.epsilon)
        theta -= rate * velocity
    return theta


def scalar_ftrl(theta: float, s: OptimizerSection, gradients: Floats, rates: Floats) -> float:
    z = n = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        sigma = (math.sqrt(n + gradient**2) - math.sqrt(n)) / rate
        z += gradient - sigma * theta
        n += gradient**2
        theta = 0.0
        if abs(z) > s.l1:
            theta = -(z - sign(z) * s.l1) / ((s.beta + math.sqrt(n)) / rate + s.l2)
    return theta


def norm(values: Floats) -> float:
    return math.sqrt(math.fsum(value**2 for value in values))


def tensor_lars(theta: Floats, s: OptimizerSection, gradients: list[Floats], rates: Floats) -> Floats:
    velocity = [0.0] * len(theta)
    for gradient, rate in zip(gradients, rates, strict=True):
        step = [g + s.weight_decay * w for g, w in zip(gradient, theta, strict=True)]
        ratio = s.trust_coefficient * norm(theta) / norm(step)
        step = [rate * ratio * u for u in step]
        velocity = [s.momentum * v + u for v, u in zip(velocity, step, strict=True)]
        ahead = [u + s.momentum * v for u, v in zip(step, velocity, strict=True)]
        step = ahead if s.nesterov else velocity
        theta = [w - u for w, u in zip(theta, step, strict=True)]
    return theta


def tensor_lamb(theta: Floats, s: OptimizerSection, gradients: list[Floats], rates: Floats) -> Floats:
    mean = [0.0] * len(theta)
    square = [0.0] * len(theta)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        mean = [s.beta1 * m + (1 - s.beta1) * g for m, g in zip(mean, gradient, strict=True)]
        square = [s.beta2 * v + (1 - s.beta2) * g**2 for v, g in zip(square, gradient, strict=True)]
        step = [
            m / (1 - s.beta1**t) / (math.sqrt(v / (1 - s.beta2**t)) + s.epsilon) + s.weight_decay * w
            for m, v, w in zip(mean, square, theta, strict=True)
        ]
        ratio = norm(theta) / norm(step)
        theta = [w - rate * ratio * u for w, u in zip(theta, step, strict=True)]
    return theta


SCALAR: dict[str, Callable[..., float]] = {
    "sgd": scalar_sgd,
    "adam": scalar_adam,
    "adamw": scalar_adam,
    "adagrad": scalar_adagrad,
    "rmsprop": scalar_rmsprop,
    "yogi": scalar_yogi,
    "ftrl": scalar_ftrl,
}
TENSOR = {"lars": tensor_lars, "lamb": tensor_lamb}


def run(
    optimizer: Optimizer,
    theta: Array,
    gradients: Array,
    rates: Floats,
    tensors: list[int],
    block: int,
    in_place: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """Apply all gradients block by block to θ, which holds tensors of these sizes; return θ and the state."""
    theta = theta.copy()
    state = optimizer.init(theta.size, theta.dtype)
    scratch = np.full((optimizer.scratch_rows, block), np.nan, theta.dtype)
    bounds = np.cumsum([0, *tensors]).tolist()
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient.copy()
        new_theta = theta if in_place else np.full_like(theta, np.nan)
        new_state = state if in_place else type(state)(*(np.full_like(array, np.nan) for array in state))
        for low, high in pairwise(bounds):
            step = StepInfo(number, rate)
            cuts = [(start, min(start + block, high)) for start in range(low, high, block)]
            if optimizer.layerwise:
                for a, b in cuts:
                    old, new = slice_state(state, a, b), slice_state(new_state, a, b)
                    optimizer.layerwise.direction(theta[a:b], gradient[a:b], old, step, new, scratch)
                ratio = optimizer.layerwise.ratio(
                    norms.norm(norms.block_squares(theta[low:high])),
                    norms.norm(norms.block_squares(gradient[low:high])),
                )
                step = StepInfo(number, rate * ratio)
            for a, b in cuts:
                old, new = slice_state(state, a, b), slice_state(new_state, a, b)
                optimizer.update(theta[a:b], gradient[a:b], old, step, new_theta[a:b], new, scratch)
        theta, state = new_theta, new_state
    return theta, tuple(state)


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_agree_with_the_scalar_formulas(case: str) -> None:
    section = OptimizerSection(**CASES[case])
    rng = np.random.default_rng(7)
    tensors = [5, 1, 3]
    theta = rng.normal(size=9)
    gradients = rng.normal(size=(100, 9)) * rng.uniform(0.01, 10, size=9)
    # FTRL's state holds terms of all steps at one rate.
    fall = 0.0 if section.name == "ftrl" else 0.01
    rates = [section.learning_rate / (1 + fall * step) for step in range(100)]
    found, _ = run(make_optimizer(section), theta, gradients, rates, tensors, 4, in_place=True)
    if section.name in TENSOR:
        cuts = [slice(0, 5), slice(5, 6), slice(6, 9)]
        parts = [TENSOR[section.name](theta[cut].tolist(), section, gradients[:, cut].tolist(), rates) for cut in cuts]
        expected = [value for part in parts for value in part]
    else:
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
    first = data.draw(st.integers(1, size), "size of the first tensor")
    tensors = [first, size - first]
    whole_theta, whole_state = run(optimizer, theta, gradients, rates, tensors, size, in_place=True)
    assert whole_theta.dtype == dtype
    for in_place in (True, False):
        theta_found, state_found = run(optimizer, theta, gradients, rates, tensors, block, in_place)
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
        if optimizer.layerwise:
            optimizer.layerwise.direction(theta, gradient, state, StepInfo(1, 0.1), state, scratch)
        optimizer.update(theta, gradient, state, StepInfo(1, 0.1), theta, state, scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


def test_ftrl_gives_real_zeros() -> None:
    optimizer = make_optimizer(OptimizerSection(name="ftrl", l1=1.0))
    rng = np.random.default_rng(1)
    noise = rng.normal(scale=0.02, size=(100, 50))
    gradients = noise + np.where(np.arange(50) < 10, 1.0, 0.0)
    theta, _ = run(optimizer, np.zeros(50), gradients, [0.1] * 100, [50], 50, in_place=True)
    assert theta[10:].tobytes() == np.zeros(40).tobytes()
    assert np.all(theta[:10] < 0)


def test_a_tensor_of_zeros_can_leave_zero_under_a_trust_ratio() -> None:
    for name in ("lars", "lamb"):
        optimizer = make_optimizer(OptimizerSection.model_validate({"name": name}))
        theta, _ = run(optimizer, np.zeros(4), np.ones((1, 4)), [0.1], [4], 4, in_place=True)
        assert np.all(theta < 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_a_zero_gradient_keeps_everything_finite(case: str, dtype: str) -> None:
    optimizer = make_optimizer(OptimizerSection(**CASES[case]))
    theta, state = run(optimizer, np.zeros(3, dtype), np.zeros((2, 3), dtype), [0.1] * 2, [3], 3, in_place=True)
    assert np.all(np.isfinite(theta))
    assert all(np.all(np.isfinite(array)) for array in state)
