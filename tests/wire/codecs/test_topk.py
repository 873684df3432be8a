"""The largest values of a block against a plain sort, and what a liar may send."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paramserver.wire.codecs.codec import GRID
from paramserver.wire.codecs.topk import TopK, largest
from paramserver.wire.errors import TensorError

Array = np.ndarray[Any, Any]


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0, 1, -1, 2, -2, 0.5, -(2.0**127)])),
    st.floats(0.01, 1),
)
def test_the_largest_are_kept_and_of_equals_the_first(values: Array, density: float) -> None:
    codec = TopK(density)
    k = min(values.size, math.ceil(density * values.size))
    expected = np.zeros_like(values)
    for place in sorted(range(values.size), key=lambda i: (-abs(float(values[i])), i))[:k]:
        expected[place] = values[place]
    out = np.empty(codec.nbytes(values.size), np.uint8)
    assert out.size == 6 * k
    assert codec.encode(values, out)
    found = np.empty_like(values)
    assert codec.decode(out.data, found)
    np.testing.assert_array_equal(found, expected)


def test_blocks_choose_for_themselves_wherever_the_vector_is_cut() -> None:
    codec = TopK(0.01)
    values = np.random.default_rng(0).normal(size=2 * GRID + 1000).astype(np.float32)
    values[:GRID] *= 1000

    def through(part: Array) -> Array:
        out, found = np.empty(codec.nbytes(part.size), np.uint8), np.empty_like(part)
        codec.encode(part, out)
        codec.decode(out.data, found)
        return found

    whole = through(values)
    np.testing.assert_array_equal(whole, np.concatenate([through(values[:GRID]), through(values[GRID:])]))
    kept = [np.count_nonzero(whole[start : start + GRID]) for start in (0, GRID, 2 * GRID)]
    assert kept == [math.ceil(0.01 * GRID)] * 2 + [10]


def test_places_rise() -> None:
    np.testing.assert_array_equal(largest(np.array([1, -5, 2, 5, -5], np.float32), 2), [1, 3])


@pytest.mark.parametrize("places", [[3, 3], [4, 2], [0, 20], [5, 65535]])
def test_places_that_do_not_rise_within_the_block_are_refused(places: list[int]) -> None:
    payload = np.array([1, 2], "<f4").tobytes() + np.array(places, "<u2").tobytes()
    with pytest.raises(TensorError, match="the places of 2 out of 20 values"):
        TopK(0.1).decode(memoryview(payload), np.empty(20, np.float32))


def test_a_value_that_is_not_finite_is_told() -> None:
    payload = np.array([1, np.nan], "<f4").tobytes() + np.array([3, 9], "<u2").tobytes()
    assert not TopK(0.1).decode(memoryview(payload), np.empty(20, np.float32))
