"""A worker inside a program of the user's own, which computes the gradients in its own loop."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from threadpoolctl import threadpool_limits

from paramserver.wire.errors import ParamserverError
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.acknowledgements import Acknowledgements
from paramserver.worker.batches import Batch
from paramserver.worker.learner import Learner
from paramserver.worker.process import work
from paramserver.worker.tasks.contract import check_gradient
from paramserver.worker.trainer import Gradient, Identity, Trainer


class Step:
    """One step of one shard: compute the mean gradient of `batch` at `theta` and push it."""

    def __init__(
        self,
        shard: int,
        number: int,
        theta: dict[str, Array],
        batch: Batch,
        acknowledged: Future[bool],
        together: list[Step],
        count: int,
    ) -> None:
        self.shard = shard
        self.number = number
        #: Read-only views by tensor name, in the job's dtype; valid until the push. With `server.durability = "log"`
        #: they may be ahead of the disk: if the server dies, it comes back without the last updates of θ, and without
        #: what was computed at them.
        self.theta = theta
        self.batch = batch
        self._result: Future[Gradient] = Future()
        self._acknowledged = acknowledged
        #: The steps so far of those `count` that were given out together.
        self._together = together
        self._count = count
        together.append(self)

    def push(self, gradient: dict[str, Array], *, loss: float, samples: int) -> None:
        """Hand in the mean gradient and mean loss over `samples` examples; returns at once, see `wait`.

        Raises:
            TaskError: if names, shapes or dtypes are not those of `theta`, or a value is not finite.
            ParamserverError: if the step was pushed before.
        """
        if self._result.done():
            raise ParamserverError(f"shard {self.shard}, step {self.number} was pushed before")
        if samples < 1:
            raise ParamserverError(f"samples = {samples}; at least one example is needed")
        check_gradient(self.theta, gradient, loss)
        self._result.set_result(Gradient(loss, gradient, samples))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the push is acknowledged: it is in θ once, and as safe as the job's durability makes it.

        With `server.durability = "log"`, in async and ssp, it outlives the server and the machine's power from then on.
        False: it was refused, or the job ended or the connection broke before anything was said. If the server knows
        nothing of it, `steps` gives the step out once more. In sync a step counts with the others of its round.

        Raises:
            ParamserverError: if it, or one of its round that this worker was given with it, has yet to be pushed.
            TimeoutError: if nothing is known after `timeout_s` seconds.
        """
        missing = self._count - sum(step._result.done() for step in self._together)
        if missing and not self._acknowledged.done():
            raise ParamserverError(
                f"shard {self.shard}, step {self.number} counts together with others of its round: "
                f"{missing} of them have yet to be pushed"
            )
        return self._acknowledged.result(timeout_s)


class Worker:
    """Works for a server as long as the `with` block lasts; `steps()` gives out what there is to compute.

    `server` is its address, or those of all servers that share θ: `"coordinator:50051,other:50051"`.
    `shards` are those that it may be given (empty: any), `base` is where relative paths of a job start, and
    `connect_timeout_s` how long to look for the server.
    """

    def __init__(
        self,
        server: str,
        *,
        name: str = "",
        shards: tuple[int, ...] = (),
        base: str | Path | None = None,
        connect_timeout_s: float = 60.0,
    ) -> None:
        self._server = server
        name = name or f"{socket.gethostname()}-{os.getpid()}-{id(self):x}"
        self._identity = Identity(name, shards, acknowledge=True)
        self._base = None if base is None else Path(base)
        self._connect_timeout_s = connect_timeout_s
        #: Steps to compute; None when the job has ended, an error when the worker cannot go on.
        self._steps: queue.SimpleQueue[Step | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="paramserver-worker", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._working: asyncio.Task[None] | None = None
        self._acknowledgements = Acknowledgements()
        self._trainer = Trainer(
            self._identity,
            self._base,
            self._hand_out,
            lambda: self._steps.put(None),
            acknowledgements=self._acknowledgements,
        )
        #: The present work, and its steps that were given out.
        self._present: pb.Work | None = None
        self._together: list[Step] = []
        self._limits: threadpool_limits | None = None

    def __enter__(self) -> Self:
        # As in a worker process: the bits must not depend on how many cores share a sum.
        self._limits = threadpool_limits(limits=1)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        if self._limits is not None:
            self._limits.restore_original_limits()

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the current job, or of the next one if none runs, until it ends.

        Raises:
            ParamserverError: if a step was not pushed, the server cannot be reached or breaks the contract.
        """
        while (step := self._steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step
            if not step._result.done():
                raise ParamserverError(f"shard {step.shard}, step {step.number} was not pushed")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._work())
            except ParamserverError as error:
                self._steps.put(error)

    async def _work(self) -> None:
        self._working = asyncio.current_task()
        await work(self._server.split(","), self._trainer, self._connect_timeout_s)

    def _stop(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def _hand_out(
        self, learner: Learner, theta: dict[str, Array], shard: int, step: int, _out: dict[str, Array]
    ) -> Gradient:
        work = self._trainer.work
        if work is not self._present:
            self._present, self._together = work, []
        acknowledged = self._acknowledgements.expect(shard, step)
        batch = learner.batch(shard, step)
        handed_out = Step(shard, step, theta, batch, acknowledged, self._together, len(work.assignments))
        self._steps.put(handed_out)
        return await asyncio.wrap_future(handed_out._result)
