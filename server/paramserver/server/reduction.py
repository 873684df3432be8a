"""Where contributions wait for their turn, and how those of one update become one gradient.

Chunks are kept as views of the messages that brought them, until they are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from paramserver.wire.layout import Array


class Reduction(Protocol):
    """Collects chunks of contributions and hands out the sum of those that make an update."""

    def add(self, shard: int, index: int, values: Array) -> None:
        """Take chunk `index` of the shard's next contribution; chunks of one contribution come in order."""

    def drop(self, shard: int) -> None:
        """Forget what came of the shard's unfinished contribution, if that is safe to forget."""

    def take(self, shards: Sequence[int]) -> Iterator[Array]:
        """Yield the summed chunks of the finished contributions of `shards`, and start anew."""


class RoundSum:
    """The sum over all shards, chunk by chunk, always in shard order.

    A chunk is added as soon as those of all lower shards are, so that most are added while still in cache, and the
    bits do not depend on the order of arrival. A chunk that is in stays in when its worker dies: the contribution is
    a pure function of (shard, step), so whoever takes the shard over sends the same bits.
    """

    def __init__(self, shards: int, size: int, chunk: int, dtype: np.dtype[np.generic]) -> None:
        self._shards = shards
        self._chunk = chunk
        # With one shard the sum is the contribution itself, and nothing is added up.
        self._sum: Array = np.full(size if shards > 1 else 0, 0, dtype)
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
                start = index * self._chunk
                out = self._sum[start : start + chunk.size]
                np.add(partial, chunk, out=out)
                self._partial[index] = out
            turn += 1
            chunk = self._early.pop((index, turn), None)
        self._next[index] = turn

    def drop(self, shard: int) -> None:
        """Keep everything: the next holder of the shard sends the same bits."""

    def take(self, shards: Sequence[int]) -> Iterator[Array]:
        """Yield the sums of the round; `shards` are all of them."""
        if len(shards) != self._shards or any(turn != self._shards for turn in self._next):
            raise AssertionError(f"a round of {len(shards)} shards was applied before all chunks were in")
        for index, partial in enumerate(self._partial):
            assert partial is not None
            yield partial
            self._partial[index] = None
            self._next[index] = 0


class Separate:
    """Every contribution is kept by itself until it is known which ones make an update together.

    Takes the memory of a whole gradient per shard.
    """

    def __init__(self, size: int, chunk: int) -> None:
        self._count = -(-size // chunk)
        self._chunks: dict[int, list[Array]] = {}

    def add(self, shard: int, index: int, values: Array) -> None:
        """Take a chunk; the first one starts the contribution anew."""
        if index == 0:
            self._chunks[shard] = []
        self._chunks[shard].append(values)

    def drop(self, shard: int) -> None:
        """Forget an unfinished contribution; a finished one may be waiting for its round."""
        if len(self._chunks.get(shard, ())) < self._count:
            self._chunks.pop(shard, None)

    def take(self, shards: Sequence[int]) -> Iterator[Array]:
        """Yield the sums of these contributions, added in the order given."""
        for first, *others in zip(*self.take_apart(shards), strict=True):
            total = first
            for chunk in others:
                total = np.add(total, chunk, out=None if total is first else total)
            yield total

    def take_apart(self, shards: Sequence[int]) -> list[list[Array]]:
        """Return the chunks of each of these contributions, and forget them."""
        return [self._chunks.pop(shard) for shard in shards]
