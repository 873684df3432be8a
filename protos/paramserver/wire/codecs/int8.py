"""int8 with stochastic rounding: one byte for a value, right on average.

Every bucket of 1024 values has a scale, its largest magnitude. A value becomes one of the 255 levels k · scale / 127,
the one below or the one above it, at random such that the mean over many draws is the value itself. The random bits are
a pure function of seed, shard, step and place: whoever computes a contribution again sends the same bytes.

Bytes of n values: ⌈n/1024⌉ scales as float32, then n levels as int8.

Source: QSGD (Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", 2017, section
3), with buckets and the largest magnitude for the norm as in its experiments, and without its entropy code.

Warning: the error of a value is up to scale / 127, so a bucket with one large value blurs its small ones. The variance
that this adds to the gradient does not shrink as training converges on a fixed learning rate. Levels of a scale below
2⁻¹¹² (2e-34) are denormal, and as coarse as those are.
"""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs.codec import Origin
from paramserver.wire.errors import TensorError
from paramserver.wire.layout import Array

#: Values that share a scale; divides the grid.
BUCKET = 1024

LEVELS = 127

#: Values that are worked on together, in cache; a whole number of buckets.
_BLOCK = 32 * BUCKET

#: In the upper half of the key: keeps these bits apart from those that order the batches.
_KEY = 1 << 63


class Int8:
    """A level of one byte for a value, and a scale for a bucket."""

    block = BUCKET

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        return 4 * -(-count // BUCKET) + count

    def encode(self, values: Array, out: Array, origin: Origin) -> bool:
        """Write scales and levels; say whether all scales are finite."""
        buckets = -(-values.size // BUCKET)
        scales, levels = out[: 4 * buckets].view("<f4"), out[4 * buckets :].view(np.int8)
        draws = uniform(origin, values.size)
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            starts = np.arange(0, block.size, BUCKET)
            largest = np.maximum.reduceat(np.abs(block), starts)
            scales[start // BUCKET :][: largest.size] = largest
            largest[largest == 0] = 1
            # Divided first: the quotient is at most 1, however small or large the scale is.
            with np.errstate(invalid="ignore"):
                ratio = block / np.repeat(largest, BUCKET)[: block.size] * np.float32(LEVELS)
                below = np.floor(ratio)
                below += draws[start : start + _BLOCK] < ratio - below
                np.copyto(levels[start : start + _BLOCK], below, casting="unsafe")
        return bool(np.isfinite(scales).all())

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Write level · scale / 127; say whether all values are finite."""
        buckets = -(-out.size // BUCKET)
        scales = np.frombuffer(payload[: 4 * buckets], "<f4")
        levels = np.frombuffer(payload[4 * buckets :], np.int8)
        if not (scales >= 0).all():
            raise TensorError(f"a scale is {scales[~(scales >= 0)][0]}; it must be 0 or more")
        if levels.min() < -LEVELS:
            raise TensorError(f"a level is {levels.min()}; allowed are {-LEVELS} to {LEVELS}")
        step = scales / np.float32(LEVELS)
        whole = out.size - out.size % BUCKET
        rows = out[:whole].reshape(-1, BUCKET)
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(levels[:whole].reshape(rows.shape), step[: len(rows), None], out=rows)
            np.multiply(levels[whole:], step[-1], out=out[whole:])
            return bool(np.isfinite(step * np.float32(LEVELS)).all())


def uniform(origin: Origin, count: int) -> Array:
    """Return numbers from [0, 1): float32, multiples of 2⁻²⁴, shape (count,).

    Number i of the flat vector is the upper 24 bits of half i mod 2 (lower half first) of word ⌊i/2⌋ of Philox4x64-10
    with the key (seed · 2³² + shard, 2⁶³ + step).
    """
    key = np.array([(origin.seed << 32) | origin.shard, _KEY | origin.step], dtype=np.uint64)
    # A counter gives four words, which are eight numbers.
    philox = np.random.Philox(key=key, counter=np.array([origin.offset // 8, 0, 0, 0], dtype=np.uint64))
    words = philox.random_raw(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
    np.right_shift(words, 8, out=words)
    numbers: Array = np.multiply(words, np.float32(2.0**-24), dtype=np.float32)
    return numbers
