"""float16, IEEE 754 binary16: 11 bits of precision from 6e-5 to 65504, fewer below, and infinity above.

Rounding is to nearest, ties to even. A finite value from 65520 on becomes infinite, and one below 3e-8 becomes 0.

Source: IEEE Standard for Floating-Point Arithmetic, 754-2008, section 3.6.

Warning: its range is narrow and there is no loss scaling: a contribution, which is a sum over a batch, may leave it.
"""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.layout import Array, is_finite

#: Bit pattern of infinity without the sign; above are NaNs.
INFINITY = 0x7C00


class Float16:
    """Two bytes for a value."""

    block = 1

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 2 * count

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> bool:
        """Write the rounded values; say whether all are finite."""
        with np.errstate(over="ignore", under="ignore"):
            np.copyto(out.view("<f2"), values, casting="unsafe")
        return _is_finite(out.view("<u2"))

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Widen the values, of which every pattern of bits is one; say whether all are finite."""
        np.copyto(out, np.frombuffer(payload, "<f2"))
        return is_finite(out)

    def look(self, payload: memoryview) -> tuple[Array, bool]:
        """Return the values as they are, float16, and whether all are finite."""
        return np.frombuffer(payload, "<f2"), _is_finite(np.frombuffer(payload, "<u2"))

    def add_up(self, halves: Array, out: Array, is_first: bool) -> None:
        """Write the values of which `look` has told to `out`, float32, or add them to what is there."""
        if is_first:
            np.copyto(out, halves)
        else:
            np.add(out, halves, out=out)


def _is_finite(bits: Array) -> bool:
    return bool((bits & np.uint16(0x7FFF)).max(initial=0) < INFINITY)
