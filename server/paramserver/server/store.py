"""θ of one partition: takes chunks in, applies updates, gives chunks out. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from paramserver.server.optimizers import StepInfo, make_optimizer, slice_state
from paramserver.server.optimizers.norms import block_squares, clip_factor
from paramserver.server.optimizers.norms import norm as norm_of
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

    def __init__(
        self,
        job: Job,
        layout: Layout,
        theta: Array,
        total_steps: int,
        version: int = 0,
        optimizer_state: Mapping[str, Array] | None = None,
    ) -> None:
        self.layout = layout
        self.theta = theta
        self.version = version
        self.chunk = CHUNK_BYTES // layout.dtype.itemsize
        self._job = job
        self._total_steps = total_steps
        self._optimizer = make_optimizer(job.optimizer)
        self._state = self._optimizer.init(layout.size, layout.dtype)
        if optimizer_state is not None:
            self._state = type(self._state)(**optimizer_state)
        rounds = job.train.mode == "sync"
        self.incoming: Reduction = (
            RoundSum(job.data.shards, layout.size, self.chunk, layout.dtype) if rounds else Separate()
        )
        block = min(self.chunk, layout.size)
        self._gradient = np.empty(block, layout.dtype)
        self._scratch = np.empty((self._optimizer.scratch_rows, block), layout.dtype)
        self._measures = job.optimizer.clip_norm > 0 or job.stop.tolerance > 0
        self._encoded: list[bytes] | None = None

    @property
    def optimizer_state(self) -> dict[str, Array]:
        """What the optimizer remembers, by name: flat vectors as long as θ, which change with the next update."""
        return dict(self._state._asdict())

    def receive(self, shard: int, offset: int, values: Array) -> None:
        """Take one chunk of a contribution; its place was checked before."""
        self.incoming.add(shard, offset // self.chunk, values)

    def apply(self, version: int, step: int, shards: Sequence[int], samples: int) -> float | None:
        """Update θ with the summed contributions of `shards`; return the norm of the gradient if the job needs it.

        `step` numbers the update for schedules. The gradient is the sum divided by `samples` for a job that reduces
        by mean, the plain sum otherwise.
        """
        rate = learning_rate(self._job.optimizer, step, self._total_steps)
        scale = 1.0 / samples if self._job.train.reduce == "mean" else 1.0
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
        info = StepInfo(version, rate)
        start = 0
        for chunk in sums:
            stop = start + chunk.size
            gradient = self._gradient[: chunk.size]
            np.multiply(chunk, scale, out=gradient)
            theta, state = self.theta[start:stop], slice_state(self._state, start, stop)
            self._optimizer.update(theta, gradient, state, info, theta, state, self._scratch)
            start = stop
        self.version = version
        self._encoded = None
        return norm

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
