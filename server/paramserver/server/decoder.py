"""Contributions as they arrive, for a job whose pushes have a codec. Trusts no byte of them."""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs import covering, decode_chunk, halves, push_codec
from paramserver.wire.codecs.powersgd import PowerSGD
from paramserver.wire.errors import TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, is_finite, read_values


class Decoder:
    """Reads chunk by chunk; what a push of a step must look like follows from the job alone.

    To a part of θ more may travel than it holds, see `covering`.
    """

    def __init__(self, job: Job, layout: Layout) -> None:
        self._wire = job.wire
        self._layout = layout
        self._codec = push_codec(job.wire)
        #: The same, if values may stay as they came.
        self._halves = halves(job.wire.push)
        self._low_rank = PowerSGD(layout, job.wire.rank) if job.wire.push == "powersgd" else None
        place = covering(layout, self._codec) if self._low_rank is None else self._low_rank.needed()
        #: Elements that travel of a push that is not exact.
        self._size = place.stop - place.start
        #: How many of them lie before those that this part holds.
        self._before = layout.start - place.start if self._low_rank is None else 0

    def size(self, step: int) -> int:
        """Return the number of elements that travel."""
        return self._layout.size if self._in_full(step) else self._size

    def start(self, step: int) -> int:
        """Return where in the whole vector the first of them is."""
        return self._layout.start if self._in_full(step) else self._layout.start - self._before

    def nbytes(self, step: int) -> int:
        """Return the number of bytes that travel, which chunks of whole blocks of the codec do not change."""
        size = self.size(step)
        if self._codec is None or self._in_full(step):
            return size * self._layout.dtype.itemsize
        return self._codec.nbytes(size)

    def read(
        self, payload: memoryview, offset: int, step: int, chunk: int, as_halves: bool = False
    ) -> tuple[Array, bool]:
        """Return the chunk at an offset, of `chunk` elements or what is left, and whether all its values are finite;
        `as_halves` if so, and they are any.

        Raises:
            TensorError: if there is no such chunk, or its bytes mean nothing.
        """
        size = self.size(step)
        if self._codec is None or self._in_full(step):
            values = read_values(payload, self._layout.dtype, offset, size)
            finite = is_finite(values)
            if not finite and not self._in_full(step):
                # Only of the gradient itself can it be said which tensor is meant.
                raise TensorError("a factor is not finite")
            return values, finite
        as_they_came = self._halves if as_halves else None
        return decode_chunk(self._codec, payload, min(chunk, size - offset), as_they_came)

    def whole(self, chunks: list[Array], step: int) -> list[Array]:
        """Return the contribution that all chunks which arrived stand for, in one or more pieces.

        Raises:
            TensorError: if a value is not finite.
        """
        if self._in_full(step):
            return chunks
        if self._low_rank is None:
            if self._size == self._layout.size:
                return chunks
            return [np.concatenate(chunks)[self._before : self._before + self._layout.size]]
        flat = np.empty(self._layout.size, np.float32)
        self._low_rank.decode(np.concatenate(chunks), flat)
        if not is_finite(flat):
            raise TensorError("the product of the factors is not finite")
        return [flat]

    def _in_full(self, step: int) -> bool:
        return self._wire.keeps_back and self._wire.is_exact(step)
