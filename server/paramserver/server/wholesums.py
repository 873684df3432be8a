"""Sums over whole vectors of which this server may hold a part only, with the same bits for any number of servers.

Squares are summed in the blocks of `optimizers.norms`, and the blocks' sums in their order. A part that is cut between
blocks sums its own; parts of a θ that was too small for that hand over what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import accumulate, combinations
from typing import NamedTuple, TypeVar

import numpy as np

from paramserver.server.optimizers.norms import NORM_BLOCK, block_squares
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout

T = TypeVar("T")


class Question(NamedTuple):
    """What has to be known of whole vectors, given this server's part of each: their sums of squares.

    Its answer is float64, of shape (vectors,), or (pairs,) or (vectors · tensors of the whole layout,).
    """

    vectors: Sequence[Array] | Array
    #: Instead, of the differences of every two: (0, 1), (0, 2), … (1, 2), …
    of_pairs: bool = False
    #: Tensor by tensor.
    by_tensor: bool = False

    def material(self, layout: Layout) -> Array:
        """Return what this server, which holds `layout`, contributes to the answer: one row for each number wanted, or
        for each vector."""
        return self._blocks(layout, self.vectors) if layout.is_on_grid else np.stack(list(self.vectors))

    def answer(self, layout: Layout, parts: Sequence[Array], rows: Sequence[float] = ()) -> Array:
        """Return the answer; `parts` are the material of all servers in their order, `layout` is that of any.

        `rows` are added to each number: what adds up to the sum of squares of the rows of tables beside the vector.
        """
        whole = np.concatenate(parts, axis=1)
        sums = whole if layout.is_on_grid else self._blocks(layout.whole, whole)
        ends: list[int] = []
        if self.by_tensor:
            counts = (-(-tensor.size // NORM_BLOCK) for tensor in layout.whole.tensors)
            ends = list(accumulate(counts))[:-1]
        with np.errstate(over="ignore"):
            found = np.array([np.add.reduce(own) for row in sums for own in np.split(row, ends)], np.float64)
            return found + math.fsum(rows)

    def alone(self, layout: Layout, rows: Sequence[float] = ()) -> Array:
        """Return the answer where this server holds all."""
        return self.answer(layout, [self.material(layout)], rows)

    def _blocks(self, layout: Layout, vectors: Sequence[Array] | Array) -> Array:
        """Return the sums of the blocks, shape (rows, blocks)."""
        rows = []
        for pair in combinations(vectors, 2) if self.of_pairs else ((vector,) for vector in vectors):
            own = [_squares(*(v[t.offset : t.offset + t.size] for v in pair)) for t in layout.tensors]
            rows.append(np.concatenate(own) if own else np.empty(0))
        return np.stack(rows)


#: A computation that asks and is sent the answers.
Asking = Generator[Question, Array, T]


def alone(asking: Asking[T], layout: Layout, answer: Array | None = None, rows: Sequence[float] = ()) -> T:
    """Carry a computation out where this server holds all of θ, or has the answer to the last question.

    `rows` are those of `Question.answer`: jobs with tables ask for the norm of the whole gradient and nothing else.
    """
    try:
        question = next(asking) if answer is None else asking.send(answer)
        while True:
            question = asking.send(question.alone(layout, rows))
    except StopIteration as end:
        found: T = end.value
        return found


def measures(job: Job) -> bool:
    """Say whether a job needs the norm of every gradient."""
    return job.optimizer.clip_norm > 0 or job.stop.tolerance > 0


def questions(job: Job) -> int:
    """Return how many questions every update of a job asks."""
    train, optimizer = job.train, job.optimizer
    return sum(
        (
            train.clip_contribution > 0,
            train.aggregate in ("krum", "multi_krum"),
            measures(job),
            optimizer.name in ("lars", "lamb"),
        )
    )


def _squares(values: Array, other: Array | None = None) -> Array:
    """Return the sums of squares of the blocks of a tensor, or of its difference to another one."""
    if other is None:
        return block_squares(values)
    sums = np.empty(-(-values.size // NORM_BLOCK), np.float64)
    for index in range(sums.size):
        place = slice(index * NORM_BLOCK, (index + 1) * NORM_BLOCK)
        difference = values[place].astype(np.float64) - other[place]
        # What is so far away that this is infinite is never chosen.
        with np.errstate(over="ignore"):
            sums[index] = np.add.reduce(difference * difference)
    return sums
