"""θ of one partition: takes chunks in, applies updates, gives chunks out. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paramserver.server.compensation import DelayCompensation
from paramserver.server.events import Contribution
from paramserver.server.optimizers import StepInfo, make_optimizer, slice_state
from paramserver.server.optimizers.norms import block_squares, clip_factor
from paramserver.server.optimizers.norms import norm as norm_of
from paramserver.server.optimizers.optimizer import Layerwise
from paramserver.server.optimizers.schedule import learning_rate
from paramserver.server.reduction import Reduction, RoundSum, Separate
from paramserver.wire.framing import encode
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Tensor bytes of a chunk: a power of two, so that a chunk is a whole number of blocks of the norms.
CHUNK_BYTES = 1 << 20


class Store:
    """The parameters, the optimizer's state and the contributions on their way in.

    `theta` is one flat vector of the layout's dtype and is updated in place; `encoded` copies it out, so what is
    being sent never changes under the sender.
    """

    def __init__(self, job: Job, layout: Layout, theta: Array, total_steps: int) -> None:
        self.layout = layout
        self.theta = theta
        self.version = 0
        self.chunk = CHUNK_BYTES // layout.dtype.itemsize
        self._total_steps = total_steps
        self._optimizer = make_optimizer(job.optimizer)
        self._state = self._optimizer.init(layout.size, layout.dtype)
        self.restage(job)
        block = min(self.chunk, layout.size)
        self._gradient = np.empty(block, layout.dtype)
        self._scratch = np.empty((self._optimizer.scratch_rows, block), layout.dtype)
        self._measures = job.optimizer.clip_norm > 0 or job.stop.tolerance > 0
        self._encoded: list[bytes] | None = None

    def receive(self, shard: int, offset: int, values: Array) -> None:
        """Take one chunk of a contribution; its place was checked before."""
        self.incoming.add(shard, offset // self.chunk, values)

    def restage(self, job: Job) -> None:
        """Take in contributions as the policy of `job` needs it, which may be new, and forget those not applied."""
        self._job = job
        size, dtype, train = self.layout.size, self.layout.dtype, job.train
        in_rounds = train.mode == "sync"
        self.incoming: Reduction = (
            RoundSum(job.data.shards, size, self.chunk, dtype)
            if in_rounds and not train.quorum
            else Separate(size, self.chunk)
        )
        # In rounds nothing is ever late.
        self._compensation = (
            DelayCompensation(size, dtype, train.delay_compensation)
            if train.delay_compensation and not in_rounds
            else None
        )

    def granted(self, shard: int) -> None:
        """Take note that the shard's next contribution will be computed at θ as it is now."""
        if self._compensation is not None:
            self._compensation.remember(shard, self.version, self.theta)

    def apply(self, version: int, step: int, contributions: Sequence[Contribution]) -> float | None:
        """Update θ with the sum of the contributions; return the norm of the gradient if the job needs it.

        `step` numbers the update for schedules. The gradient is the sum divided by its samples for a job that reduces
        by mean, the plain sum otherwise.
        """
        shards = [c.shard for c in contributions]
        rate = learning_rate(self._job.optimizer, step, self._total_steps)
        scale = 1.0 / sum(c.samples for c in contributions) if self._job.train.reduce == "mean" else 1.0
        sums = self.incoming.take(shards)
        norm = None
        if self._measures:
            # Clipping sees the whole gradient before the first block is applied.
            whole = np.concatenate(list(sums))
            norm = scale * norm_of(
                np.concatenate([block_squares(t.ravel()) for t in self.layout.views(whole).values()])
            )
            scale *= clip_factor(norm, self._job.optimizer.clip_norm)
            sums = iter([whole[i : i + self.chunk] for i in range(0, whole.size, self.chunk)])
        if self._job.train.staleness_scaling:
            freshness = 1.0 / (1 + max(self.version - c.version for c in contributions))
            # ftrl's state holds terms of all steps at one learning rate.
            if self._job.optimizer.name == "ftrl":
                scale *= freshness
            else:
                rate *= freshness
        info = StepInfo(version, rate)
        compensation = self._compensation
        layerwise = self._optimizer.layerwise
        if layerwise is not None:
            whole = np.concatenate(list(sums))
            np.multiply(whole, scale, out=whole)
            if compensation is not None:
                compensation.correct(shards[0], 0, whole, self.theta)
            self._update_by_tensor(layerwise, whole, info)
            sums = iter(())
        start = 0
        for chunk in sums:
            stop = start + chunk.size
            gradient = self._gradient[: chunk.size]
            np.multiply(chunk, scale, out=gradient)
            theta, state = self.theta[start:stop], slice_state(self._state, start, stop)
            if compensation is not None:
                compensation.correct(shards[0], start, gradient, theta)
            self._optimizer.update(theta, gradient, state, info, theta, state, self._scratch)
            start = stop
        self.version = version
        self._encoded = None
        return norm

    def _update_by_tensor(self, layerwise: Layerwise, gradient: Array, info: StepInfo) -> None:
        """Update θ with a learning rate scaled for each tensor by the norms of all of it."""
        for tensor in self.layout.tensors:
            end = tensor.offset + tensor.size
            blocks = [slice(i, min(i + self.chunk, end)) for i in range(tensor.offset, end, self.chunk)]
            for block in blocks:
                state = slice_state(self._state, block.start, block.stop)
                layerwise.direction(self.theta[block], gradient[block], state, info, state, self._scratch)
            ratio = layerwise.ratio(
                norm_of(block_squares(self.theta[tensor.offset : end])),
                norm_of(block_squares(gradient[tensor.offset : end])),
            )
            scaled = info._replace(learning_rate=info.learning_rate * ratio)
            for block in blocks:
                theta, state = self.theta[block], slice_state(self._state, block.start, block.stop)
                self._optimizer.update(theta, gradient[block], state, scaled, theta, state, self._scratch)

    def work(self, work: pb.Work, held: int | None) -> list[bytes]:
        """Return the messages that answer a pull: `work` itself comes last, behind what its receiver does not hold."""
        work.version, work.last = self.version, True
        if held == self.version:
            return [encode(pb.ServerMessage(work=work))]
        last = (math.ceil(self.layout.size / self.chunk) - 1) * self.chunk
        if self._encoded is None:
            self._encoded = [self._encode(start) for start in range(0, last, self.chunk)]
        work.offset = last
        return [*self._encoded, encode(pb.ServerMessage(work=work), self.theta[last:])]

    def _encode(self, start: int) -> bytes:
        header = pb.ServerMessage(work=pb.Work(version=self.version, offset=start))
        return encode(header, self.theta[start : start + self.chunk])
