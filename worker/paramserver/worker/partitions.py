"""The servers beside the coordinator, where θ is cut over several: a stream to each, for a range of every vector.

What a worker computes, the coordinator alone says, on the stream of the trainer. From the others it fetches the rest of
θ, and it brings them the rest of what it computed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from paramserver.wire import sharing
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import PeerGone, ProtocolError
from paramserver.wire.framing import Message, frame
from paramserver.wire.layout import Array, Layout, read_values
from paramserver.wire.mosaic import Mosaic
from paramserver.wire.sharing import Segment
from paramserver.wire.tables import Table
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.encoder import Pieces
from paramserver.worker.rowexchange import RowExchange, WorkGivenUp
from paramserver.worker.stream import Stream

log = logging.getLogger(__name__)

#: So long the memory of another server is looked at again and again, …
YIELD_S = 1e-4
#: … and so long after pauses that are too short for the event loop.
INLINE_S = 5e-3
LONGEST_PAUSE_S = 0.05


class Partition:
    """One server beside the coordinator."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.welcome = pb.Welcome()
        #: Where its part of θ is, if it shares memory.
        self._memory: pb.SharedMemory | None = None
        self._theta: Segment | None = None
        #: Version of its part that the worker holds.
        self._held: int | None = None
        self._era = 0
        #: Of the last pull.
        self._number = 0
        #: Version and era of what the last push has asked for.
        self._ahead: tuple[int, int] | None = None
        #: Where parameters go that come as they are.
        self._place: Callable[[int, int], memoryview | None] | None = None
        #: Whether what comes is about this job.
        self._is_laid_out = True
        self._job_id = ""

    async def join(self, join: pb.Join) -> None:
        """Present the worker and wait to be welcomed.

        Raises:
            grpc.RpcError: if the server does not take it.
            ProtocolError: if it answers anything else.
        """
        await self.stream.send(pb.WorkerMessage(join=join))
        received = await self.stream.receive()
        if received is None or not received[0].HasField("welcome"):
            raise ProtocolError(f"{self.stream.address} did not welcome the worker")
        self.welcome = received[0].welcome

    @property
    def is_mapped(self) -> bool:
        """Is it known where its part of θ is?"""
        return self._memory is not None

    def start_job(self, job_id: str) -> None:
        """Forget what belonged to an earlier job."""
        self._memory = self._theta = self._held = self._ahead = None
        self._era, self._job_id, self._is_laid_out = 0, job_id, False

    async def fetch(
        self,
        wanted: pb.PullWork,
        part: Layout,
        out: Array,
        mosaic: Mosaic | None,
        own: Mapping[int, Array],
        codec: Codec | None,
        in_step: bool,
    ) -> bool:
        """Have its part of θ in `out`, at the wanted version or the first later one that it has, and its part of the
        vectors in `own` by shard; say whether all is finite.

        With a mosaic, of which `out` is a slice, memory that is shared is shown there and not copied. What was asked
        for with a push is not asked for again if servers and workers still go `in_step`.

        Raises:
            WorkGivenUp: if the job is over.
        """
        finite = True
        if wanted.era != self._era:
            # Versions come again.
            self._era, self._held = wanted.era, None
        pull = pb.PullWork()
        pull.CopyFrom(wanted)
        ahead, self._ahead = self._ahead, None
        self.stream.place = self._place = partial(place, out) if codec is None and self._memory is None else None
        if in_step and ahead == (wanted.version, wanted.era):
            pull.number = self._number
        else:
            if ahead is not None:
                # It may have come to where the version before was.
                self._held = None
            self._number += 1
            pull.job_id, pull.number = self._job_id, self._number
            if self._held is not None:
                pull.held = self._held
            await self.stream.send(pb.WorkerMessage(pull=pull))
        while (received := await self.stream.receive()) is not None:
            message, payload = received
            match message.WhichOneof("kind"):
                case "work" if self._is_old(message.work, pull):
                    pass
                case "work":
                    work = message.work
                    if payload.nbytes:
                        finite = read_into(out, work.offset, payload, codec) and finite
                    if work.last:
                        self.stream.place = None
                        if self._memory is not None:
                            await self.show(work.version, part, out, mosaic)
                        else:
                            self._held = work.version if work.version >= wanted.version else None
                        return finite
                case "own" if message.own.shard in own:
                    read_into(own[message.own.shard], message.own.offset, payload, None)
                case "ended" if message.ended.job_id == self._job_id:
                    raise WorkGivenUp(asks_again=False)
                case _:
                    await self.aside(message, payload)
        raise PeerGone(f"{self.stream.address} ended the stream")

    def _is_old(self, work: pb.Work, wanted: pb.PullWork) -> bool:
        """Say whether this answers what was asked before: in another job, or it has come once more, or was not waited
        for."""
        if not self._is_laid_out:
            return True
        if work.last:
            return work.number != wanted.number
        return work.version < max(wanted.version, self._held or 0)

    async def aside(self, message: pb.ServerMessage, _payload: memoryview) -> None:
        """Act on a message that is no answer to what was asked."""
        match message.WhichOneof("kind"):
            case "layout":
                described = message.layout
                self._memory = described.theta if described.HasField("theta") else None
                self._theta, self._is_laid_out = None, True
            case "refusal":
                refusal = message.refusal
                log.warning(
                    "%s refused shard %d, step %d: %s",
                    self.stream.address,
                    refusal.shard,
                    refusal.step,
                    refusal.reason,
                )
            case "rows" | "ended":
                # Of work that was given up since.
                pass
            case other:
                raise ProtocolError(f"{self.stream.address} sent {other or 'an empty message'} unasked")

    async def show(self, version: int, part: Layout, out: Array, mosaic: Mosaic | None) -> None:
        """Have its part of θ in `out` as it is in memory once it is at a version, see `fetch`.

        Raises:
            PeerGone: if the server is.
        """
        memory = self._memory
        if memory is None or not part.size:
            return
        if mosaic is not None:
            await self._at_version(version, mosaic.lay(part.start, part.size, memory.pid, memory.descriptor))
            return
        if self._theta is None:
            self._theta = Segment.open(memory.pid, memory.descriptor, part.size, part.dtype, part.start)
        await self._at_version(version, self._theta)
        self._theta.copy_whole(out)

    async def _at_version(self, version: int, theta: Segment) -> None:
        """Wait until its part of θ is at a version, or a later one.

        It was told of the update when the coordinator began with it, and mostly has made it, or is about to.
        """
        began = time.monotonic()
        while not theta.has_had(version):
            if self.stream.ended.done():
                raise PeerGone(f"{self.stream.address} ended the stream")
            waited = time.monotonic() - began
            # It may want this very core.
            if waited < YIELD_S:
                os.sched_yield()
            elif waited < INLINE_S:
                time.sleep(waited / 4)
            else:
                await asyncio.sleep(min(waited / 4, LONGEST_PAUSE_S))

    async def push(self, push: pb.Push, pieces: Pieces, rows: int, asks: bool) -> None:
        """Bring its part of a contribution, to which so many rows belong; `push` is that of the coordinator, and stays
        as it is.

        If it `asks`, it has the server send the next version when that is there, which `fetch` then waits for.
        """
        message = pb.WorkerMessage(push=push)
        message.push.pull, message.push.rows = False, rows
        if push.shared:
            await self.stream.send(message)
            return

        def framed(start: int, piece: Array, is_last: bool) -> Message:
            message.push.offset = start
            if asks and is_last:
                self._number += 1
                message.push.number, self._ahead = self._number, (push.version + 1, push.era)
                self.stream.place = self._place
            return frame(message, piece)

        await send_pieces(self.stream, pieces, framed)


class Partitions:
    """All servers beside the coordinator, in their order; `streams` are open streams to them."""

    def __init__(self, streams: Sequence[Stream] = ()) -> None:
        self._others = [Partition(stream) for stream in streams]
        self._parts: list[Layout] = []
        #: Done once one of them is gone.
        self._lost: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._others)

    def place(self, join: pb.Join, partition: int = 0) -> pb.Join:
        """Return the first message to a server, which says what the worker takes it for."""
        placed = pb.Join()
        placed.CopyFrom(join)
        if self._others:
            placed.partition, placed.partitions = partition, len(self._others) + 1
        return placed

    async def join(self, join: pb.Join) -> None:
        """Join all of them: before the coordinator, so that whoever has joined there has joined everywhere.

        Raises:
            grpc.RpcError: if one does not take the worker: of several that do not, what the first of them says.
            ProtocolError: if one answers anything else.
        """
        joins = (other.join(self.place(join, n)) for n, other in enumerate(self._others, start=1))
        for outcome in await asyncio.gather(*joins, return_exceptions=True):
            if outcome is not None:
                raise outcome
        if self._others:
            self._lost = asyncio.get_running_loop().create_future()
            for other in self._others:
                other.stream.ended.add_done_callback(self._lose)

    def _lose(self, _ended: asyncio.Future[None]) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def receive(self, coordinator: Stream) -> tuple[pb.ServerMessage, memoryview] | None:
        """Wait for the coordinator's next message, as long as all of them are there.

        What one of them has lost with its stream the coordinator may be waiting for, and it cannot know that.

        Raises:
            grpc.RpcError: if the coordinator's stream breaks.
            PeerGone: if one of the others has ended its stream.
        """
        if self._lost is not None and not await coordinator.arrives(self._lost, soon=True):
            gone = next(other for other in self._others if other.stream.ended.done())
            raise PeerGone(f"the stream to {gone.stream.address} has ended")
        return await coordinator.receive()

    def check(self, welcome: pb.Welcome, address: str) -> None:
        """Check that all belong to the coordinator at `address`, which has sent this welcome.

        Raises:
            PeerGone: if the coordinator has lost or just found one of them.
        """
        for other in self._others:
            if other.welcome.cluster != welcome.cluster:
                raise PeerGone(f"{other.stream.address} is not led by {address}, or not yet again")

    def proofs(self) -> list[bytes]:
        """Return what proves to each of them that this process sees its memory.

        Raises:
            ProtocolError: if it does not see that of all.
        """
        return [prove(other.welcome, other.stream.address) for other in self._others]

    async def share(self, proofs: Sequence[bytes]) -> None:
        """Prove it to all of them."""
        for other, proof in zip(self._others, proofs, strict=True):
            await other.stream.share(proof, other.welcome.takes_pipes)

    async def connect(self) -> None:
        """Have messages of all go beside gRPC, where they can."""
        offers = ((other.stream, other.welcome) for other in self._others if other.welcome.port)
        await asyncio.gather(*(stream.connect(welcome.port, welcome.ticket) for stream, welcome in offers))

    def start_job(self, job_id: str) -> None:
        """Forget what belonged to an earlier job."""
        for other in self._others:
            other.start_job(job_id)

    def exchanges(self, tables: Mapping[str, Table], dtype: np.dtype[Any], chunk_bytes: int) -> list[RowExchange]:
        """Return what exchanges the rows that the others hold."""
        return [RowExchange(other.stream, tables, dtype, chunk_bytes, other.aside) for other in self._others]

    def lay_out(self, whole: Layout) -> Layout:
        """Take note of what θ looks like; return the coordinator's part."""
        own, *self._parts = whole.cut(len(self._others) + 1)
        return own

    def own(self, flat: Array) -> Array:
        """Return the coordinator's part of a vector."""
        return flat[: self._parts[0].start] if self._parts else flat

    async def fetch(
        self,
        work: pb.Work,
        flat: Array,
        mosaic: Mosaic | None,
        own: Mapping[int, Array],
        codec: Codec | None,
        in_sight: bool,
    ) -> bool:
        """Bring the rest of θ to the version of the work, or a later one, and the rest of what shards have of their own
        that the coordinator has sent for it, whole vectors by shard; say whether all is finite."""
        shards = [a.shard for a in work.assignments if a.kind == pb.Assignment.GRADIENT]
        if not shards:
            return True
        finite: list[bool] = []
        if in_sight and all(other.is_mapped for other in self._others):
            for other, part, values in self._with_parts(flat):
                await other.show(work.version, part, values, mosaic)
        else:
            wanted = pb.PullWork(version=work.version, shards=shards, own=own, era=work.era)
            fetches = []
            for other, part, values in self._with_parts(flat):
                theirs = {shard: part.part_of(vector) for shard, vector in own.items()}
                fetches.append(other.fetch(wanted, part, values, mosaic, theirs, codec, work.in_step))
            finite = await asyncio.gather(*fetches)
        if mosaic is not None:
            mosaic.settle()
        return all(finite)

    async def announce(self, slot: pb.Slot) -> None:
        """Tell all of them where contributions of a shard will be laid."""
        for other in self._others:
            await other.stream.send(pb.WorkerMessage(slot=slot))

    async def push(self, push: pb.Push, pieces: Sequence[Pieces], rows: Sequence[int], asks: bool) -> None:
        """Bring the rest of a contribution in pieces, none if it is shared; `rows` are those that belong to it on each
        of them, if there are tables. If it `asks`, they send the next version by themselves."""
        counts = rows or [0] * len(self._others)
        parts = zip(self._others, pieces, counts, strict=True)
        await asyncio.gather(*(other.push(push, own, count, asks) for other, own, count in parts))

    @property
    def streams(self) -> list[Stream]:
        """The streams to them."""
        return [other.stream for other in self._others]

    def in_chunks(self, flat: Array, chunk_bytes: Callable[[Stream], int]) -> list[list[tuple[int, Array]]]:
        """Return the chunks of a vector for each of them, given how long they are on its stream."""
        return [in_chunks(values, chunk_bytes(other.stream)) for other, _, values in self._with_parts(flat)]

    async def initialise(self, initial: pb.Initial, flat: Array, chunk_bytes: int) -> None:
        """Bring the rest of the initial parameters; `initial` is the coordinator's first message of them."""
        for other, _, values in self._with_parts(flat):
            for start, chunk in in_chunks(values, chunk_bytes):
                message = pb.Initial(shard=initial.shard, epoch=initial.epoch, offset=start)
                message.tensors.extend(initial.tensors if start == 0 else [])
                message.tables.extend(initial.tables if start == 0 else [])
                await other.stream.send(pb.WorkerMessage(initial=message), chunk)

    def _with_parts(self, flat: Array) -> Iterator[tuple[Partition, Layout, Array]]:
        for other, part in zip(self._others, self._parts, strict=True):
            yield other, part, part.part_of(flat)


async def send_pieces(stream: Stream, pieces: Pieces, framed: Callable[[int, Array, bool], Message]) -> None:
    """Send the pieces of a contribution; `framed` makes a message of one, of which it is told whether it is the last.

    Raises:
        grpc.RpcError: if the stream is broken or at its end.
        TaskError: if one of them cannot be encoded.
    """
    numbered = enumerate(pieces, start=1)
    messages = (framed(start, piece, number == len(pieces)) for number, (start, piece) in numbered)
    if isinstance(pieces, list):
        await stream.send_all(list(messages))
        return
    for message in messages:
        await stream.send_all([message])


def prove(welcome: pb.Welcome, address: str) -> bytes:
    """Return the random bytes of a server's memory.

    Raises:
        ProtocolError: if this process does not see them, with the reason.
    """
    if not sharing.AVAILABLE:
        raise ProtocolError("this system has no memory that processes can share without a name (memfd_create)")
    if not welcome.HasField("probe"):
        raise ProtocolError(f"the server at {address} offers no shared memory")
    probe = welcome.probe
    try:
        return sharing.read_probe(probe.pid, probe.descriptor)
    except ProtocolError as error:
        raise ProtocolError(
            f"the server at {address} is on another machine, in another container or another user's ({error})"
        ) from None


def read_into(out: Array, offset: int, payload: memoryview, codec: Codec | None) -> bool:
    """Write a chunk of a vector where it belongs, and say whether it is finite behind its codec.

    Raises:
        ProtocolError: if it does not fit.
    """
    if codec is None:
        values = read_values(payload, out.dtype, offset, out.size)
        there = out[offset : offset + values.size]
        # What has come to where it belongs is there already.
        if not np.may_share_memory(there, values):
            there[:] = values
        return True
    count = payload.nbytes // codec.nbytes(1)
    if count == 0 or offset + count > out.size or payload.nbytes != codec.nbytes(count):
        raise ProtocolError(f"a chunk of {payload.nbytes} bytes of θ at offset {offset} does not fit")
    return codec.decode(payload, out[offset : offset + count])


def place(out: Array, offset: int, nbytes: int) -> memoryview | None:
    """Return the bytes of a vector where a chunk of it belongs, or None if it does not fit."""
    start = offset * out.itemsize
    fits = nbytes % out.itemsize == 0 and start + nbytes <= out.nbytes
    return out.view(np.uint8).data[start : start + nbytes] if fits else None


def in_chunks(flat: Array, chunk_bytes: int) -> list[tuple[int, Array]]:
    """Return the chunks of a vector, one or more, and where they start."""
    size = chunk_bytes // flat.itemsize
    return [(start, flat[start : start + size]) for start in range(0, max(1, flat.size), size)]
