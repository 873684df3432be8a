"""A simulated network between processes: streams and calls that are late, break in the middle and are cut apart.

A stream is what gRPC makes of TCP: in order and whole up to the moment where it breaks, and each side learns of the
break at a time of its own. With `wild` it is worse than that: single messages are lost, doubled and overtaken.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from paramserver.wire.framing import Message, decode_server_message, frame, whole
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from simulation.loop import Clock, Process

#: A peer that does not answer a ping is given up after so long; see OPTIONS in the server's and the worker's modules.
KEEPALIVE_S = (10.0, 20.0)

#: How long a connection attempt waits for an answer.
CONNECT_S = 20.0

#: What work for a worker begins with on the wire.
WORK_TAG = bytes([pb.ServerMessage.DESCRIPTOR.fields_by_name["work"].number << 3 | 2])
ACKNOWLEDGED_TAG = bytes([pb.ServerMessage.DESCRIPTOR.fields_by_name["acknowledged"].number << 3 | 2])


class Listener(NamedTuple):
    """A process that listens, and how it serves workers' streams, a coordinator's orders and calls."""

    process: Process
    train: Callable[[Context], Awaitable[None]]
    follow: Callable[[Context], Awaitable[None]]
    call: Callable[[str, Any, Context], AsyncIterator[Any]]


class Network:
    """Who reaches whom, and how long it takes."""

    def __init__(self, clock: Clock, rng: Random, latency_s: float, wild: bool) -> None:
        self.clock = clock
        self.rng = rng
        self._latency_s = latency_s
        #: Single messages of workers' streams are lost, doubled and overtaken.
        self.wild = wild
        self._parted: dict[frozenset[str], int] = {}
        self._partings = 0
        self.connections: list[Connection] = []
        #: How many there ever were.
        self.count = 0
        #: By address.
        self.listeners: dict[str, Listener] = {}

    def latency(self) -> float:
        """Draw how long a message travels; now and then very long."""
        share = self.rng.random()
        return self._latency_s * (share * 2 if share < 0.95 else 10.0)

    def parted(self, one: Process, other: Process) -> bool:
        """Is there no way between the two?"""
        return bool(self._parted) and frozenset((one.name, other.name)) in self._parted

    def part(self, one: Process, other: Process) -> None:
        """Cut two processes apart."""
        pair = frozenset((one.name, other.name))
        self._partings += 1
        self._parted[pair] = self._partings
        for connection in self._between(pair):
            connection.time_out(lambda number=self._partings: self._parted.get(pair) == number)

    def heal(self, pair: frozenset[str] | None = None) -> None:
        """Let them reach each other again; all of them if none are named."""
        pairs = [pair] if pair is not None else list(self._parted)
        for healed in pairs:
            self._parted.pop(healed, None)
            for connection in self._between(healed):
                connection.healed()

    def stopped(self, process: Process) -> None:
        """Have its peers give up on a process that stands still for too long."""
        since = self.clock.now
        process.stopped_at = since
        for connection in self.connections:
            if process in connection.processes:
                connection.time_out(lambda: process.stopped and process.stopped_at == since)

    def _between(self, pair: frozenset[str]) -> list[Connection]:
        return [c for c in self.connections if {p.name for p in c.processes} == pair]

    async def connect(
        self,
        process: Process,
        address: str,
        serve: Callable[[Listener, Context], Awaitable[None]],
        is_wild: bool = False,
    ) -> Connection:
        """Reach the server at an address and have it serve a connection.

        Raises:
            grpc.aio.AioRpcError: if it cannot be reached.
        """
        clock, listener = self.clock, self.listeners.get(address)
        server = None if listener is None else listener.process
        connected: asyncio.Future[Connection | None] = process.loop.create_future()

        def settle(connection: Connection | None) -> None:
            if not connected.done():
                connected.set_result(connection)
            elif connection is not None:
                connection.close(connection.client)

        clock.at(clock.now + CONNECT_S, process, lambda: settle(None))
        if listener is None or server is None or not server.alive:
            clock.at(clock.now + self.latency(), process, lambda: settle(None))
        elif not self.parted(process, server):

            def accept() -> None:
                if self.parted(process, server) or not process.alive:
                    return
                connection = Connection(self, process, server, is_wild)
                self.connections.append(connection)
                context = Context(connection)
                context.task = server.loop.create_task(_serve(listener, serve, context))
                clock.at(clock.now + self.latency(), process, lambda: settle(connection))

            clock.at(clock.now + self.latency(), server, accept)
        connection = await connected
        if connection is None or connection.client.broken:
            raise failure("no answer")
        return connection

    async def call(self, process: Process, address: str, method: str, request: Any) -> AsyncIterator[Any]:
        """Call the server at an address and yield its replies.

        Raises:
            grpc.aio.AioRpcError: if it cannot be reached, breaks off or refuses.
        """

        async def serve(listener: Listener, context: Context) -> None:
            async for reply in listener.call(method, request, context):
                context.send(reply)

        connection = await self.connect(process, address, serve)
        try:
            while (reply := await connection.client.take()) is not None:
                yield reply
        finally:
            connection.close(connection.client)


async def _serve(listener: Listener, serve: Callable[[Listener, Context], Awaitable[None]], context: Context) -> None:
    status = grpc.StatusCode.OK
    try:
        await serve(listener, context)
    except grpc.aio.AbortError:
        return
    except asyncio.CancelledError:
        raise
    except Exception as error:
        # What gRPC makes of an error that nobody caught; ours never are to be.
        status = grpc.StatusCode.UNKNOWN
        if Process.current is None:
            # It is being taken apart.
            return
        Process.current.errors.append(f"uncaught in a service: {error!r}")
    context.finish(status, "")


async def _train(listener: Listener, context: Context) -> None:
    await listener.train(context)


def failure(details: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    """Return what a broken connection raises."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


class Status:
    """The last word of a server on a stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details


class End:
    """What has arrived at one side of a connection."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.broken = False
        self.error: grpc.aio.AioRpcError | None = None
        self.on_break: Callable[[], None] = lambda: None
        self._inbox: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def arrive(self, item: Any) -> None:
        """Take in a message; runs in the process."""
        if not self.broken:
            self._inbox.append(item)
            if isinstance(item, Status):
                self.on_break()
            self._wake()

    def snap(self, error: grpc.aio.AioRpcError | None) -> None:
        """Learn that the connection is broken; runs in the process."""
        if not self.broken:
            self.broken, self.error = True, error
            self.on_break()
            self._wake()

    async def take(self) -> Any:
        """Wait for a message; None at a proper end.

        Raises:
            grpc.aio.AioRpcError: if the connection is broken.
        """
        while not self._inbox:
            if self.broken:
                if self.error is not None:
                    raise self.error
                return None
            self._waiter = self.process.loop.create_future()
            await self._waiter
        item = self._inbox.popleft()
        if isinstance(item, Status):
            self.broken = True
            if item.code is not grpc.StatusCode.OK:
                self.error = failure(item.details, item.code)
                raise self.error
            return None
        return item

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Channel:
    """One direction of a connection."""

    def __init__(
        self, network: Network, source: Process, target: End, wild: Callable[[int, Any], bool], may_overtake: bool
    ) -> None:
        self._network, self._source, self._target = network, source, target
        #: Says of a numbered message whether it may be lost or doubled.
        self._wild = wild
        self._may_overtake = may_overtake
        self._sent = 0
        self._last = 0.0
        #: Of those not arrived yet, messages from this number on are lost.
        self._cut = 1 << 60
        self._closed_at = math.inf
        self._arrived = 0
        self._held: list[Any] = []
        self.reset: Callable[[], None]

    def send(self, item: Any) -> None:
        """Put a message on its way."""
        network, source = self._network, self._source
        if self._held or network.parted(source, self._target.process):
            self._held.append(item)
            return
        number = self._sent
        self._sent += 1
        # A process that waits for its disk speaks after that.
        leaves = max(network.clock.now, source.io_time)
        overtakes = leaves + network.latency()
        self._last = when = max(self._last, overtakes)
        if network.wild and self._wild(number, item):
            fate = network.rng.random()
            if fate < 0.03:
                # What is lost for good breaks the stream sooner or later.
                network.clock.at(when + network.rng.uniform(0.5, 5.0), None, self.reset)
                return
            if fate < 0.08:
                self._deliver(when + network.latency(), leaves, number, item)
            if fate > 0.92 and self._may_overtake:
                self._deliver(overtakes, leaves, number, item)
                return
        self._deliver(when, leaves, number, item)

    def _deliver(self, when: float, leaves: float, number: int, item: Any) -> None:
        def arrive() -> None:
            if number < self._cut and leaves <= self._closed_at:
                self._arrived = max(self._arrived, number + 1)
                self._target.arrive(item)

        self._network.clock.at(when, self._target.process, arrive)

    def flush(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for item in held:
            self.send(item)

    def lose_tail(self) -> float:
        """Lose some of what has not arrived; return when the last that is not lost will be there."""
        self._held.clear()
        self._closed_at = min(self._closed_at, self._network.clock.now)
        self._cut = self._arrived + int(self._network.rng.random() * (self._sent - self._arrived + 1))
        return self._last


class Connection:
    """A connection of a worker, a client or a coordinator to a server."""

    def __init__(self, network: Network, process: Process, server: Process, is_wild: bool) -> None:
        self._network = network
        network.count += 1
        self.number = network.count
        self.processes = (process, server)
        self.client, self.server = End(process), End(server)
        #: The join comes first and alone; of what goes to a worker, work can be asked for again.
        self.to_server = Channel(
            network, process, self.server, lambda number, _: is_wild and number > 0, may_overtake=True
        )
        # Tensors and what they belong to need their order.
        self.to_client = Channel(
            network,
            server,
            self.client,
            lambda _, item: is_wild and isinstance(item, bytes) and item[:1] == WORK_TAG,
            may_overtake=False,
        )
        self.channels = (self.to_server, self.to_client)
        for channel in self.channels:
            channel.reset = self.reset
        process.on_death.append(lambda: self.close(self.client))
        server.on_death.append(lambda: self.close(self.server))

    def close(self, end: End) -> None:
        """One side ends it, or died; the other learns that if it can."""
        network = self._network
        outgoing, peer = (self.to_server, self.server) if end is self.client else (self.to_client, self.client)
        end.broken = True
        last = outgoing.lose_tail()
        if not network.parted(*self.processes):
            later = max(last, network.clock.now + network.latency())
            network.clock.at(later, peer.process, lambda: peer.snap(failure("the connection broke")))
            if self in network.connections:
                network.connections.remove(self)

    def healed(self) -> None:
        """Go on after a partition; who has ended it meanwhile can be heard of again."""
        if self.client.broken or self.server.broken:
            self.reset()
        for channel in self.channels:
            channel.flush()

    def reset(self) -> None:
        """Break it in the middle."""
        for end in (self.client, self.server):
            later = self._network.clock.now + self._network.latency()
            self._network.clock.at(later, end.process, lambda end=end: self._snap(end))

    def time_out(self, still: Callable[[], bool]) -> None:
        """Break it, for each side at a time of its own, if it is `still` dead by then."""
        for end in (self.client, self.server):
            later = self._network.clock.now + self._network.rng.uniform(*KEEPALIVE_S)

            def expire(end: End = end) -> None:
                if still():
                    self._snap(end)

            self._network.clock.at(later, end.process, expire)

    def _snap(self, end: End) -> None:
        end.snap(failure("no answer to a ping"))
        self.close(end)


class Context:
    """The server's side of a connection, in the shape of `grpc.aio.ServicerContext`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.processes = connection.processes
        #: No two connections have the same.
        self.number = connection.number
        self.task: asyncio.Task[None] | None = None
        connection.server.on_break = self._broke

    def _broke(self) -> None:
        # The runtime cancels the handler of a call that is over; the end of what is read may come first.
        if self.task is not None and self._connection._network.rng.random() < 0.5:
            self.task.cancel()

    async def read(self) -> Any:
        try:
            item = await self._connection.server.take()
        except grpc.aio.AioRpcError:
            item = None
        return grpc.aio.EOF if item is None else item

    async def write(self, message: bytes) -> None:
        if self._connection.server.broken:
            raise asyncio.InvalidStateError("the call is over")
        self.send(message)

    def send(self, item: Any) -> None:
        """Send a message or a reply."""
        if not self._connection.server.broken:
            self._connection.to_client.send(item)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        self.finish(code, details)
        raise grpc.aio.AbortError("aborted")

    def finish(self, code: grpc.StatusCode, details: str) -> None:
        """Say the last word."""
        if not self._connection.server.broken:
            self._connection.to_client.send(Status(code, details))
            self._connection.server.snap(None)


class Stream:
    """The worker's side of its stream, in the shape of `paramserver.worker.stream.Stream`."""

    #: The network of the simulation that runs.
    network: Network
    is_beside = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._reading: asyncio.Future[Any] | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_sent = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close(self._connection.client)

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        await self.send_all([frame(message, payload)])

    async def send_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._send(whole(message))

    async def _send(self, data: bytes) -> None:
        process, network = Process.current, self.network
        assert process is not None
        if self._connection is None:
            self._connection = await network.connect(process, self.address, _train, is_wild=True)
            self._connection.client.on_break = self._note_end
        await asyncio.sleep(0)
        if self._connection.client.broken:
            raise self._connection.client.error or failure("the server ended the stream")
        self._connection.to_server.send(data)
        self.last_sent = network.clock.now

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        if self._connection is None:
            raise failure("no connection")
        reading, self._reading = self._reading or asyncio.ensure_future(self._connection.client.take()), None
        data = await reading
        return None if data is None else decode_server_message(data)

    async def arrives(self, done: asyncio.Future[Any], soon: bool = False) -> bool:  # noqa: ARG002
        if self._connection is None:
            raise failure("no connection")
        self._reading = self._reading or asyncio.ensure_future(self._connection.client.take())
        await asyncio.wait((self._reading, done), return_when=asyncio.FIRST_COMPLETED)
        return self._reading.done()

    def has_arrived(self) -> bool:
        return self._reading is not None and self._reading.done()

    def _note_end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
