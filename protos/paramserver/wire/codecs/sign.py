"""One bit for a value: its sign, times the mean magnitude of its bucket of 1024.

Bytes of n values: ⌈n/1024⌉ scales as float32, then ⌈n/8⌉ bytes of bits, lowest bit first, 1 for values from 0 up; bits
behind the last value are 0.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", 2019,
algorithm 1, with a scale for each bucket rather than each layer.

Warning: without feedback of the error it need not converge at all (section 3 there).
"""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.errors import TensorError
from paramserver.wire.layout import Array

#: Values that share a scale; divides the grid and is a multiple of 8.
BUCKET = 1024


class Sign:
    """A bit for a value and a scale for a bucket."""

    block = BUCKET

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 4 * -(-count // BUCKET) + -(-count // 8)

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> bool:
        """Write scales and bits; say whether all scales are finite."""
        buckets = -(-values.size // BUCKET)
        sums = np.add.reduceat(np.abs(values), np.arange(0, values.size, BUCKET), dtype=np.float64)
        counts = np.full(buckets, BUCKET)
        counts[-1] = values.size - (buckets - 1) * BUCKET
        scales = (sums / counts).astype("<f4")
        out[: 4 * buckets] = scales.view(np.uint8)
        out[4 * buckets :] = np.packbits(values >= 0, bitorder="little")
        return bool(np.isfinite(scales).all())

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Write the signed scales; say whether all are finite."""
        buckets = -(-out.size // BUCKET)
        scales = np.frombuffer(payload[: 4 * buckets], "<f4")
        packed = np.frombuffer(payload[4 * buckets :], np.uint8)
        if not (scales >= 0).all():
            raise TensorError(f"a scale is {scales[~(scales >= 0)][0]}; it must be 0 or more")
        if out.size % 8 and packed[-1] >> out.size % 8:
            raise TensorError("there are bits behind the last value")
        signs = np.unpackbits(packed, count=out.size, bitorder="little").view(np.int8)
        signs += signs
        signs -= 1
        whole = out.size - out.size % BUCKET
        rows = out[:whole].reshape(-1, BUCKET)
        np.multiply(signs[:whole].reshape(rows.shape), scales[: len(rows), None], out=rows)
        np.multiply(signs[whole:], scales[-1], out=out[whole:])
        return bool(np.isfinite(scales).all())
