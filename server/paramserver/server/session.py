"""One worker's stream as the server sees it: what is coming in and what is waiting to go out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from paramserver.server.events import Contribution
from paramserver.server.tables.arriving import Arriving, ArrivingRows
from paramserver.wire.errors import ParamserverError
from paramserver.wire.framing import Data, Message
from paramserver.wire.layout import Array
from paramserver.wire.line import Line
from paramserver.wire.lookout import Lookout
from paramserver.wire.sharing import Draft, Segment
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Answers that may wait for a worker; an honest one reads them, so one that lets them pile up is cut off.
MAX_WAITING = 64

#: Parameters that may wait for a worker, which asks for them one by one; each is as large as θ.
MAX_PARAMETERS_WAITING = 4

#: Bytes of an answer that may as well be a refusal; of those a worker may get one for each of its shards at once.
SMALL = 4096


class Gate(Protocol):
    """Decides when something may be said."""

    def keeps(self, session: Session, messages: tuple[Message, ...], for_good: bool) -> bool:
        """Take the messages to deliver them later; False if they may go now.

        What is told `for_good` is not taken back by a crash: it waits for the disk. Anything else may.
        """


@dataclass(slots=True)
class Incoming:
    """A push that has begun: what its first chunk said, and where the next one must start."""

    contribution: Contribution
    next_offset: int = 0
    #: What is in so far; it counts only when it is whole, and goes when the stream breaks or the worker lied.
    chunks: list[Array] = field(default_factory=list)
    #: They lie in memory that the worker shares.
    is_lent: bool = False
    #: The whole contribution, if other servers see it there and were told nothing of it.
    sight: Segment | None = None
    #: Rows of tables that came ahead of it; None if the job has no tables.
    rows: Arriving | None = None

    @property
    def name(self) -> tuple[int, int, int]:
        """Shard, epoch and step."""
        c = self.contribution
        return c.shard, c.epoch, c.step


class Arrived(NamedTuple):
    """The values of a contribution that is whole."""

    blocks: list[Array]
    #: They lie in memory that its worker shares.
    is_lent: bool
    #: See `Incoming`.
    sight: Segment | None = None


@dataclass(slots=True)
class Session:
    """A joined worker."""

    join: pb.Join
    #: The worker's name.
    name: str = field(init=False)
    #: The push in progress, or None between two.
    incoming: Incoming | None = None
    #: (shard, epoch, step) of a push that was refused at its first chunk; its other chunks are passed over.
    discarding: tuple[int, int, int] | None = None
    #: Initial parameters in progress; None before the first chunk.
    initial: Draft | None = None
    initial_layout: list[pb.Tensor] = field(default_factory=list)
    initial_tables: list[pb.Table] = field(default_factory=list)
    #: Rows of tables that came ahead of pushes which have not begun.
    rows: ArrivingRows = field(default_factory=ArrivingRows)
    #: Version that the worker holds whole, as its last pull said.
    held: int | None = None
    #: Of its last pull, if this is not the coordinator.
    number: int = 0
    #: Where the worker ran when it pushed last, see `Push.core`.
    core: int = 0
    #: The worker has proved that it can map this process's memory.
    shares_memory: bool = False
    #: Where the worker lays its contributions, whole vectors by shard.
    slots: dict[int, Segment] = field(default_factory=dict)
    #: Elastic averaging: lease epoch and step for which it was last asked, by shard.
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: What comes now is about the present job: it is the stream's first, or the worker has pulled for it by name.
    has_begun: bool = True
    has_worked: bool = False
    knows_census: bool = False
    knows_layout: bool = False
    #: Tensor bytes.
    received: int = 0
    sent: int = 0
    #: Answers of one or more messages each; their bytes are shared with other sessions where they are the same.
    _outbox: deque[Sequence[Message]] = field(default_factory=deque)
    #: Where answers go in place of the stream. `_outbox` is its then, and what was queued before is in `_last`.
    _line: Line | None = None
    _last: deque[Sequence[Message]] = field(default_factory=deque)
    #: What the writer waits for while there is nothing to send.
    _waiting: asyncio.Future[None] | None = None
    closed: bool = False
    #: Held while gRPC writes a message, in the middle of which it cannot end a stream.
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Takes what may not be said yet and delivers it later; None if everything may be said at once.
    gate: Gate | None = None
    #: Ends the stream whether or not its worker reads.
    cut: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.name = self.join.worker

    def is_of_same_process(self, other: Session) -> bool:
        """Is another stream that of the same worker process, which has come back?"""
        mine, others = self.join, other.join
        return (mine.host, mine.pid, mine.instance) == (others.host, others.pid, others.instance)

    def runs_on(self, core: int) -> bool:
        """Did the worker run on this core of the machine, if that is known?"""
        return 0 < core == self.core

    @property
    def is_beside(self) -> bool:
        """Do messages go beside the stream?"""
        return self._line is not None

    @property
    def is_full(self) -> bool:
        """Do so many parameters wait that no more must join them?"""
        if len(self._outbox) < MAX_PARAMETERS_WAITING:
            return False
        return sum(len(answer[-1]) > SMALL for answer in self._outbox) >= MAX_PARAMETERS_WAITING

    def send(self, *messages: Message, for_good: bool = False) -> None:
        """Queue an answer of encoded messages, or leave it with the gate; never waits."""
        if self.gate is None or not self.gate.keeps(self, messages, for_good):
            self.deliver(messages)

    def deliver(self, messages: Sequence[Message]) -> None:
        """Queue an answer that the gate, if there is one, has let through."""
        if len(self._outbox) >= MAX_WAITING:
            self.give_up()
        if not self.closed:
            self._outbox.append(messages)
            if self._line is None:
                self._wake_writer()
            else:
                self._line.flush()

    def move(
        self,
        reading: int,
        writing: int,
        take: Callable[[Data], None],
        fail: Callable[[ParamserverError], None],
        coming: Callable[[], None],
        lookout: Lookout | None = None,
    ) -> None:
        """Let what is not queued yet go through these descriptors; `take`, `fail` and `coming` are told what comes
        there."""
        self._line = Line(reading, writing, take, self._after_flush, fail, lookout)
        self._line.coming = coming
        self._last, self._outbox = self._outbox, self._line.outbox

    def _after_flush(self) -> None:
        # While it is open the stream has nothing to say.
        if self.closed:
            self._wake_writer()

    def close(self) -> None:
        """End the stream after what is queued."""
        self.closed = True
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def give_up(self) -> None:
        """End the stream of a worker that does not read, and forget what waits for it."""
        self._outbox.clear()
        self.close()
        self.cut()

    def end(self) -> None:
        """Let go of what the worker shared, and of the stream, which holds this; not only at the next collection."""
        self.slots, self.initial = {}, None
        if self._line is not None:
            self._line.close()
        self.cut = lambda: None

    async def next_answer(self) -> Sequence[Message] | None:
        """Wait for the next messages to send on the stream; None when it is to end."""
        while not (queue := self._outbox if self._line is None else self._last):
            if self.closed and (self._line is None or self._line.is_drained):
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return queue.popleft()

    def start_job(self) -> None:
        """Forget what belonged to an earlier job."""
        self.incoming = self.discarding = self.held = None
        self.initial, self.initial_layout, self.initial_tables = None, [], []
        self.rows = ArrivingRows()
        self.slots, self.asked = {}, {}
        self.knows_census = self.knows_layout = False
        self.has_begun, self.has_worked = not self.has_worked, True
        self.received = self.sent = 0
