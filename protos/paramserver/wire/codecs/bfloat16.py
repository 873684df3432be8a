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
from typing import Any

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.layout import Array

#: Whether kernels can be compiled here; numba itself is only imported by the first that is.
AVAILABLE = find_spec("numba") is not None

#: Values of one block of numpy's passes; two such vectors of 4 bytes fit into a second-level cache.
BLOCK = 1 << 15

#: Bit pattern of infinity without the sign; above are NaNs.
INFINITY = 0x7F80


class BFloat16:
    """Two bytes for a value; `fast` asks for numba's kernels, and compiles them at once."""

    block = 1

    def __init__(self, fast: bool = AVAILABLE) -> None:
        self._kernels = _kernels() if fast else (_round_in_blocks, _widen)

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 2 * count

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> bool:
        """Write the upper halves of the rounded values; say whether all are finite."""
        return bool(self._kernels[0](values.view(np.uint32), out.view(np.uint16)) < INFINITY)

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Widen the values, of which every pattern of bits is one; say whether all are finite."""
        bits = np.frombuffer(payload, "<u2")
        # A kernel is compiled for aligned arrays, and a payload lies where the header before it ends.
        return bool(self._kernels[1](bits if bits.flags.aligned else bits.copy(), out.view(np.uint32)) < INFINITY)


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


def _largest(bits: Array) -> int:
    return int((bits & np.uint16(0x7FFF)).max(initial=0))


@lru_cache
def _kernels() -> tuple[Callable[[Array, Array], Any], Callable[[Array, Array], Any]]:
    import numba  # an extra, and slow to import

    @numba.njit(nogil=True, error_model="numpy")
    def round_bits(bits: Array, out: Array) -> Any:
        largest: Any = np.uint32(0)
        for i in range(bits.size):
            value = bits[i]
            upper = value >> np.uint32(16)
            rounded = (value + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
            if value & np.uint32(0x7FFF_FFFF) > np.uint32(INFINITY << 16):
                rounded = upper | np.uint32(0x40)
            out[i] = rounded
            largest = max(largest, rounded & np.uint32(0x7FFF))
        return largest

    @numba.njit(nogil=True, error_model="numpy")
    def widen(bits: Array, out: Array) -> Any:
        largest: Any = np.uint32(0)
        for i in range(bits.size):
            value = np.uint32(bits[i])
            out[i] = value << np.uint32(16)
            largest = max(largest, value & np.uint32(0x7FFF))
        return largest

    none = np.empty(0, np.uint32), np.empty(0, np.uint16)
    round_bits(*none)
    readonly = none[1].view()
    readonly.flags.writeable = False
    widen(readonly, none[0])
    return round_bits, widen
