"""Keys as a task names them, and the sums of what it says about them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from paramserver.worker.rowexchange import Wanted

NAMED = arrays(np.int64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.integers(-5, 5))


@given(NAMED, st.integers(1, 3))
def test_every_place_gets_the_row_of_its_key(named: np.ndarray, dim: int) -> None:
    wanted = Wanted.of(named)
    assert wanted.keys.tolist() == sorted(set(named.ravel().tolist()))
    rows = wanted.keys[:, None] * 10.0 + np.arange(dim)
    spread = wanted.spread(rows)
    assert spread.shape == (*named.shape, dim)
    np.testing.assert_array_equal(spread, named[..., None] * 10.0 + np.arange(dim))
    assert not spread.flags.writeable


@given(NAMED, st.integers(1, 3), st.sampled_from([np.float32, np.float64]), st.integers(1, 9))
def test_gradients_of_one_key_are_summed_in_the_order_of_naming(
    named: np.ndarray, dim: int, dtype: type, samples: int
) -> None:
    rng = np.random.default_rng(0)
    gradient = (rng.standard_normal((*named.shape, dim)) * 10.0 ** rng.integers(-6, 6, (*named.shape, 1))).astype(dtype)
    wanted = Wanted.of(named)
    found = wanted.gather(gradient, samples)
    assert (found.dtype, found.shape) == (dtype, (wanted.keys.size, dim))
    flat = gradient.reshape(-1, dim).astype(np.float64)
    for key, row in zip(wanted.keys.tolist(), found, strict=True):
        total = np.zeros(dim)
        for place in np.flatnonzero(named.ravel() == key):
            total += flat[place]
        expected = (total * samples).astype(dtype)
        assert row.tolist() == expected.tolist() or wanted.inverse is None


def test_keys_that_rise_are_taken_as_they_are() -> None:
    named = np.array([-3, 0, 8])
    wanted = Wanted.of(named)
    assert wanted.inverse is None
    gradient = np.array([[1.5], [2.5], [3.5]], np.float32)
    assert wanted.gather(gradient, 4).tolist() == [[6], [10], [14]]
    assert Wanted.of(np.empty((0, 3), np.int64)).spread(np.empty((0, 2))).shape == (0, 3, 2)
