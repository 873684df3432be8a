"""Contributions as they travel, for a job whose pushes have a codec."""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs import Codec, Origin
from paramserver.wire.errors import TaskError
from paramserver.wire.layout import Array, Layout

#: A piece of a contribution: index of its first element, and its bytes.
Piece = tuple[int, Array]


class Encoder:
    """Encodes contributions chunk by chunk; `chunk` is in elements."""

    def __init__(self, codec: Codec, layout: Layout, chunk: int, seed: int) -> None:
        self._codec = codec
        self._layout = layout
        self._seed = seed
        self._places = [(start, min(start + chunk, layout.size)) for start in range(0, layout.size, chunk)]

    def encode(self, flat: Array, shard: int, step: int) -> list[Piece]:
        """Return the encoded chunks of a contribution.

        Raises:
            TaskError: if a value is beyond what the codec can hold.
        """
        coded = np.empty(sum(self._codec.nbytes(stop - start) for start, stop in self._places), np.uint8)
        pieces, begin = [], 0
        for start, stop in self._places:
            end = begin + self._codec.nbytes(stop - start)
            origin = Origin(self._seed, shard, step, start)
            if not self._codec.encode(flat[start:stop], coded[begin:end], origin):
                raise TaskError(f"shard {shard}, step {step}: {self._overflow(flat, coded[begin:end], start)}")
            pieces.append((start, coded[begin:end]))
            begin = end
        return pieces

    def decode(self, pieces: list[Piece], out: Array) -> None:
        """Write the values that the server will read out of the pieces."""
        for (start, stop), (_, coded) in zip(self._places, pieces, strict=True):
            self._codec.decode(coded.data, out[start:stop])

    def _overflow(self, flat: Array, coded: Array, start: int) -> str:
        """Say which value of a chunk became infinite."""
        values = np.empty_like(flat[start : start + self._places[0][1]])
        self._codec.decode(coded.data, values)
        index = start + int(np.argmax(~np.isfinite(values)))
        name, element = self._layout.locate(index)
        return (
            f"the gradient's sum over the batch is {flat[index]:g} at element {element} of {name!r}, beyond what"
            " wire.push can hold; use 'full' or a smaller batch"
        )
