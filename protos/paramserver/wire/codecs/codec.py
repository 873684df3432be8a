"""What turns values into fewer bytes and back, range by range of the flat vector.

A codec knows neither transport nor history: equal arguments give equal bytes, in every process. It works on ranges that
begin at a multiple of `GRID` elements of the flat vector, so that its blocks lie where they lie for the whole vector.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from paramserver.wire.layout import Array

#: Every range that is encoded by itself begins at a multiple of this; a power of two.
GRID = 1 << 16


class Origin(NamedTuple):
    """Which values these are; whoever encodes them again draws the same random bits."""

    seed: int
    shard: int
    step: int
    #: Index of the first value within the flat vector.
    offset: int


class Codec(Protocol):
    """Encodes and decodes ranges of float32 values."""

    #: Values that are encoded together: a range that begins at a multiple of so many is encoded as in the whole vector.
    block: int

    def nbytes(self, count: int) -> int:
        """Return how many bytes so many values become."""

    def encode(self, values: Array, out: Array, origin: Origin) -> bool:
        """Write the encoded values to `out`, uint8 of shape (nbytes(values.size),); say whether all are finite then."""

    def decode(self, payload: memoryview, out: Array) -> bool:
        """Write the values to `out`, float32, and say whether all are finite.

        The payload has nbytes(out.size) bytes, of an untrusted peer.

        Raises:
            TensorError: if the bytes are not what any encoder writes.
        """


class Halves(Codec, Protocol):
    """A codec that makes two bytes of every value by itself, so that the values can be added up as they came."""

    def look(self, payload: memoryview) -> tuple[Array, bool]:
        """Return the values as they came, in two bytes each, and whether all are finite."""

    def add_up(self, halves: Array, out: Array, is_first: bool) -> None:
        """Write such values to `out`, float32, or add them to what is there unless they are the first."""
