"""Low-rank matrices come back whole, others as near as a singular value decomposition says they can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from paramserver.wire.codecs.powersgd import PowerSGD, orthonormal
from paramserver.wire.layout import Layout

Array = np.ndarray[Any, Any]

LAYOUT = Layout([("bias", (7,)), ("w", (30, 4, 5)), ("small", (2, 2)), ("none", (0, 3)), ("v", (9, 40))], "float32")


def through(codec: PowerSGD, flat: Array, steps: int) -> Array:
    qs, out = codec.first_q(seed=3), np.empty_like(flat)
    for _ in range(steps):
        coded, qs = codec.encode(flat, qs)
    assert coded.size == codec.size
    codec.decode(coded, out)
    return out


def test_the_coded_vector_holds_the_factors_and_what_has_none() -> None:
    # (2, 2) would not get smaller.
    assert PowerSGD(LAYOUT, rank=2).size == 7 + 2 * (30 + 20) + 4 + 2 * (9 + 40)
    assert PowerSGD(LAYOUT, rank=100).size == LAYOUT.size


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@example(816028217, 2)
def test_matrices_of_the_rank_come_back(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    flat = rng.normal(size=LAYOUT.size).astype(np.float32)
    views = LAYOUT.views(flat)
    views["w"][:] = (rng.normal(size=(30, rank)) @ rng.normal(size=(rank, 20))).reshape(30, 4, 5)
    views["v"][:] = rng.normal(size=(9, rank)) @ rng.normal(size=(rank, 40))
    codec = PowerSGD(LAYOUT, rank)
    for name, q in zip(("w", "v"), codec.first_q(seed=3), strict=True):
        # Nearly dependent columns of the product have lost their difference to rounding, and with it a direction.
        assume(np.linalg.cond(views[name].reshape(len(views[name]), -1).astype(np.float64) @ q) < 300)
    np.testing.assert_allclose(through(codec, flat, 1), flat, atol=2e-3)


def test_power_iteration_finds_the_best_approximation() -> None:
    flat = np.random.default_rng(1).normal(size=LAYOUT.size).astype(np.float32)
    found = LAYOUT.views(through(PowerSGD(LAYOUT, 2), flat, 300))
    for name, view in LAYOUT.views(flat).items():
        if name in ("bias", "small"):
            np.testing.assert_array_equal(found[name], view)
        elif name != "none":
            matrix = view.reshape(view.shape[0], -1).astype(np.float64)
            best = np.sqrt(np.sum(np.linalg.svd(matrix, compute_uv=False)[2:] ** 2))
            assert np.linalg.norm(found[name].reshape(matrix.shape) - matrix) == pytest.approx(best, rel=1e-3)


def test_a_matrix_of_zeros_does_not_lose_the_way() -> None:
    codec = PowerSGD(LAYOUT, 2)
    zeros = np.zeros(LAYOUT.size, np.float32)
    coded, qs = codec.encode(zeros, codec.first_q(0))
    assert not coded.any()
    assert all(q.any(axis=0).all() for q in qs)


def test_columns_are_orthonormal_and_dependent_ones_vanish() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(50, 4)).astype(np.float32)
    matrix[:, 2] = matrix[:, 0] + 1e-3 * matrix[:, 1]
    matrix[:, 3] = 1e-30 * rng.normal(size=50)
    found = orthonormal(matrix).astype(np.float64)
    norms = np.diag(found.T @ found).round(5)
    np.testing.assert_array_equal(norms, [1, 1, 0, 1])
    np.testing.assert_allclose(found.T @ found, np.diag(norms), atol=1e-6)
