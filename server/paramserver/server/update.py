"""One update of θ: adds up what is left to add, clips, and lets the optimizer work, block by block in cache.

Everything is elementwise or summed in a fixed order, so neither blocks nor threads show in the bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from paramserver.server.events import Contribution
from paramserver.server.optimizers import StepInfo, fused, make_optimizer, slice_state
from paramserver.server.optimizers.norms import clip_factor
from paramserver.server.optimizers.optimizer import Layerwise, State, drop_subnormal
from paramserver.server.optimizers.schedule import learning_rate
from paramserver.server.reduction import Terms, sum_up
from paramserver.server.robust import aggregate
from paramserver.server.wholesums import Asking, Question, alone, measures
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, is_finite

#: Corrects a block of the gradient in place: (first element, gradient, θ), blocks in any order and on several threads.
Correct = Callable[[int, Array, Array], None]

#: A thread is worth starting for this many blocks.
BLOCKS_PER_THREAD = 2

#: Of so many blocks, one thread has seen whether all is finite before another one has been woken.
CHECKED_ALONE = 8

#: After so many updates, counted from the first, what they remember is rid of subnormal numbers: often enough that few
#: are about, and too rarely to cost much.
SWEEPS_EVERY = 16

#: numpy lets go of the interpreter lock, so two threads use two memory channels; more rarely help.
MAX_THREADS = min(4, os.cpu_count() or 1)


class Update:
    """Applies a job's optimizer to a flat θ in blocks of `block` elements; owns the optimizer's state."""

    def __init__(self, job: Job, layout: Layout, block: int, total_steps: int, fuse: bool = fused.AVAILABLE) -> None:
        self._job = job
        self._layout = layout
        self._block = block
        self._total_steps = total_steps
        self._optimizer = make_optimizer(job.optimizer, fuse, halves=job.wire.push == "bf16")
        self.state = self._optimizer.init(layout.size, layout.dtype)
        self._is_finite = fused.finite_check(layout.dtype) if self._optimizer.is_compiled else is_finite
        starts = range(0, layout.size, block)
        #: Where each block lies in the flat vector.
        self._places = [slice(start, min(start + block, layout.size)) for start in starts]
        self._measures = measures(job)
        threads = max(1, min(MAX_THREADS, len(self._places) // BLOCKS_PER_THREAD))
        #: The first share is the calling thread's own.
        self._pool = ThreadPoolExecutor(threads - 1, "update") if threads > 1 else None
        # Of several servers one may have no part of a small θ.
        count, share = len(self._places), max(1, -(-len(self._places) // threads))
        #: The numbers of the blocks that each thread works on.
        self.shares = [range(i, min(i + share, count)) for i in range(0, max(1, count), share)]
        block = min(block, layout.size)
        rows = self._optimizer.scratch_rows
        #: One gradient block and scratch per thread.
        self._work = [(np.empty(block, layout.dtype), np.empty((rows, block), layout.dtype)) for _ in self.shares]

    def apply(
        self,
        theta: Array,
        blocks: list[Terms],
        version: int,
        step: int,
        contributions: Sequence[Contribution],
        correct: Correct | None = None,
    ) -> float | None:
        """Update `theta` in place, where all of it is here; see `asking`."""
        return alone(self.asking(theta, blocks, version, step, contributions, correct), self._layout)

    def asking(
        self,
        theta: Array,
        blocks: list[Terms],
        version: int,
        step: int,
        contributions: Sequence[Contribution],
        correct: Correct | None = None,
    ) -> Asking[float | None]:
        """Update `theta` in place with the summed blocks; return the gradient's norm if the job needs it.

        `step` numbers the update for schedules. The gradient is the sum divided by the samples of the contributions
        for a job that reduces by mean, the plain sum otherwise; `correct` then has its way with it. `theta` changes
        only when the last of as many `questions` as the job has is answered.
        """
        info, scale, freshness = how(self._job, self._total_steps, version, step, contributions)
        if self._job.train.is_robust:
            samples = [c.samples for c in contributions]
            whole = yield from aggregate(self._job.train, blocks, samples, self._layout.dtype)
            blocks, scale = [[whole[place]] for place in self._places], 1.0
        layerwise = self._optimizer.layerwise
        norm = None
        if self._measures or layerwise is not None:
            # Norms see the whole gradient before the first block is applied.
            whole = self._whole(blocks, scale)
            if self._measures:
                norm = math.sqrt((yield Question([whole]))[0])
                factor = clip_factor(norm, self._job.optimizer.clip_norm)
                if factor != 1.0:
                    np.multiply(whole, factor, out=whole)
            if layerwise is not None:
                if correct is not None:
                    correct(0, whole, theta)
                yield from self._update_by_tensor(theta, layerwise, whole, info)
                return norm
            blocks, scale = [[whole[place]] for place in self._places], 1.0
        scale *= freshness
        optimizer = self._optimizer
        is_large = self._layout.size >= optimizer.by_terms_from
        by_terms = optimizer.update_by_terms if correct is None and is_large else None

        def update_share(number: int) -> None:
            gradient, scratch = self._work[number]
            for index in self.shares[number]:
                place = self._places[index]
                block, state = theta[place], slice_state(self.state, place.start, place.stop)
                summed = gradient[: block.size]
                terms = blocks[index]
                if by_terms is not None:
                    by_terms(block, _at_most_two(terms, summed, optimizer.takes_halves), scale, state, info)
                else:
                    _add_up(terms, scale, summed)
                    if correct is not None:
                        correct(place.start, summed, block)
                    optimizer.update(block, summed, state, info, block, state, scratch)
                _sweep(info, state, summed)

        self.spread(update_share)
        return norm

    def _whole(self, blocks: list[Terms], scale: float) -> Array:
        """Return the gradient that these blocks add up to, as one vector."""
        whole = np.empty(self._layout.size, self._layout.dtype)
        for place, terms in zip(self._places, blocks, strict=True):
            _add_up(terms, scale, whole[place])
        return whole

    def first_not_finite(self, vector: Array) -> int | None:
        """Return the offset of the first block of a vector that holds NaN or infinity, or None."""
        count = -(-vector.size // self._block)
        if count <= CHECKED_ALONE and self._is_finite(vector):
            return None
        share = -(-count // len(self.shares)) * self._block
        bad: list[int] = []

        def look(number: int) -> None:
            begin, end = number * share, min((number + 1) * share, vector.size)
            # At once, and only what is wrong block by block: every call costs as much as some thousands of values.
            if not self._is_finite(vector[begin:end]):
                starts = range(begin, end, self._block)
                bad.extend(start for start in starts if not is_finite(vector[start : min(start + self._block, end)]))

        self.spread(look)
        return min(bad, default=None)

    def spread(self, work: Callable[[int], None]) -> None:
        """Run `work` for every share, on all threads."""
        if self._pool is None:
            work(0)
            return
        others = [self._pool.submit(work, n) for n in range(1, len(self.shares))]
        try:
            work(0)
        finally:
            # Nobody may go on while a thread still writes.
            wait(others)
        for other in others:
            other.result()

    def _update_by_tensor(
        self, theta: Array, layerwise: Layerwise, gradient: Array, info: StepInfo
    ) -> Generator[Question, Array, None]:
        """Update θ with a learning rate scaled for each tensor by the norms of all of it."""
        scratch = self._work[0][1]
        for block in self._places:
            state = slice_state(self.state, block.start, block.stop)
            layerwise.direction(theta[block], gradient[block], state, info, state, scratch)
        names = [tensor.name for tensor in self._layout.whole.tensors]
        norms = np.sqrt((yield Question([theta, gradient], by_tensor=True))).reshape(2, -1).T.tolist()
        ratios = {name: layerwise.ratio(*both) for name, both in zip(names, norms, strict=True)}
        for tensor in self._layout.tensors:
            end = tensor.offset + tensor.size
            scaled = info._replace(learning_rate=info.learning_rate * ratios[tensor.name])
            for start in range(tensor.offset, end, self._block):
                block = slice(start, min(start + self._block, end))
                part, state = theta[block], slice_state(self.state, block.start, block.stop)
                self._optimizer.update(part, gradient[block], state, scaled, part, state, scratch)
                _sweep(info, state, gradient[block])


def how(
    job: Job, total_steps: int, version: int, step: int, contributions: Sequence[Contribution]
) -> tuple[StepInfo, float, float]:
    """Return what the optimizer is told, what makes the sum of contributions the gradient, and a further factor for it.

    With `staleness_scaling` the learning rate is divided by 1 + delay, after Zhang et al., "Staleness-aware Async-SGD
    for Distributed Deep Learning", 2015. The further factor is 1 but for `ftrl`, whose state holds terms of all steps
    at one learning rate: there the gradient is scaled in its place.

    Warning: where all delays are alike this is a smaller learning rate and no more.
    """
    rate = learning_rate(job.optimizer, step, total_steps)
    scale = mean_scale(job, contributions)
    freshness = 1.0
    if job.train.staleness_scaling:
        freshness = 1.0 / (version - min(c.version for c in contributions))
    if job.optimizer.name == "ftrl":
        return StepInfo(version, rate), scale, freshness
    return StepInfo(version, rate * freshness), scale, 1.0


def _sweep(info: StepInfo, state: State, work: Array) -> None:
    """Rid the state of an updated block of subnormal numbers, if it is time; `work` is overwritten."""
    if info.number % SWEEPS_EVERY == 0:
        drop_subnormal(state, work)


def mean_scale(job: Job, contributions: Sequence[Contribution]) -> float:
    """Return what makes the sum of contributions the gradient."""
    return 1.0 / sum([c.samples for c in contributions]) if job.train.reduce == "mean" else 1.0


def _add_up(terms: Terms, scale: float, out: Array) -> None:
    """Write `scale` times the sum of the terms, from first to last, to `out`."""
    if len(terms) == 1 and terms[0].dtype == out.dtype:
        np.multiply(terms[0], scale, out=out)
        return
    sum_up(terms, out)
    if scale != 1.0:
        np.multiply(out, scale, out=out)


def _at_most_two(terms: Terms, out: Array, with_halves: bool) -> Terms:
    """Return two terms at most that have the same sum, what is left of all the others being added up in `out`.

    They are of the dtype of `out`, or `with_halves` all halves.
    """
    is_wide = terms[-1].dtype == out.dtype
    if len(terms) < 3 and (is_wide or (with_halves and terms[0].dtype == terms[-1].dtype)):
        return terms
    if not is_wide:
        sum_up(terms, out)
        return [out]
    sum_up(terms[:-1], out)
    return [out, terms[-1]]
