"""What is not finite in a contribution is found, wherever it is; what updates remember does not stay subnormal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.events import Contribution
from paramserver.server.update import CHECKED_ALONE, SWEEPS_EVERY, Update
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout

CHUNK = 16
JOB = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d"}})


@given(
    size=st.integers(1, 3 * CHECKED_ALONE * CHUNK),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=3),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    large=st.booleans(),
)
def test_the_first_chunk_that_is_not_finite_is_found(size: int, places: list[float], bad: float, large: bool) -> None:
    update = Update(JOB, Layout([("t", (size,))], "float32"), CHUNK, 1)
    # Large values are finite, though the sum of their squares is not.
    vector = np.full(size, 3e38 if large else 1.0, np.float32)
    indexes = [int(place * size) for place in places]
    vector[indexes] = bad
    expected = min(indexes) // CHUNK * CHUNK if indexes else None
    assert update.first_not_finite(vector) == expected


SMALLEST = np.finfo(np.float32).smallest_normal

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": {"name": "sgd", "momentum": 0.5},
    "adam": {"name": "adam", "beta1": 0.5, "beta2": 0.5},
    "rmsprop": {"name": "rmsprop", "rho": 0.5},
    "lars": {"name": "lars", "momentum": 0.5},
}


def update_of(optimizer: dict[str, Any], size: int, fuse: bool) -> Update:
    job = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d"}, "optimizer": optimizer})
    return Update(job, Layout([("t", (size,))], "float32"), CHUNK, 1000, fuse=fuse)


def apply_nothing(update: Update, theta: np.ndarray, version: int) -> None:
    """Update θ by a gradient of zeros."""
    blocks = [[np.zeros(min(CHUNK, theta.size - start), np.float32)] for start in range(0, theta.size, CHUNK)]
    update.apply(theta, blocks, version, version, [Contribution("w", 0, 1, 0, 0, 1, 0.5)])


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_become_subnormal_is_forgotten_with_every_sixteenth_update(name: str, fuse: bool) -> None:
    if fuse:
        pytest.importorskip("numba", reason="needs numba, the extra `fast`")
    update, theta = update_of(OPTIMIZERS[name], 3 * CHUNK, fuse), np.ones(3 * CHUNK, np.float32)
    before = np.tile(np.array([SMALLEST, 2 * SMALLEST, 3 * SMALLEST, 1.0], np.float32), 3 * CHUNK // 4)
    for version, expected in (
        (SWEEPS_EVERY - 1, before / 2),
        (SWEEPS_EVERY, np.where(before < 2 * SMALLEST, 0, before / 2)),
    ):
        for values in update.state:
            values[:] = before
        apply_nothing(update, theta, version)
        for values in update.state:
            np.testing.assert_array_equal(values, expected)


def test_a_velocity_without_gradients_ends_at_zero() -> None:
    # Rounded to the nearest number, 0.9 times the smallest one is itself.
    update, theta = update_of({"name": "sgd", "momentum": 0.9}, 2, fuse=False), np.ones(2, np.float32)
    update.state.velocity[:] = 1.0, -1.0
    for version in range(1, 1001):
        apply_nothing(update, theta, version)
    np.testing.assert_array_equal(update.state.velocity, 0)
