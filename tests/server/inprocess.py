"""A whole training in one event loop: the server's run and the workers' trainers, with queues in place of sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.store import CHUNK_BYTES
from paramserver.wire.framing import Message, decode_server_message, decode_worker_message, encode, frame, whole
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.learner import Learner
from paramserver.worker.localsteps import local_steps
from paramserver.worker.trainer import Compute, Gradient, Identity, Trainer

#: Nothing in these tests takes this long unless it hangs.
DEADLINE_S = 30.0


class Pipe:
    """The worker's end of a stream that leads to a run in the same loop."""

    address = "in process"
    is_beside = False

    def __init__(self, training: Training) -> None:
        self._training = training
        self._ready: list[tuple[pb.ServerMessage, memoryview]] = []
        self.session: Session | None = None
        self.last_sent = 0.0

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        await self.send_all([frame(message, payload)])

    async def send_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._send(*decode_worker_message(whole(message)))

    async def _send(self, message: pb.WorkerMessage, view: memoryview) -> None:
        if message.WhichOneof("kind") == "join":
            self.session = Session(message.join)
            self.session.send(encode(pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=CHUNK_BYTES))))
            self._training.sessions[self.session.name] = self.session
            self._training.run.welcome(self.session)
        else:
            assert self.session is not None
            self._training.run.take(self.session, message, view)
            self._training.moved()
        await asyncio.sleep(0)

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        assert self.session is not None
        while not self._ready:
            messages = await self.session.next_answer()
            assert messages is not None
            self._ready = [decode_server_message(whole(data)) for data in messages]
        return self._ready.pop(0)

    def has_arrived(self) -> bool:
        return bool(self._ready)


class Training:
    """A job with workers w0, w1, …; `on_move` is called after every message that the server took."""

    def __init__(self, job: Job | dict[str, Any], on_move: Callable[[Training], None] = lambda _: None) -> None:
        self.sessions: dict[str, Session] = {}
        self._on_move = on_move
        self._now = 0.0
        job = job if isinstance(job, Job) else Job.from_dict(job)
        self.run = Run("job", job, self.sessions, clock=self._clock, epoch=0)

    def _clock(self) -> float:
        self._now += 1e-6
        return self._now

    def moved(self) -> None:
        self._on_move(self)

    @property
    def theta(self) -> dict[str, Array]:
        assert self.run.store is not None
        return {name: view.copy() for name, view in self.run.store.layout.views(self.run.store.theta).items()}

    @property
    def rejected(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for worker in self.run.engine.workers.values():
            for reason, count in worker.rejected.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts

    def finish(self, *computes: Compute | None) -> Training:
        """Train to the end with one worker per argument, each with a gradient of its own or None for the task's."""
        asyncio.run(self._finish(computes))
        return self

    async def _finish(self, computes: tuple[Compute | None, ...]) -> None:
        workers = []
        for number, compute in enumerate(computes):
            trainer = Trainer(Identity(f"w{number}"), compute=compute)
            stream: Any = Pipe(self)
            workers.append(asyncio.create_task(trainer.follow(stream)))
        async with asyncio.timeout(DEADLINE_S):
            while not self.run.engine.ended:
                await asyncio.sleep(0)
                for worker in workers:
                    if worker.done():
                        worker.result()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def gradient(learner: Learner, theta: dict[str, Array], shard: int, step: int) -> Gradient:
    """Compute what the task says."""
    batch = learner.batch(shard, step)
    loss, arrays, is_scaled = learner.contribution(theta, batch, shard, step)
    return Gradient(loss, arrays, batch.n, is_scaled)


async def at_once(learner: Learner, theta: dict[str, Array], shard: int, step: int, _out: dict[str, Array]) -> Gradient:
    """Compute what the job says, without a thread, so that the order of events is the same in every run."""
    if learner.job.train.goes_local:
        return Gradient(*local_steps(learner, theta, shard, step))
    return gradient(learner, theta, shard, step)


def slower(turns: int) -> Compute:
    """Compute what the task says at θ as it was, so many turns of the event loop later."""

    async def compute(
        learner: Learner, theta: dict[str, Array], shard: int, step: int, _out: dict[str, Array]
    ) -> Gradient:
        computed = gradient(learner, theta, shard, step)
        for _ in range(turns):
            await asyncio.sleep(0)
        return computed

    return compute
