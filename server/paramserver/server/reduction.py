"""Where contributions wait for their turn, and how those of one update become one gradient.

Chunks are kept as views of the messages that brought them, until they are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from paramserver.wire.layout import Array

#: Arrays of one chunk whose sum, from first to last, is the gradient's; one or more.
Terms = list[Array]


class Reduction(Protocol):
    """Collects chunks of contributions and hands out those that make an update."""

    def add(self, shard: int, index: int, values: Array) -> None:
        """Take chunk `index` of the shard's next contribution; chunks of one contribution come in order."""

    def hold(self, shard: int, contribution: Array) -> None:
        """Take a whole contribution by reference; it stays where it is until it was taken."""

    def drop(self, shard: int) -> None:
        """Forget what came of the shard's unfinished contribution, if that is safe to forget."""

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return, for every chunk, what of the contributions of `shards` is left to add up, and start anew."""


class RoundSum:
    """The sum over all shards, chunk by chunk, always in shard order.

    A chunk is added as soon as those of all lower shards are, so that most are added while still in cache, and the
    bits do not depend on the order of arrival. A chunk that is in stays in when its worker dies: the contribution is
    a pure function of (shard, step), so whoever takes the shard over sends the same bits.
    """

    def __init__(self, shards: int, size: int, chunk: int, dtype: np.dtype[np.generic]) -> None:
        self._shards = shards
        self._chunk = chunk
        self._size = size
        self._dtype = dtype
        #: Made when the first two chunks are added up; contributions in shared memory need none.
        self._sum: Array | None = None
        count = -(-size // chunk)
        #: The next shard to be added, per chunk.
        self._next = [0] * count
        #: What is added up so far, per chunk: a received view, or a slice of `_sum`.
        self._partial: list[Array | None] = [None] * count
        #: Chunks that came before their turn, by (chunk, shard).
        self._early: dict[tuple[int, int], Array] = {}

    def add(self, shard: int, index: int, values: Array) -> None:
        """Take a chunk; one that is in already is the same bits again and is passed over."""
        turn = self._next[index]
        if shard != turn:
            if shard > turn:
                self._early.setdefault((index, shard), values)
            return
        chunk: Array | None = values
        while chunk is not None:
            partial = self._partial[index]
            if partial is None:
                self._partial[index] = chunk
            else:
                if self._sum is None:
                    self._sum = np.full(self._size, 0, self._dtype)
                start = index * self._chunk
                out = self._sum[start : start + chunk.size]
                np.add(partial, chunk, out=out)
                self._partial[index] = out
            turn += 1
            chunk = self._early.pop((index, turn), None)
        self._next[index] = turn

    def hold(self, shard: int, contribution: Array) -> None:
        """Keep the chunks for `take`: they are read where they lie, once, when everything else is in."""
        for index in range(len(self._next)):
            start = index * self._chunk
            self._early.setdefault((index, shard), contribution[start : start + self._chunk])

    def drop(self, shard: int) -> None:
        """Keep everything: the next holder of the shard sends the same bits."""

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return the terms of the round; `shards`, in order, are all of them or all that are not ahead of the round."""
        chunks = []
        for index, (turn, partial) in enumerate(zip(self._next, self._partial, strict=True)):
            rest = [self._early.get((index, shard)) for shard in shards if shard >= turn]
            terms = [term for term in (partial, *rest) if term is not None]
            if turn + len(rest) != len(shards) or len(terms) != len(rest) + (turn > 0):
                raise AssertionError(f"a round of {len(shards)} shards was applied before all chunks were in")
            chunks.append(terms)
        self._partial = [None] * len(chunks)
        self._next = [0] * len(chunks)
        self._early.clear()
        return chunks


class Separate:
    """Every contribution is kept by itself until it is known which ones make an update together.

    Where rounds close on some of the shards, this takes the memory of a whole gradient per shard.
    """

    def __init__(self, size: int, chunk: int) -> None:
        self._chunk = chunk
        self._count = -(-size // chunk)
        self._chunks: dict[int, list[Array]] = {}

    def add(self, shard: int, index: int, values: Array) -> None:
        """Take a chunk; the first one starts the contribution anew."""
        if index == 0:
            self._chunks[shard] = []
        self._chunks[shard].append(values)

    def hold(self, shard: int, contribution: Array) -> None:
        """Keep the contribution for `take`."""
        starts = range(0, contribution.size, self._chunk)
        self._chunks[shard] = [contribution[start : start + self._chunk] for start in starts]

    def drop(self, shard: int) -> None:
        """Forget an unfinished contribution; a finished one may be waiting for its round."""
        if len(self._chunks.get(shard, ())) < self._count:
            self._chunks.pop(shard, None)

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return, for every chunk, that of each of these contributions in the order given."""
        return [list(terms) for terms in zip(*(self._chunks.pop(shard) for shard in shards), strict=True)]
