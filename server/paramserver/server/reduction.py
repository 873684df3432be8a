"""Where whole contributions wait for their turn, and how those of one update become one gradient.

A contribution is held as views of the messages that brought it, or of the memory that its worker shares, block by
block. Only whole and checked contributions come here: what a worker that died or lied had sent never did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from paramserver.wire.codecs import add_up
from paramserver.wire.layout import Array

#: Contributions that are added to the sum while a block of it is in cache: with each by itself, the sum would be read
#: and written once for every one of them. So eight workers are added up in the pass that applies their sum.
AT_ONCE = 7

#: Arrays of one block whose sum, from first to last, is the gradient's; one or more. All but a sum may be halves.
Terms = list[Array]


def sum_up(terms: Terms, out: Array) -> None:
    """Write the sum of the terms, from first to last, to `out`."""
    if terms[-1].dtype == out.dtype and len(terms) > 1:
        np.add(terms[0], terms[1], out=out)
        for values in terms[2:]:
            np.add(out, values, out=out)
        return
    for number, values in enumerate(terms):
        add_up(values, out, number == 0)


class Reduction(Protocol):
    """Holds contributions and hands out those that make an update."""

    def hold(self, shard: int, blocks: list[Array], is_lent: bool = False, /) -> None:
        """Take the shard's next contribution by reference; it stays as it is until it was taken.

        What is lent lies in its worker's memory, and takes none of this process however long it is kept.
        """

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return, for every block, what of the contributions of `shards` is left to add up, and start anew."""


class RoundSum:
    """The sum over all shards, always in shard order, so that the bits do not depend on the order of arrival.

    Contributions that take memory are added to the sum when those of all lower shards are, `AT_ONCE` in one pass over
    it, so that at most so many and the early ones do. Those that are lent, and the last ones, are left to `take`: added
    up while a block of the sum is in cache for the update, each is read from memory once, and the sum never goes there.
    """

    def __init__(self, shards: int, size: int, block: int, dtype: np.dtype[np.generic]) -> None:
        self._shards = shards
        self._size = size
        self._dtype = dtype
        #: Made when the first contributions are added up.
        self._sum: Array | None = None
        self._places = [slice(start, min(start + block, size)) for start in range(0, size, block)]
        #: How many shards are added up in `_partial`.
        self._added = 0
        #: What is added up so far, per block: slices of `_sum`.
        self._partial: list[Array] = []
        #: Contributions that wait for others, or for the last one.
        self._early: dict[int, list[Array]] = {}

    def hold(self, shard: int, blocks: list[Array], is_lent: bool = False) -> None:
        """Take a contribution and add up what has its turn, if that frees memory."""
        self._early[shard] = blocks
        while not is_lent and (turn := self._next_turn()):
            self._add_up([self._early.pop(shard) for shard in turn])

    def _next_turn(self) -> range:
        """Return the shards to be added up now, which are in; none if it is not worth it yet."""
        # To the first contribution, which is no sum yet, as many are added as to a sum.
        turn = range(self._added, self._added + AT_ONCE + (self._added == 0))
        return turn if turn.stop < self._shards and all(shard in self._early for shard in turn) else range(0)

    def _add_up(self, contributions: list[list[Array]]) -> None:
        if self._sum is None:
            self._sum = np.full(self._size, 0, self._dtype)
        sums = [self._sum[place] for place in self._places]
        before = [self._partial] if self._partial else []
        for total, *terms in zip(sums, *before, *contributions, strict=True):
            sum_up(terms, total)
        self._partial = sums
        self._added += len(contributions)

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return the sum of the round so far and what is left to add.

        `shards`, in order, are all of them, or those that are behind while the others wait for them to catch up.
        """
        left = [self._early.pop(shard) for shard in shards if shard >= self._added and shard in self._early]
        if self._added + len(left) != len(shards) or self._early:
            raise AssertionError(f"a round of {len(shards)} shards was applied before all contributions were in")
        terms = [list(block) for block in zip(*([self._partial] if self._partial else []), *left, strict=True)]
        self._added, self._partial = 0, []
        return terms


class Separate:
    """Every contribution is kept by itself until it is known which ones make an update together.

    Where a round is made of several, this takes the memory of a whole gradient for each.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[Array]] = {}

    def hold(self, shard: int, blocks: list[Array], _is_lent: bool = False, /) -> None:
        """Keep the contribution for `take`."""
        self._held[shard] = blocks

    def held(self, shard: int) -> list[Array]:
        """Return the contribution of a shard that was not taken yet."""
        return self._held[shard]

    def take(self, shards: Sequence[int]) -> list[Terms]:
        """Return, for every block, that of each of these contributions in the order given."""
        return [list(terms) for terms in zip(*(self._held.pop(shard) for shard in shards), strict=True)]
