"""Contributions as they travel, for a job whose pushes have a codec."""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs import Codec, Origin
from paramserver.wire.codecs.bfloat16 import BFloat16
from paramserver.wire.codecs.float16 import Float16
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
            self._codec.encode(flat[start:stop], coded[begin:end], Origin(self._seed, shard, step, start))
            pieces.append((start, coded[begin:end]))
            begin = end
            if isinstance(self._codec, BFloat16 | Float16):
                self._check(self._codec, pieces[-1], flat, f"shard {shard}, step {step}")
        return pieces

    def decode(self, pieces: list[Piece], out: Array) -> None:
        """Write the values that the server will read out of the pieces."""
        for (start, stop), (_, coded) in zip(self._places, pieces, strict=True):
            self._codec.decode(coded.data, out[start:stop])

    def _check(self, half: BFloat16 | Float16, piece: Piece, flat: Array, what: str) -> None:
        offset, coded = piece
        magnitudes = coded.view(np.uint16) & np.uint16(0x7FFF)
        if magnitudes.max() >= half.infinity:
            index = offset + int(np.argmax(magnitudes >= half.infinity))
            name, element = self._layout.locate(index)
            raise TaskError(
                f"{what}: the gradient's sum over the batch is {flat[index]:g} at element {element} of {name!r}, beyond"
                f" the {half.largest:g} that wire.push can hold; use 'full' or a smaller batch"
            )
