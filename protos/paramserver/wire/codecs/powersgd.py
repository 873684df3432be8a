"""Matrices as products of two thin ones, found by one step of power iteration.

A tensor of two or more dimensions is the matrix M of its first dimension n by all others m. With Q, of shape (m, r), of
the step before

    P = orthonormal columns of M·Q,   Q = Mᵀ·P,   and M comes out as P·Qᵀ.

It travels as P and Q if r · (n + m) < n · m for r = min(rank, n, m); whatever else there is travels as it is. The coded
vector is float32: tensor by tensor in the order of the layout, P then Q, both in C order, or the tensor itself.

Source: Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", 2019,
algorithm 1.

Warning: there P and Q are averaged over all workers, here every contribution has its own, and the server adds up the
products. That is closer to the sum of the gradients, but the server's work and the bytes to it grow with the shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from paramserver.wire.layout import Array, Layout, Tensor

#: In the upper half of the key: keeps these bits apart from others that a job draws.
_KEY = 1 << 62


class Factors(NamedTuple):
    """The sizes of a tensor that travels as two matrices."""

    n: int
    m: int
    rank: int


class PowerSGD:
    """The codec of a layout, or of a part of one; encodes the whole flat vector, decodes that part.

    Of a tensor that travels as two matrices a part needs both whole, of others only what it holds.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self._tensors = [(tensor, _factors(tensor, rank)) for tensor in layout.whole.tensors]
        #: Elements of the coded vector, at most those of the layout.
        self.size = sum(t.size if f is None else f.rank * (f.n + f.m) for t, f in self._tensors)
        self._start, self._stop = layout.start, layout.start + layout.size

    def needed(self) -> slice:
        """Return the range of the coded vector that `decode` wants."""
        ranges = [place for _, _, place, first, last in self._held() if first < last]
        return slice(ranges[0].start, ranges[-1].stop) if ranges else slice(0, 0)

    def first_q(self, seed: int) -> list[Array]:
        """Return the matrices Q to begin with, the same for every shard: float32 from [−1, 1), shapes (m, r)."""
        found = []
        for number, (_, f) in enumerate(self._tensors):
            if f is not None:
                key = np.array([seed, _KEY | number], dtype=np.uint64)
                words = np.random.Philox(key=key).random_raw(f.m * f.rank) >> np.uint64(40)
                found.append((words.astype(np.float32) * np.float32(2.0**-23) - 1).reshape(f.m, f.rank))
        return found

    def encode(self, flat: Array, qs: list[Array]) -> tuple[Array, list[Array]]:
        """Return the coded vector and the matrices Q for the next step."""
        coded, new_qs, remaining = np.empty(self.size, np.float32), [], iter(qs)
        for tensor, f, part in self._parts(coded):
            values = flat[tensor.offset : tensor.offset + tensor.size]
            if f is None:
                part[:] = values
                continue
            matrix = values.reshape(f.n, f.m)
            before = next(remaining)
            p = orthonormal(matrix @ before)
            q = matrix.T @ p
            part[: p.size], part[p.size :] = p.ravel(), q.ravel()
            # From a column of zeros no later step would find its way.
            new_qs.append(np.where(q.any(axis=0), q, before))
        return coded, new_qs

    def decode(self, coded: Array, out: Array) -> None:
        """Write what the needed range of the coded vector, which is finite, stands for."""
        begin = self.needed().start
        for tensor, f, place, first, last in self._held():
            if first == last:
                continue
            part = coded[place.start - begin : place.stop - begin]
            values = out[tensor.offset + first - self._start : tensor.offset + last - self._start]
            if f is None:
                values[:] = part
                continue
            p, q = part[: f.n * f.rank].reshape(f.n, f.rank), part[f.n * f.rank :].reshape(f.m, f.rank)
            top, bottom = first // f.m, -(-last // f.m)
            is_whole_rows = (first, last) == (top * f.m, bottom * f.m)
            matrix = values.reshape(-1, f.m) if is_whole_rows else np.empty((bottom - top, f.m), out.dtype)
            # Column by column, so that the bits depend on no library's way of multiplying matrices.
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(p[top:bottom, 0, None], q[:, 0], out=matrix)
                for column in range(1, f.rank):
                    matrix += p[top:bottom, column, None] * q[:, column]
            if not is_whole_rows:
                values[:] = matrix.ravel()[first - top * f.m : last - top * f.m]

    def _held(self) -> Iterator[tuple[Tensor, Factors | None, slice, int, int]]:
        """Yield the tensors with what of the coded vector their part needs, and which elements of them it holds."""
        begin = 0
        for tensor, f in self._tensors:
            first = min(max(self._start - tensor.offset, 0), tensor.size)
            last = max(first, min(self._stop - tensor.offset, tensor.size))
            end = begin + (tensor.size if f is None else f.rank * (f.n + f.m))
            yield tensor, f, slice(begin + first, begin + last) if f is None else slice(begin, end), first, last
            begin = end

    def _parts(self, coded: Array) -> Iterator[tuple[Tensor, Factors | None, Array]]:
        begin = 0
        for tensor, f in self._tensors:
            end = begin + (tensor.size if f is None else f.rank * (f.n + f.m))
            yield tensor, f, coded[begin:end]
            begin = end


def orthonormal(matrix: Array) -> Array:
    """Return orthonormal columns that span those of the matrix, by Gram and Schmidt; a dependent one becomes 0.

    Computed in float64, returned in float32.
    """
    columns = matrix.astype(np.float64)
    for i in range(columns.shape[1]):
        column = columns[:, i]
        before = float(np.sqrt(np.sum(column * column)))
        # Twice, since what once leaves over of nearly dependent columns is not yet orthogonal.
        for _ in range(2):
            for j in range(i):
                column -= np.sum(columns[:, j] * column) * columns[:, j]
        norm = float(np.sqrt(np.sum(column * column)))
        column *= 1 / norm if norm > 1e-6 * before and math.isfinite(norm) else 0.0
    return columns.astype(np.float32)


def _factors(tensor: Tensor, rank: int) -> Factors | None:
    if len(tensor.shape) < 2 or tensor.size == 0:
        return None
    n, m = tensor.shape[0], tensor.size // tensor.shape[0]
    f = Factors(n, m, min(rank, n, m))
    return f if f.rank * (f.n + f.m) < n * m else None
