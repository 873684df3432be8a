"""Halves of float32 values: against an independent rounding, on every kind of value, with and without numba."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.codecs import Halves, add_up
from paramserver.wire.codecs.bfloat16 import AVAILABLE, BLOCK, BFloat16
from paramserver.wire.codecs.codec import Codec
from paramserver.wire.codecs.float16 import Float16

FLAVOURS = [False, pytest.param(True, marks=pytest.mark.skipif(not AVAILABLE, reason="numba is not installed"))]

SPECIAL = [0x0000_0000, 0x8000_0000, 0x7F80_0000, 0xFF80_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001, 0x7F7F_FFFF]
SPECIAL += [0x0000_0001, 0x0000_8000, 0x0001_8000, 0x3F80_8000, 0x3F81_8000, 0x3F80_7FFF, 0x3F80_8001, 0x7F7F_7FFF]


def coded(codec: Codec, values: np.ndarray) -> np.ndarray:
    out = np.empty(codec.nbytes(values.size), np.uint8)
    codec.encode(values, out, None)  # type: ignore[arg-type]
    return out.view(np.uint16)


def widened(codec: Codec, bits: np.ndarray) -> np.ndarray:
    out = np.empty(bits.size, np.float32)
    codec.decode(bits.data.cast("B"), out)
    return out


def nearest(value: float) -> int:
    """Return the bfloat16 next to a finite value, the even one if two are, by exact fractions."""

    def exact(bits: int) -> Fraction:
        # What would come behind the largest has the place of infinity.
        return Fraction(2) ** 128 if bits == 0x7F80 else Fraction(struct.unpack("<f", struct.pack("<I", bits << 16))[0])

    magnitude = struct.unpack("<I", struct.pack("<f", abs(value)))[0]
    below = magnitude >> 16
    distances = [abs(exact(b) - Fraction(abs(value))) for b in (below, below + 1)]
    up = distances[1] < distances[0] or (distances[1] == distances[0] and below % 2 == 1)
    return below + up | (0x8000 if np.signbit(np.float32(value)) else 0)


@pytest.mark.parametrize("fast", FLAVOURS)
@given(bits=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(SPECIAL), min_size=1, max_size=40))
def test_bf16_is_the_nearest_value(fast: bool, bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    found = coded(BFloat16(fast), values)
    for value, half in zip(values, found, strict=True):
        if np.isnan(value):
            assert half & 0x7FFF > 0x7F80
        elif np.isinf(value):
            assert half & 0x7FFF == 0x7F80
        else:
            assert half == nearest(float(value))


@pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")
def test_bf16_by_numba_and_by_numpy_have_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**32, 3 * BLOCK + 17, np.uint32)
    values[: len(SPECIAL)] = SPECIAL
    values = values.view(np.float32)
    np.testing.assert_array_equal(coded(BFloat16(True), values), coded(BFloat16(False), values))


@pytest.mark.parametrize("fast", FLAVOURS)
def test_bf16_widens_every_pattern_and_comes_back(fast: bool) -> None:
    codec = BFloat16(fast)
    every = np.arange(2**16, dtype=np.uint16)
    values = widened(codec, every)
    np.testing.assert_array_equal(values.view(np.uint32), every.astype(np.uint32) << 16)
    quiet = np.isnan(values) * 0x40
    np.testing.assert_array_equal(coded(codec, values), every | quiet.astype(np.uint16))


CODECS = [BFloat16(False), BFloat16(), Float16()]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, 101, 2 * BLOCK + 17])
def test_halves_add_up_to_what_their_values_do(codec: Halves, size: int) -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.normal(size=size).astype(np.float32) for _ in range(2))
    sides = [codec.look(coded(codec, values).data.cast("B")) for values in (first, second)]
    assert all(finite for _, finite in sides)
    out = np.full(size, np.nan, np.float32)
    for number, (halves, _) in enumerate(sides):
        assert halves.itemsize == 2
        add_up(halves, out, number == 0)
    expected = widened(codec, coded(codec, first)) + widened(codec, coded(codec, second))
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_halves_tell_what_is_not_finite(codec: Halves) -> None:
    for bad in (np.nan, np.inf, -np.inf, np.float32(-np.nan)):
        for place in (0, 50, 100):
            values = np.linspace(-3, 3, 101, dtype=np.float32)
            values[place] = bad
            assert not codec.look(coded(codec, values).data.cast("B"))[1]


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_may_lie_anywhere(codec: Halves) -> None:
    values = np.linspace(-3, 3, 101, dtype=np.float32)
    expected = widened(codec, coded(codec, values))
    out = np.empty(values.size, np.float32)
    payload = memoryview(b"x" + coded(codec, values).tobytes())[1:]
    codec.decode(payload, out)
    np.testing.assert_array_equal(out, expected)
    codec.add_up(codec.look(payload)[0], out, is_first=False)
    np.testing.assert_array_equal(out, 2 * expected)


@given(st.lists(st.floats(-65519, 65519, width=32), min_size=1, max_size=40))
def test_fp16_errs_by_half_of_the_last_place(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    found = widened(Float16(), coded(Float16(), values))
    bound = np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)
    assert (np.abs(found.astype(np.float64) - values) <= bound).all()


def test_fp16_keeps_nan_and_infinity_and_overflows_to_it() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 65504, 65519, 65520, -1e9, 2.0**-25, 3 * 2.0**-26, -0.0], np.float32)
    expected = [np.nan, np.inf, -np.inf, 65504, 65504, np.inf, -np.inf, 0, 2.0**-24, -0.0]
    np.testing.assert_array_equal(widened(Float16(), coded(Float16(), values)), np.array(expected, np.float32))
