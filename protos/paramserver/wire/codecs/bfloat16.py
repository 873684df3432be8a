"""bfloat16: the upper half of a float32, with its range and 8 bits of precision.

Rounding is to nearest, ties to even. NaN stays NaN (quiet, with its sign) and infinity stays infinity; from 2¹²⁸ − 2¹¹⁹
on (about 3.3962e38) finite values become infinite. numba's kernels, where the extra `fast` is installed, give the same
bits as numpy's passes, which work in blocks that stay in cache.

Source: the format is that of Wang and Kanwar, "BFloat16: The secret to high performance on Cloud TPUs", 2019.

Warning: with `wire.pull` a worker does not see changes of θ that are too small for 8 bits until they have added up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.layout import Array

#: Whether kernels can be compiled here; numba itself is only imported by the first that is.
AVAILABLE = find_spec("numba") is not None

#: Values of one block of numpy's passes; two such vectors of 4 bytes fit into a second-level cache.
BLOCK = 1 << 15

#: Bit pattern of infinity without the sign; above are NaNs.
INFINITY = 0x7F80


def widened(half: Any) -> Any:
    """Return the float32 of which two bytes are this number of 16 bits; for a compiled loop, one value at a time."""
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


class Kernels(NamedTuple):
    """What is done with many values at once; bits are uint16, or uint32 for those of float32."""

    #: (bits, out): write the rounded upper halves; return the largest without its sign.
    round: Callable[[Array, Array], Any]
    #: (halves, out): write the values, as bits; return the largest half without its sign.
    widen: Callable[[Array, Array], Any]
    #: (halves): return the largest without its sign.
    largest: Callable[[Array], Any]
    #: (halves, out): add the values to those of `out`.
    add: Callable[[Array, Array], Any]


class BFloat16:
    """Two bytes for a value; `fast` asks for numba's kernels, and compiles them at once."""

    block = 1

    def __init__(self, fast: bool = AVAILABLE) -> None:
        self._kernels = _compiled() if fast else _NUMPY

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 2 * count

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> bool:
        """Write the upper halves of the rounded values; say whether all are finite."""
        return bool(self._kernels.round(values.view(np.uint32), out.view(np.uint16)) < INFINITY)

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Widen the values, of which every pattern of bits is one; say whether all are finite."""
        return bool(self._kernels.widen(_aligned(payload), out.view(np.uint32)) < INFINITY)

    def look(self, payload: memoryview) -> tuple[Array, bool]:
        """Return the values as they are, uint16, and whether all are finite."""
        halves = _aligned(payload)
        return halves, bool(self._kernels.largest(halves) < INFINITY)

    def add_up(self, halves: Array, out: Array, is_first: bool) -> None:
        """Write the values of which `look` has told to `out`, float32, or add them to what is there."""
        if is_first:
            self._kernels.widen(halves, out.view(np.uint32))
        else:
            self._kernels.add(halves, out)


def _aligned(payload: memoryview) -> Array:
    # A kernel is compiled for aligned arrays, and a payload lies where the header before it ends.
    bits = np.frombuffer(payload, "<u2")
    return bits if bits.flags.aligned else bits.copy()


def _round_in_blocks(bits: Array, out: Array) -> int:
    """Write the rounded upper halves; return the largest without its sign."""
    scratch = np.empty(min(BLOCK, bits.size), np.uint32)
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK]
        rounded, target = scratch[: block.size], out[start : start + BLOCK]
        # Just under half of the last place carries into it from above the middle on; one more in the middle, if odd.
        np.right_shift(block, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, block, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.copyto(target, rounded.view(np.uint16)[1::2])
        nan = np.isnan(block.view(np.float32))
        if nan.any():
            target[nan] = (block[nan] >> 16) | 0x40
    return _largest(out)


def _widen(bits: Array, out: Array) -> int:
    """Write the values; return the largest without its sign."""
    np.left_shift(bits, np.uint32(16), out=out)
    return _largest(bits)


def _add(bits: Array, out: Array) -> None:
    """Add the values to those of `out`."""
    scratch = np.empty(min(BLOCK, bits.size), np.uint32)
    for start in range(0, bits.size, BLOCK):
        block, target = bits[start : start + BLOCK], out[start : start + BLOCK]
        widened = scratch[: block.size]
        np.left_shift(block, np.uint32(16), out=widened)
        np.add(target, widened.view(np.float32), out=target)


def _largest(bits: Array) -> int:
    return int((bits & np.uint16(0x7FFF)).max(initial=0))


_NUMPY = Kernels(_round_in_blocks, _widen, _largest, _add)


@lru_cache
def _compiled() -> Kernels:
    import numba  # an extra, and slow to import

    u = np.uint32
    value_of = numba.njit(widened)

    # numba makes 64 bits of what two numbers of 32 are added up to; brought back each time, more fit into a register.
    def round_bits(bits: Array, out: Array) -> Any:
        largest: Any = u(0)
        for i in range(bits.size):
            value = bits[i]
            upper = u(value >> u(16))
            rounded = u(u(u(value + u(0x7FFF)) + u(upper & u(1))) >> u(16))
            if u(value & u(0x7FFF_FFFF)) > u(INFINITY << 16):
                rounded = u(upper | u(0x40))
            out[i] = rounded
            largest = max(largest, u(rounded & u(0x7FFF)))
        return largest

    def widen(bits: Array, out: Array) -> Any:
        largest: Any = u(0)
        for i in range(bits.size):
            value = u(bits[i])
            out[i] = u(value << u(16))
            largest = max(largest, u(value & u(0x7FFF)))
        return largest

    def largest_of(bits: Array) -> Any:
        largest: Any = u(0)
        for i in range(bits.size):
            largest = max(largest, u(u(bits[i]) & u(0x7FFF)))
        return largest

    def add(bits: Array, out: Array) -> None:
        for i in range(bits.size):
            out[i] += value_of(bits[i])

    def compiled(function: Callable[..., Any], *types: Any) -> Callable[..., Any]:
        kernel: Callable[..., Any] = numba.njit([types], nogil=True, error_model="numpy")(function)
        return kernel

    def vector(of: Any, readonly: bool = False) -> Any:
        # What may be written is taken for what may only be read too, and nothing is compiled anew.
        return numba.types.Array(of, 1, "C", readonly=readonly)

    half, word, value = numba.uint16, numba.uint32, numba.float32
    given = vector(half, readonly=True)
    return Kernels(
        compiled(round_bits, vector(word, readonly=True), vector(half)),
        compiled(widen, given, vector(word)),
        compiled(largest_of, given),
        compiled(add, given, vector(value)),
    )
