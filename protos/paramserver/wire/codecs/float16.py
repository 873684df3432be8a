"""float16, IEEE 754 binary16: 11 bits of precision from 6e-5 to 65504, fewer below, and infinity above.

Rounding is to nearest, ties to even. A finite value from 65520 on becomes infinite, and one below 3e-8 becomes 0.
"""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.layout import Array


class Float16:
    """Two bytes for a value."""

    #: Bit pattern of infinity without the sign; above are NaNs.
    infinity = 0x7C00
    largest = 65504.0

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 2 * count

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> None:
        """Write the rounded values."""
        with np.errstate(over="ignore", under="ignore"):
            np.copyto(out.view("<f2"), values, casting="unsafe")

    def decode(self, payload: memoryview, out: Array) -> None:
        """Widen the values; every pattern of bits is one."""
        np.copyto(out, np.frombuffer(payload, "<f2"))
