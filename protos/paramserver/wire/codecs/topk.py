"""The few largest values and where they are; the rest is for the sender to keep.

Out of every block of 65536 values the ⌈density · n⌉ of largest magnitude are sent as they are; of equal magnitudes the
first ones. Blocks lie on a fixed grid of the flat vector, so the choice does not depend on how it is cut further.

Bytes of n values: block after block, k values as float32, then their k places within the block as uint16, rising.

Source: Lin et al., "Deep Gradient Compression", 2018, section 3.1, with an exact choice per block in place of a sampled
threshold per layer.

Warning: a block whose gradients are all small sends its share nevertheless, so of a layer that matters more too few are
sent. Without feedback of what was kept back, training does not converge.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paramserver.wire.codecs.codec import GRID, Origin
from paramserver.wire.errors import TensorError
from paramserver.wire.layout import Array

_VALUE, _PLACE = 4, 2


class TopK:
    """The `density` largest of every block, 0 < density ≤ 1."""

    block = GRID

    def __init__(self, density: float) -> None:
        self._density = density

    def kept(self, count: int) -> int:
        """Return how many of so many values of one block are sent."""
        return min(count, int(np.ceil(self._density * count)))

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""
        blocks, rest = divmod(count, GRID)
        return (blocks * self.kept(GRID) + self.kept(rest)) * (_VALUE + _PLACE)

    def encode(self, values: Array, out: Array, _origin: Origin | None = None) -> bool:
        """Write values and places; say whether all values are finite."""
        finite = True
        for block, coded in self._blocks(values, out):
            k = self.kept(block.size)
            places = largest(block, k)
            chosen = block[places]
            coded[: _VALUE * k] = chosen.view(np.uint8)
            coded[_VALUE * k :] = places.astype("<u2").view(np.uint8)
            finite = finite and bool(np.isfinite(chosen).all())
        return finite

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Write the values to their places and 0 to all others; say whether all are finite."""
        out[:] = 0
        finite = True
        for block, coded in self._blocks(out, np.frombuffer(payload, np.uint8)):
            k = self.kept(block.size)
            values, places = np.frombuffer(coded[: _VALUE * k], "<f4"), np.frombuffer(coded[_VALUE * k :], "<u2")
            if places[-1] >= block.size or not (places[1:] > places[:-1]).all():
                raise TensorError(f"the places of {k} out of {block.size} values are not rising from 0 to below that")
            block[places] = values
            finite = finite and bool(np.isfinite(values).all())
        return finite

    def _blocks(self, values: Array, coded: Array) -> Iterator[tuple[Array, Array]]:
        begin = 0
        for start in range(0, values.size, GRID):
            block = values[start : start + GRID]
            end = begin + self.nbytes(block.size)
            yield block, coded[begin:end]
            begin = end


def largest(values: Array, k: int) -> Array:
    """Return the places of the k values of largest magnitude, rising; of equal ones the first. int64, shape (k,)."""
    magnitudes = np.abs(values)
    # The k-th largest is one number whatever algorithm finds it; which of its equals a partition puts first is not.
    threshold = np.partition(magnitudes, values.size - k)[values.size - k]
    above = np.flatnonzero(magnitudes > threshold)
    equal = np.flatnonzero(magnitudes == threshold)[: k - above.size]
    return np.sort(np.concatenate([above, equal]))
