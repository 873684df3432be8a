"""Contributions as they arrive, for a job whose pushes have a codec. Trusts no byte of them."""

from __future__ import annotations

import numpy as np

from paramserver.wire.codecs import decode_chunk, push_codec
from paramserver.wire.codecs.powersgd import PowerSGD
from paramserver.wire.errors import TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, is_finite, read_values


class Decoder:
    """Reads chunks of `chunk` elements; what a push of a step must look like follows from the job alone."""

    def __init__(self, job: Job, layout: Layout, chunk: int) -> None:
        self._wire = job.wire
        self._layout = layout
        self._chunk = chunk
        self._codec = push_codec(job.wire)
        self._low_rank = PowerSGD(layout, job.wire.rank) if job.wire.push == "powersgd" else None

    def size(self, step: int) -> int:
        """Return the number of elements that travel."""
        return self._layout.size if self._low_rank is None or self._in_full(step) else self._low_rank.size

    def nbytes(self, step: int) -> int:
        """Return the number of bytes that travel."""
        size = self.size(step)
        if self._codec is None or self._in_full(step):
            return size * self._layout.dtype.itemsize
        whole, rest = divmod(size, self._chunk)
        return whole * self._codec.nbytes(self._chunk) + self._codec.nbytes(rest)

    def read(self, payload: memoryview, offset: int, step: int) -> tuple[Array, bool]:
        """Return the chunk at an offset, and whether all its values are finite.

        Raises:
            TensorError: if there is no such chunk, or its bytes mean nothing.
        """
        size = self.size(step)
        if self._codec is None or self._in_full(step):
            values = read_values(payload, self._layout.dtype, offset, size)
            finite = is_finite(values)
            if not finite and size < self._layout.size:
                # Only of the gradient itself can it be said which tensor is meant.
                raise TensorError("a factor is not finite")
            return values, finite
        return decode_chunk(self._codec, payload, min(self._chunk, size - offset))

    def whole(self, chunks: list[Array], step: int) -> list[Array]:
        """Return the chunks of the contribution that all chunks which arrived stand for.

        Raises:
            TensorError: if a value is not finite.
        """
        if self._low_rank is None or self._in_full(step):
            return chunks
        flat = np.empty(self._layout.size, np.float32)
        self._low_rank.decode(np.concatenate(chunks), flat)
        if not is_finite(flat):
            raise TensorError("the product of the factors is not finite")
        return [flat[start : start + self._chunk] for start in range(0, flat.size, self._chunk)]

    def _in_full(self, step: int) -> bool:
        return self._wire.keeps_back and self._wire.is_exact(step)
