"""Norms: right, the same bits however the vector is cut between blocks, and clipping by them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.optimizers.norms import NORM_BLOCK, block_squares, clip_factor, norm


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 5 * NORM_BLOCK),
    cuts=st.sets(st.integers(1, 4)),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_cuts_between_blocks_do_not_change_a_bit(size: int, cuts: set[int], dtype: str, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size).astype(dtype)
    bounds = [0, *sorted(cut * NORM_BLOCK for cut in cuts if cut * NORM_BLOCK < size), size]
    parts = [block_squares(values[a:b]) for a, b in pairwise(bounds)]
    whole = block_squares(values)
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert whole.dtype == np.float64


def test_an_unaligned_start_in_memory_does_not_change_a_bit() -> None:
    values = np.random.default_rng(3).normal(size=NORM_BLOCK + 77).astype(np.float32)
    shifted = np.empty(values.size + 1, np.float32)[1:]
    shifted[:] = values
    assert block_squares(shifted).tobytes() == block_squares(values).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_agrees_with_exact_arithmetic(dtype: str) -> None:
    values = np.random.default_rng(5).normal(size=1000).astype(dtype)
    exact = sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))
    assert norm(block_squares(values)) == pytest.approx(math.sqrt(exact), rel=1e-14)


def test_large_float32_values_do_not_overflow() -> None:
    assert norm(block_squares(np.full(4, 1e38, np.float32))) == pytest.approx(2e38, rel=1e-6)


def test_a_float64_overflow_is_infinite_and_clips_to_zero() -> None:
    found = norm(block_squares(np.full(4, 1e200)))
    assert found == math.inf
    assert clip_factor(found, 1.0) == 0.0


def test_an_empty_tensor_has_norm_zero() -> None:
    assert norm(block_squares(np.empty(0, np.float32))) == 0.0


@given(gradient_norm=st.floats(0, 1e30), clip_norm=st.floats(1e-6, 1e6))
def test_a_clipped_gradient_is_within_the_bound_and_a_short_one_is_untouched(
    gradient_norm: float, clip_norm: float
) -> None:
    factor = clip_factor(gradient_norm, clip_norm)
    assert (factor == 1.0) if gradient_norm <= clip_norm else (factor * gradient_norm <= clip_norm * (1 + 1e-15))


def test_a_bound_of_zero_is_no_bound() -> None:
    assert clip_factor(1e9, 0.0) == 1.0
