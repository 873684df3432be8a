"""The compiled optimizers give the bits of the numpy ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.optimizers import Optimizer, StepInfo, make_optimizer
from paramserver.wire.job import OptimizerSection

pytest.importorskip("numba", reason="needs numba, the extra `fast`")

CASES: dict[str, dict[str, Any]] = {
    "momentum": {"name": "sgd", "momentum": 0.9},
    "momentum-decay": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.03},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True},
    "nesterov-decay": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
    "adam": {"name": "adam"},
    "adam-decay": {"name": "adam", "weight_decay": 0.03},
    "adamw": {"name": "adamw", "weight_decay": 0.03},
}


def bits(optimizer: Optimizer, theta: Any, gradients: Any, in_place: bool) -> list[bytes]:
    theta = theta.copy()
    state = optimizer.init(theta.size, theta.dtype)
    scratch = np.full((optimizer.scratch_rows, theta.size), np.nan, theta.dtype)
    for number, gradient in enumerate(gradients, 1):
        new_theta = theta if in_place else np.full_like(theta, np.nan)
        new_state = state if in_place else type(state)(*(np.full_like(array, np.nan) for array in state))
        step = StepInfo(number, 0.1 / number)
        optimizer.update(theta, gradient.copy(), state, step, new_theta, new_state, scratch)
        theta, state = new_theta, new_state
    return [array.tobytes() for array in (theta, *state)]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 2000),
    seed=st.integers(0, 2**16),
    magnitude=st.integers(-18, 9),
    in_place=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_compiled_and_numpy_bits_are_the_same(
    case: str, size: int, seed: int, magnitude: int, in_place: bool, dtype: str
) -> None:
    section = OptimizerSection(**CASES[case])
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=size).astype(dtype)
    # From denormal squares up to large ones, and some exact zeros.
    gradients = (rng.normal(size=(5, size)) * 10.0**magnitude * (rng.random((5, size)) < 0.9)).astype(dtype)
    expected = bits(make_optimizer(section, fuse=False), theta, gradients, in_place=True)
    assert bits(make_optimizer(section, fuse=True), theta, gradients, in_place) == expected


def test_a_round_of_blocks_compiles_nothing() -> None:
    from paramserver.server.optimizers import fused

    optimizer = make_optimizer(OptimizerSection(name="adam"), fuse=True)
    state = optimizer.init(100, np.float32)
    kernel: Any = fused._adam_kernel(False, False)
    before = len(kernel.signatures)
    theta, gradient = np.ones(100, np.float32), np.ones(100, np.float32)
    optimizer.update(theta, gradient, state, StepInfo(1, 0.1), theta, state, np.empty((0, 100), np.float32))
    assert len(kernel.signatures) == before
