"""The worker's side of the training stream: takes work, has it computed, pushes what came out.

docs/wire-format.md draws the states. Whatever the server says is the truth: after a broken stream the worker joins
anew and computes what it is then assigned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np

from paramserver.wire.codecs import chunk_elements
from paramserver.wire.cores import own_core
from paramserver.wire.errors import ParamserverError, ProtocolError, TaskError, Unreachable
from paramserver.wire.framing import Message, frame
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, pack, read_values
from paramserver.wire.memory import give_back
from paramserver.wire.moments import Moments
from paramserver.wire.tables import tables_from_proto, tables_to_proto
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.acknowledgements import Acknowledgements
from paramserver.worker.batches import Batch
from paramserver.worker.encoder import Encoder, Pieces
from paramserver.worker.learner import Learner
from paramserver.worker.localsteps import local_steps
from paramserver.worker.outgoing import Outgoing
from paramserver.worker.partitions import Partitions, in_chunks, prove, send_pieces
from paramserver.worker.replica import Replica
from paramserver.worker.rowexchange import DealtRows, RowExchange, Wanted, WorkGivenUp
from paramserver.worker.stream import Stream
from paramserver.worker.tasks.contract import check_finite, check_flat

log = logging.getLogger(__name__)

PROTOCOL = 1

#: How tensors may travel.
TRANSPORTS = ("auto", "shm", "stream", "grpc")

#: A step that took longer than this runs beside the event loop, so that heartbeats go on; a shorter one runs in it,
#: which saves two thread switches.
INLINE_S = 0.02

#: A step that took longer than this is worth a message of its own: the server looks at it while the next is computed.
TOGETHER_S = 0.001

#: Before a batch of more bytes is made, which takes some 50 µs, a server on the same core has its turn.
WAY_BYTES = 1 << 18

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """How a worker presents itself, and which shards it can read."""

    name: str
    accepts: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    #: Whether the server is to acknowledge each contribution.
    acknowledge: bool = False
    #: Chosen at random, since a process id alone names nobody: those of containers are all alike.
    instance: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"))

    def join(self) -> pb.Join:
        """Return the first message of a stream."""
        return pb.Join(
            protocol=PROTOCOL,
            worker=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            accepts=self.accepts,
            pinned=self.pinned,
            instance=self.instance,
            acknowledge=self.acknowledge,
        )


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a step gave: mean loss and gradient over `samples` examples."""

    loss: float
    arrays: dict[str, Array]
    samples: int
    #: `arrays` hold `samples` times the gradient.
    is_scaled: bool = False

    @property
    def left_to_scale(self) -> int:
        """What `arrays` are multiplied by before they travel."""
        return 1 if self.is_scaled else self.samples


#: Computes one step: (learner, θ, shard, step, where the gradient may be written) to its gradient.
Compute = Callable[[Learner, dict[str, Array], int, int, dict[str, Array]], Coroutine[Any, Any, Gradient]]


class Trainer:
    """Works for one server, over any number of streams and jobs.

    `compute` replaces the task's own gradient, for a worker with a loop of its own; `on_end` is called whenever a job
    has ended, and `acknowledgements` are told what became of each push. `transport` is one of `TRANSPORTS`: `auto`
    shares memory with a server on this machine and else sends tensors in messages, `stream` always does the latter, and
    `shm` gives up where memory cannot be shared. Messages go through a connection beside gRPC's where that can be had;
    with `grpc` they do not.
    """

    def __init__(
        self,
        identity: Identity,
        base: Path | None = None,
        compute: Compute | None = None,
        on_end: Callable[[], None] = lambda: None,
        transport: str = "auto",
        acknowledgements: Acknowledgements | None = None,
    ) -> None:
        #: None if nobody wants to know.
        self._acknowledgements = acknowledgements
        #: What is being computed.
        self.work = pb.Work()
        self._transport = transport
        self._identity = identity
        self._base = base
        self._on_end = on_end
        self._compute = compute or self._compute_by_task
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._job_id = ""
        self._partitions = Partitions()
        self._learner: Learner | None = None
        self._replica: Replica | None = None
        self._outgoing: Outgoing | None = None
        #: Elastic averaging: the parameters of a shard that are coming in.
        self._own: Array = np.empty(0)
        #: Those that the coordinator has sent for the next work, by shard, of which other servers have the rest.
        self._owned: dict[int, Array] = {}
        #: Of the work.
        self._era = 0
        #: The tables of the layout, and what exchanges their rows, once it is needed.
        self._described: list[pb.Table] = []
        self._rows: DealtRows | None = None
        #: How many rows belong to the contribution that is being pushed, on each server beside the coordinator.
        self._rows_there: list[int] = []
        #: None if contributions travel as they are.
        self._encoder: Encoder | None = None
        self._heartbeat_s = 0.0
        #: What was pushed last on this stream, by shard, as (epoch, step), unless it was refused.
        self._pushed: dict[int, tuple[int, int]] = {}
        #: Set when heartbeats are due at other times than before.
        self._new_pace = asyncio.Event()
        #: How vectors are cut: on a stream, and, unless it is 0, beside it.
        self._chunk_bytes = self._bytes_beside = 0
        self._last_step_s = float("inf")
        #: Set while there is a job.
        self._working = asyncio.Event()
        #: True once the server has welcomed the worker on the current stream.
        self.joined = False

    async def follow(self, stream: Stream, others: Sequence[Stream] = ()) -> None:
        """Join and work until the stream ends; `others` lead to the other servers where θ is cut over several.

        Raises:
            grpc.RpcError: if it breaks.
            PeerGone: if one of the others has ended while nothing came from the coordinator.
            ProtocolError: if the server breaks the contract.
        """
        self.joined = False
        self._replica = self._outgoing = self._rows = None
        if self._learner is not None:
            self._learner.own.clear()
        self._pushed, self._owned = {}, {}
        self._partitions = Partitions(others)
        join = self._identity.join()
        await self._partitions.join(join)
        await stream.send(pb.WorkerMessage(join=self._partitions.place(join)))
        heartbeat = asyncio.create_task(self._keep_alive(stream))
        try:
            while (received := await self._partitions.receive(stream)) is not None:
                await self._take(stream, *received)
        finally:
            heartbeat.cancel()
            if self._acknowledgements is not None:
                self._acknowledgements.give_up()

    async def _choose_way(self, stream: Stream, welcome: pb.Welcome) -> None:
        """Share memory with the servers if this process sees theirs, else have messages go beside gRPC, if they can."""
        if self._transport == "grpc":
            return
        if self._transport != "stream":
            try:
                proof, proofs = prove(welcome, stream.address), self._partitions.proofs()
            except ProtocolError as reason:
                if self._transport == "shm":
                    raise ProtocolError(f"transport shm is impossible: {reason}; auto would take the stream") from None
            else:
                await self._partitions.share(proofs)
                await stream.share(proof, welcome.takes_pipes)
                return
        await self._partitions.connect()
        if welcome.port:
            await stream.connect(welcome.port, welcome.ticket)

    async def _beside_the_loop(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        call = partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _take(self, stream: Stream, message: pb.ServerMessage, payload: memoryview) -> None:
        match message.WhichOneof("kind"):
            case "work":
                await self._take_work(stream, message.work, payload)
            case "welcome":
                self._partitions.check(message.welcome, stream.address)
                self.joined = True
                self._chunk_bytes = message.welcome.chunk_bytes
                await self._choose_way(stream, message.welcome)
                log.info("joined %s as %s", stream.address, self._identity.name)
            case "job":
                self._start(message.job)
                await stream.send(pb.WorkerMessage(pull=pb.PullWork(job_id=self._job_id)))
            case "census":
                self._take_census(message.census, payload)
            case "layout":
                self._replica = Replica(message.layout, self._job, self._partitions)
                if self._transport == "shm" and not self._replica.shares_memory:
                    raise ProtocolError(
                        f"transport shm is impossible: the server at {stream.address} sends θ in messages, since it "
                        "does not see this process or the job compensates for delays; auto would take the stream"
                    )
                self._outgoing = Outgoing(self._replica)
                self._described, self._rows, self._rows_there = list(message.layout.tables), None, []
                self._bytes_beside = message.layout.chunk_bytes
                self._encoder = self._new_encoder(stream, self._replica.layout)
            case "own":
                self._take_own(message.own, payload)
            case "acknowledged":
                if self._acknowledgements is not None:
                    self._acknowledgements.settle(message.acknowledged.shard, message.acknowledged.step, True)
            case "rows":
                # Of work that was given up since.
                pass
            case "refusal":
                refusal = message.refusal
                if refusal.code != pb.Refusal.DUPLICATE:
                    _, step = self._pushed.pop(refusal.shard, (0, -1))
                    if self._acknowledgements is not None:
                        self._acknowledgements.settle(refusal.shard, refusal.step, False)
                    if refusal.code == pb.Refusal.INVALID and refusal.step == step:
                        await self._own_up(stream, refusal)
                expected = refusal.code in (pb.Refusal.SUPERSEDED, pb.Refusal.STALE)
                level = logging.INFO if expected else logging.WARNING
                log.log(level, "shard %d, step %d was refused: %s", refusal.shard, refusal.step, refusal.reason)
            case "ended":
                log.info("job %s is %s: %s", message.ended.job_id, message.ended.status, message.ended.reason)
                self._learner = self._replica = self._outgoing = self._rows = stream.place = None
                self._job_id = ""
                self._working.clear()
                if self._acknowledgements is not None:
                    self._acknowledgements.give_up()
                give_back()
                self._on_end()
            case other:
                raise ProtocolError(f"the server sent {other or 'an empty message'}, which this worker does not know")

    @property
    def _current_learner(self) -> Learner:
        if self._learner is None:
            raise ProtocolError("the server sent work without a job")
        return self._learner

    @property
    def _job(self) -> Job:
        return self._current_learner.job

    def _start(self, started: pb.JobStarted) -> None:
        self._beat_every(started.heartbeat_s)
        self._partitions.start_job(started.job_id)
        job = Job.from_json(started.job_json)
        # The same job on a new stream: the shards that were read are still good. A server that was started anew
        # does not know that a name was used before, so the name alone does not make it the same job.
        if self._learner is None or (started.job_id, job) != (self._job_id, self._learner.job):
            self._job_id = started.job_id
            self._learner = Learner(job, self._base)
        self._working.set()
        log.info("job %s: %s on %s", started.job_id, self._job.task.use, self._job.data.source)

    def _beat_every(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._new_pace.set()

    def _take_census(self, census: pb.Census, payload: memoryview) -> None:
        moments = None
        if payload.nbytes:
            moments = Moments.from_flat(census.rows, np.frombuffer(payload, dtype="<f8"))
        if self._learner is not None:
            self._learner.prepare(census.classes, moments)

    def _take_own(self, own: pb.Own, payload: memoryview) -> None:
        """Take where a shard is in elastic averaging, chunk by chunk."""
        if self._replica is None:
            raise ProtocolError("the server sent a shard's parameters without a layout")
        learner, layout = self._current_learner, self._replica.layout
        if not payload.nbytes:
            learner.own.pop(own.shard, None)
            return
        values = read_values(payload, layout.dtype, own.offset, layout.size)
        if own.offset == 0:
            self._own = np.empty(layout.size, layout.dtype)
            learner.own[own.shard] = layout.views(self._own)
            self._owned[own.shard] = self._own
        self._own[own.offset : own.offset + values.size] = values

    async def _take_work(self, stream: Stream, work: pb.Work, payload: memoryview) -> None:
        replica = self._replica
        if payload.nbytes:
            if replica is None:
                raise ProtocolError("the server sent parameters without a layout")
            replica.take(work.offset, payload)
        if not work.last:
            return
        # From now on θ is being read.
        stream.place = None
        if work.HasField("heartbeat_s"):
            self._beat_every(work.heartbeat_s)
        if replica is not None:
            version = replica.settle(work.version)
            if self._partitions:
                owned, self._owned, self._era = self._owned, {}, work.era
                try:
                    await replica.fetch(work, self._partitions, owned)
                except WorkGivenUp:
                    return
            if version != work.version and not self._job.wire.keeps_back:
                # Elsewhere θ may go back, and then its changes do not count versions.
                work.version = version
        repeated = [a for a in work.assignments if self._pushed.get(a.shard) == (a.epoch, a.step)]
        if repeated:
            # Computed again it would overwrite what the server may be reading.
            log.info("work that came twice is passed over: %d of %d", len(repeated), len(work.assignments))
            for assignment in repeated:
                work.assignments.remove(assignment)
            if not work.assignments:
                return
        try:
            if replica is not None and replica.fault:
                raise TaskError(replica.fault)
            await self._carry_out(stream, work)
            self._look_ahead(stream, work)
        except WorkGivenUp as given_up:
            if given_up.asks_again:
                await stream.send(pb.WorkerMessage(pull=pb.PullWork(held=work.version)))
        except Unreachable:
            raise
        except ParamserverError as error:
            await self._fail(stream, error)

    async def _carry_out(self, stream: Stream, work: pb.Work) -> None:
        self.work = work
        if self._fit_one_message(work):
            await self._push_together(stream, work)
            return
        count = len(work.assignments)
        for position, assignment in enumerate(work.assignments, start=1):
            is_last = position == count
            match assignment.kind:
                case pb.Assignment.GRADIENT:
                    await self._push_gradient(stream, assignment, work.version, pull=is_last)
                    continue
                case pb.Assignment.SURVEY:
                    await self._send_survey(stream, assignment)
                case pb.Assignment.INITIAL:
                    await self._send_initial(stream, assignment)
                case other:
                    raise ProtocolError(f"the server assigned work of an unknown kind {other}")
            if is_last:
                await stream.send(pb.WorkerMessage(pull=pb.PullWork()))

    def _look_ahead(self, stream: Stream, work: pb.Work) -> None:
        """While the server is at work, make the batches that it will most likely ask for next, if that is soon done."""
        learner = self._learner
        if learner is None:
            # The job has ended meanwhile.
            return
        job = learner.job
        done = [(a.shard, a.step) for a in work.assignments if a.kind == pb.Assignment.GRADIENT]
        if self._last_step_s >= INLINE_S or job.train.goes_local:
            learner.look_ahead(())
        elif len(done) == job.data.shards or learner.made_nbytes <= WAY_BYTES:
            # Nobody but the server is waited for, or hardly any time is taken.
            learner.look_ahead([(shard, step + 1) for shard, step in done])
        else:
            # Who pushes last has the server on its core and everybody waiting for it: no time for a batch. Who does not
            # has time for two.
            coming = [(shard, step + ahead) for ahead in (1, 2) for shard, step in done]
            learner.look_ahead(coming, stream.has_arrived)

    async def _send_survey(self, stream: Stream, assignment: pb.Assignment) -> None:
        survey = await self._beside_the_loop(self._current_learner.survey, assignment.shard)
        message = pb.Survey(
            shard=assignment.shard,
            epoch=assignment.epoch,
            rows=survey.rows,
            features=survey.features,
            classes=survey.classes,
        )
        flat = None if survey.moments is None else survey.moments.to_flat()
        await stream.send(pb.WorkerMessage(survey=message), flat)

    async def _send_initial(self, stream: Stream, assignment: pb.Assignment) -> None:
        arrays = await self._beside_the_loop(self._current_learner.initial, assignment.shard)
        layout = Layout.of(arrays, self._job.train.dtype)
        flat = np.empty(layout.size, layout.dtype)
        pack(arrays, layout.views(flat))
        self._partitions.lay_out(layout)
        first = pb.Initial(shard=assignment.shard, epoch=assignment.epoch, tensors=layout.to_proto())
        first.tables.extend(tables_to_proto(self._current_learner.tables))
        await self._partitions.initialise(first, flat, self._chunk_bytes)
        for start, chunk in in_chunks(self._partitions.own(flat), self._chunk_bytes):
            message = pb.Initial(shard=assignment.shard, epoch=assignment.epoch, offset=start) if start else first
            await stream.send(pb.WorkerMessage(initial=message), chunk)

    def _fit_one_message(self, work: pb.Work) -> bool:
        """Whether the contributions are several, soon computed and so small that each is not worth a message."""
        if len(work.assignments) < 2 or self._replica is None or self._last_step_s > TOGETHER_S:
            return False
        if self._described or (self._partitions and not self._replica.in_sight):
            return False
        if any(assignment.kind != pb.Assignment.GRADIENT for assignment in work.assignments):
            return False
        if self._encoder is not None and len({assignment.step for assignment in work.assignments}) > 1:
            # Steps may differ in their bytes.
            return False
        return self._replica.shares_memory or len(work.assignments) * self._replica.nbytes <= self._chunk_bytes

    async def _push_together(self, stream: Stream, work: pb.Work) -> None:
        replica, outgoing = self._replica, self._outgoing
        assert replica is not None
        assert outgoing is not None
        payload = None if replica.shares_memory else outgoing.rows(len(work.assignments))
        message = pb.WorkerMessage()
        coded: list[Array] = []
        for row, assignment in enumerate(work.assignments):
            push = message.pushes.pushes.add()
            flat = await self._contribute(stream, assignment, work.version, push, row)
            if self._encoder is not None and payload is not None:
                coded += [piece for _, piece in self._encoder.encode(flat, push.shard, push.step)[0]]
        if coded:
            payload = np.concatenate(coded)
        push.pull = True
        await stream.send(message, payload)

    async def _push_gradient(self, stream: Stream, assignment: pb.Assignment, version: int, pull: bool) -> None:
        message = pb.WorkerMessage()
        push = message.push
        flat = await self._contribute(stream, assignment, version, push)
        pieces, *others = self._pieces(stream, flat, push)
        if others and not push.in_sight:
            push.era = self._era
            await self._partitions.push(push, others, self._rows_there, asks=pull and self.work.in_step)
        if push.shared:
            push.pull = pull
            await stream.send(message)
            return
        if pull and self._replica is not None:
            stream.place = self._replica.place

        def framed(start: int, piece: Array, is_last: bool) -> Message:
            push.offset, push.pull = start, pull and is_last
            return frame(message, piece)

        await send_pieces(stream, pieces, framed)

    def _pieces(self, stream: Stream, flat: Array, push: pb.Push) -> list[Pieces]:
        """Return for every server what travels to it of a contribution: nothing if it is shared."""
        if push.shared:
            return [[]] * (1 + len(self._partitions))
        if self._encoder is not None:
            # A server without a part of a small θ hears of the contribution too.
            nothing = [(0, np.empty(0, np.uint8))]
            return [pieces or nothing for pieces in self._encoder.pieces(flat, push.shard, push.step)]
        own = in_chunks(self._partitions.own(flat), self._cut_at(stream))
        return [own, *self._partitions.in_chunks(flat, self._cut_at)] if self._partitions else [own]

    def _cut_at(self, stream: Stream) -> int:
        """Return how many bytes of a vector a chunk on this stream has."""
        return (stream.is_beside and self._bytes_beside) or self._chunk_bytes

    async def _contribute(
        self, stream: Stream, assignment: pb.Assignment, version: int, push: pb.Push, row: int = 0
    ) -> Array:
        """Compute a contribution, lay it where it travels from and fill in its name; return its values."""
        replica, outgoing = self._replica, self._outgoing
        if replica is None or outgoing is None:
            raise ProtocolError("the server assigned a gradient without parameters")
        place, slot = outgoing.place(assignment.shard, row)
        if slot is not None:
            if not replica.in_sight:
                await self._partitions.announce(slot)
            await stream.send(pb.WorkerMessage(slot=slot))
        learner, theta = self._current_learner, replica.views
        exchange = self._exchange(stream, learner, replica.layout) if self._described or learner.tables else None
        if exchange is not None:
            keys = learner.keys(assignment.shard, assignment.step)
            wanted = {name: Wanted.of(named) for name, named in keys.items()}
            rows = await exchange.pull(assignment, wanted)
            theta = theta | {name: wanted[name].spread(values) for name, values in rows.items()}
        computing = self._compute(learner, theta, assignment.shard, assignment.step, place.views)
        gradient = await (computing if self._acknowledgements is None else self._listening(stream, computing))
        pack(gradient.arrays, place.views, scale=gradient.left_to_scale)
        # What is wrong the server refuses, see `_own_up`, and so does a codec; but rows of tables go ahead.
        if exchange is not None:
            check_flat(place.flat, replica.layout, f"shard {assignment.shard}, step {assignment.step}: ")
        push.shard, push.epoch, push.step = assignment.shard, assignment.epoch, assignment.step
        push.version, push.samples, push.loss = version, gradient.samples, gradient.loss
        push.shared, push.in_sight = replica.shares_memory, replica.in_sight
        push.core = own_core()
        if push.shared and self._encoder is not None:
            # There are no bytes to save in shared memory; the values are those that would have arrived.
            self._encoder.encode(place.flat, push.shard, push.step, in_place=True)
        self._pushed[push.shard] = (push.epoch, push.step)
        if exchange is not None:
            sums = {name: w.gather(gradient.arrays[name], gradient.left_to_scale) for name, w in wanted.items()}
            check_finite(sums, f"shard {assignment.shard}, step {assignment.step}: ")
            push.rows, *self._rows_there = await exchange.push(assignment, wanted, sums)
        return place.flat

    async def _own_up(self, stream: Stream, refusal: pb.Refusal) -> None:
        """Tell the server if the task is to blame for a contribution that was refused."""
        place = None if self._outgoing is None else self._outgoing.last(refusal.shard)
        if place is None or self._replica is None:
            return
        try:
            check_flat(place.flat, self._replica.layout, f"shard {refusal.shard}, step {refusal.step}: ")
        except TaskError as error:
            await self._fail(stream, error)

    async def _fail(self, stream: Stream, error: ParamserverError) -> None:
        log.error("%s", error)
        await stream.send(pb.WorkerMessage(failure=pb.Failure(reason=f"{type(error).__name__}: {error}")))

    async def _listening(self, stream: Stream, computing: Coroutine[Any, Any, Gradient]) -> Gradient:
        """Compute a gradient and meanwhile hear what became of earlier pushes, for which somebody may be waiting."""
        assert self._acknowledgements is not None
        computed = asyncio.ensure_future(computing)
        try:
            while await stream.arrives(computed):
                received = await stream.receive()
                if received is None or received[0].WhichOneof("kind") not in ("acknowledged", "refusal"):
                    # The end of the stream or of the job, most likely.
                    stream.put_back(received)
                    break
                await self._take(stream, *received)
        except (grpc.RpcError, Unreachable):
            self._acknowledgements.give_up()
            await computed
            raise
        except asyncio.CancelledError:
            computed.cancel()
            raise
        if not computed.done():
            self._acknowledgements.give_up()
        return await computed

    def _exchange(self, stream: Stream, learner: Learner, layout: Layout) -> DealtRows:
        """Return what pulls and pushes the rows of the job's tables."""
        if self._rows is None:
            tables = tables_from_proto(self._described, (tensor.name for tensor in layout.tensors))
            if tables != learner.tables:
                raise TaskError(f"the job began with the tables {tables}, the task here has {learner.tables}")
            own = RowExchange(stream, tables, layout.dtype, self._chunk_bytes, partial(self._take, stream))
            self._rows = DealtRows([own, *self._partitions.exchanges(tables, layout.dtype, self._chunk_bytes)])
        return self._rows

    def _new_encoder(self, stream: Stream, layout: Layout) -> Encoder | None:
        if self._job.wire.push == "full":
            return None
        streams = (stream, *self._partitions.streams)
        return Encoder(self._job, layout, [chunk_elements(self._job, self._cut_at(each)) for each in streams])

    async def _compute_by_task(
        self, learner: Learner, theta: dict[str, Array], shard: int, step: int, out: dict[str, Array]
    ) -> Gradient:
        if self._last_step_s < INLINE_S:
            return self._timed_step(learner, theta, shard, step, out)
        return await self._beside_the_loop(self._timed_step, learner, theta, shard, step, out)

    def _timed_step(
        self, learner: Learner, theta: dict[str, Array], shard: int, step: int, out: dict[str, Array]
    ) -> Gradient:
        started = time.perf_counter()
        if learner.job.train.goes_local:
            gradient = Gradient(*local_steps(learner, theta, shard, step))
        else:
            batch: Batch = learner.batch(shard, step)
            loss, arrays, is_scaled = learner.contribution(theta, batch, shard, step, out)
            gradient = Gradient(loss, arrays, batch.n, is_scaled)
        self._last_step_s = time.perf_counter() - started
        return gradient

    async def _keep_alive(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Without a job nobody counts on the worker.
            await self._working.wait()
            self._new_pace.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._new_pace.wait(), self._heartbeat_s / 2)
                continue
            if loop.time() - stream.last_sent > self._heartbeat_s / 2:
                await stream.send(pb.WorkerMessage(heartbeat=pb.Heartbeat()))
