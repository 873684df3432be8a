"""int8 with stochastic rounding: the error's bound, no bias, bits that are a function of their place alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paramserver.wire.codecs.codec import GRID, Origin
from paramserver.wire.codecs.int8 import BUCKET, Int8, uniform
from paramserver.wire.errors import TensorError

Array = np.ndarray[Any, Any]
CODEC = Int8()


def coded(values: Array, origin: Origin) -> Array:
    out = np.empty(CODEC.nbytes(values.size), np.uint8)
    assert CODEC.encode(values, out, origin)
    return out


def decoded(bits: Array, count: int) -> Array:
    out = np.empty(count, np.float32)
    assert CODEC.decode(bits.data, out)
    return out


#: Values that float32 has levels between: a scale below 2⁻¹¹² would have a denormal step.
MAGNITUDES = st.just(0.0) | st.floats(2.0**-112, 2.0**126, width=32)


@given(
    hnp.arrays(np.float32, st.integers(1, 3 * BUCKET), elements=MAGNITUDES | MAGNITUDES.map(lambda value: -value)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**15),
)
def test_a_value_becomes_one_of_the_two_levels_beside_it(values: Array, seed: int, step: int) -> None:
    found = decoded(coded(values, Origin(seed, 3, step, 0)), values.size).astype(np.float64)
    for start in range(0, values.size, BUCKET):
        part, near = values[start : start + BUCKET].astype(np.float64), found[start : start + BUCKET]
        unit = np.abs(part).max() / 127
        assert (np.abs(near - part) <= unit * (1 + 1e-5) + 1e-44).all()
        levels = near / unit if unit else near
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)


def test_on_average_a_value_is_itself() -> None:
    draws = 4000
    values = np.array([1.0, 0.3, -0.3, 1 / 127, 0.5 / 127, -0.01 / 127, 0.0, -1.0, 1e-12], np.float32)
    found = np.array([decoded(coded(values, Origin(1, 0, step, 0)), values.size) for step in range(draws)])
    # Of each draw the deviation is at most half a level, so this is five standard errors.
    np.testing.assert_allclose(found.mean(axis=0), values, atol=5 * 0.5 / 127 / draws**0.5)
    assert (found[:, [0, 6, 7]] == values[[0, 6, 7]]).all()


def test_the_bits_depend_on_the_place_and_not_on_the_cut() -> None:
    values = np.random.default_rng(0).normal(size=2 * GRID + 100).astype(np.float32)
    whole = decoded(coded(values, Origin(7, 2, 5, 0)), values.size)
    part = decoded(coded(values[GRID:], Origin(7, 2, 5, GRID)), values.size - GRID)
    np.testing.assert_array_equal(whole[GRID:], part)
    for other in (Origin(8, 2, 5, 0), Origin(7, 3, 5, 0), Origin(7, 2, 6, 0)):
        assert (decoded(coded(values, other), values.size) != whole).any()


def test_the_random_numbers_are_those_of_the_specification() -> None:
    key = np.array([(9 << 32) | 4, 2**63 + 11], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(24)
    halves = [int(word) >> shift & 0xFFFF_FFFF for word in words for shift in (0, 32)]
    numbers = [(half >> 8) / 2**24 for half in halves]
    np.testing.assert_array_equal(uniform(Origin(9, 4, 11, 0), 48), np.array(numbers, np.float32))
    np.testing.assert_array_equal(uniform(Origin(9, 4, 11, 16), 31), np.array(numbers[16:47], np.float32))


@pytest.mark.parametrize(
    ("scale", "level", "said"),
    [(-1.0, 1, "a scale is -1.0"), (np.nan, 1, "a scale is nan"), (1.0, -128, "a level is -128")],
)
def test_what_no_encoder_writes_is_refused(scale: float, level: int, said: str) -> None:
    payload = np.float32(scale).tobytes() + np.array([1, level], np.int8).tobytes()
    with pytest.raises(TensorError, match=said):
        CODEC.decode(memoryview(payload), np.empty(2, np.float32))


def test_an_infinite_scale_is_told() -> None:
    payload = np.float32(np.inf).tobytes() + np.array([1, 0], np.int8).tobytes()
    assert not CODEC.decode(memoryview(payload), np.empty(2, np.float32))
