"""Messages through descriptors beside the gRPC stream: a pair of pipes, or one TCP connection.

A message through gRPC costs several hand-overs between threads, and its tensor several copies. Here it costs system
calls alone: tensors are sent from where they are, and received where they stay. Each message stands behind its length,
4 bytes, little-endian.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import ClassVar

import numpy as np

from paramserver.wire.awake import Awake
from paramserver.wire.errors import ParamserverError, ProtocolError, Unreachable
from paramserver.wire.framing import Apart, Data, Message, Placed
from paramserver.wire.lookout import Lookout

#: No message is longer, as on the stream.
MAX_BYTES = 16 << 20

_LENGTH = struct.Struct("<I")
_LENGTH_BYTES = _LENGTH.size

#: Longer messages are received where they stay, shorter ones many at once.
_LARGE = 1 << 15

#: Bytes that are read and written before others have their turn.
_TURN = 1 << 22

#: Of a large message so much is waited for, or a quarter if that is more, before more of it is read: who is woken for
#: every packet does little else.
_WORTH_READING = 1 << 20

#: Between two times that one is told that a large message is on its way, so much time passes at least.
_TOLD_S = 0.1

#: Messages that are written at once; a system call takes up to 1024 buffers.
_BATCH = 64

#: Of an answer of so many bytes the sending is worth a thread: the kernel copies it, and several lines go at once. Of
#: fewer, the threads' waiting for each other's interpreter lock costs more, …
_BULK = 1 << 23
#: … unless the lines of this process, should each of them have as many as this one, together have so many.
_BULK_OF_ALL = 24 << 20
_BULK_AT_LEAST = 1 << 21

#: How long a thread waits for room before it gives way to others, which may have some.
_PATIENCE_MS = 5

_threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "line")

#: How long the stream has to tell why it ends when what is beside it has ended.
GRACE_S = 2.0


class Line:
    """A way for messages in the running event loop; owns its descriptors, which may be one and the same.

    `take` gets every message that comes; `drained` is called whenever all that was to be sent is sent, and `fail` when
    what comes is no message, or the other end is gone while the stream beside goes on. After that nothing more comes.
    With a `lookout` small messages of other lines are waited for as well when one came here.
    """

    #: How many are open in this process.
    count: ClassVar[int] = 0

    def __init__(
        self,
        reading: int,
        writing: int,
        take: Callable[[Data], None],
        drained: Callable[[], None],
        fail: Callable[[ParamserverError], None],
        lookout: Lookout | None = None,
    ) -> None:
        self._reading, self._writing = reading, writing
        self._take, self._drained, self._fail = take, drained, fail
        self._loop = asyncio.get_running_loop()
        #: Answers of one or more messages that have yet to be sent; whoever adds one calls `flush`.
        self.outbox: deque[Sequence[Message]] = deque()
        #: What is left of an answer of which a part may be sent, and how many bytes of its first message are.
        self._unsent: deque[Message] = deque()
        self._sent = 0
        self._is_full = False
        #: A thread is sending `_unsent`.
        self._is_aside = False
        #: Where what comes is read to, and how much of it has been.
        self._arrived = memoryview(bytearray(_LENGTH_BYTES + _LARGE))
        self._count = 0
        #: A large message of which a part has come, and where the rest of it goes.
        self._large: tuple[Data, memoryview] | None = None
        #: Says where a large message goes, given its beginning and its size; None: wherever there is room.
        self.place: Callable[[memoryview, int], Placed | None] = lambda _begun, _size: None
        #: Called now and then while a large message comes, …
        self.coming: Callable[[], None] = lambda: None
        #: … and when it was, on the monotonic clock.
        self._told = 0.0
        #: Unless it is a pipe, tells the kernel from how many bytes on to wake this process; and how many those are.
        is_socket = stat.S_ISSOCK(os.fstat(reading).st_mode)
        self._socket = socket.socket(fileno=reading) if is_socket else None
        self._awaited = 1
        #: Nothing is read any more.
        self._is_over = False
        self._breaking: asyncio.TimerHandle | None = None
        self.closed = False
        Line.count += 1
        self._lookout = lookout
        self._loop.add_reader(reading, self.read if lookout is None else partial(lookout.listen, self))
        if lookout is not None:
            lookout.add(reading, self)
        #: What `wait` waits with.
        self._epoll: select.epoll | None = None
        self._awake = Awake()
        #: Whether the message that came last, or is on its way, is a large one.
        self.was_large = False

    @property
    def is_drained(self) -> bool:
        """Whether all is sent."""
        return not self.outbox and not self._unsent

    def flush(self) -> None:
        """Send what the other end takes now, and the rest when it takes more."""
        if self._lookout is not None:
            self._lookout.spoke()
        if self._is_full or self._is_aside or self.closed:
            return
        try:
            while self._unsent or self.outbox:
                if not self._unsent:
                    self._unsent.extend(self.outbox.popleft())
                    if self._send_small():
                        continue
                if self._is_bulky():
                    self._is_aside = True
                    self._loop.run_in_executor(_threads, self._send_aside).add_done_callback(self._on_return)
                    return
                self._take_off(os.writev(self._writing, self._buffers()))
        except BlockingIOError:
            self._wait_for_room()
            return
        except OSError:
            self._give_up()
        self._drained()

    def _send_small(self) -> bool:
        """Send an answer that has just begun, if it is one small message, as most are; False if not all is sent."""
        first, *others = _parts(self._unsent[0])
        if others or len(self._unsent) > 1:
            return False
        self._sent = os.write(self._writing, first)
        if self._sent < len(first):
            return False
        self._unsent.clear()
        self._sent = 0
        return True

    def _is_bulky(self) -> bool:
        """Is what is to be sent next worth a thread?"""
        size = sum(map(len, self._unsent))
        return size >= _BULK or (size >= _BULK_AT_LEAST and size * Line.count >= _BULK_OF_ALL)

    def _wait_for_room(self) -> None:
        self._is_full = True
        self._loop.add_writer(self._writing, self._on_room)

    def _give_up(self) -> None:
        """Nobody reads any more."""
        self.outbox.clear()
        self._unsent.clear()
        self._break()

    def _send_aside(self) -> None:
        """Send what has begun, in a thread.

        Raises:
            BlockingIOError: if there is no room for a while.
            OSError: if nobody reads any more.
        """
        room = select.poll()
        room.register(self._writing, select.POLLOUT)
        while self._unsent and not self.closed:
            try:
                self._take_off(self._send_first(self._unsent[0]))
            except BlockingIOError:
                if not room.poll(_PATIENCE_MS):
                    raise

    def _send_first(self, message: Message) -> int:
        if not isinstance(message, Apart):
            return os.writev(self._writing, _rest(_parts(message), self._sent))
        with message.lock:
            return os.writev(self._writing, _rest(_parts(message), self._sent))

    def _on_return(self, sending: asyncio.Future[None]) -> None:
        self._is_aside = False
        if self.closed:
            self._close_descriptors()
            return
        error = sending.exception()
        if isinstance(error, BlockingIOError):
            self._wait_for_room()
        elif error is None:
            self.flush()
        else:
            self._give_up()
            self._drained()

    def _buffers(self) -> list[bytes | memoryview]:
        """Return what is to be sent next, behind what is sent already."""
        parts: list[bytes | memoryview] = []
        size = -self._sent
        for message in islice(self._unsent, _BATCH):
            parts += _parts(message)
            size += len(message)
            if size >= _TURN:
                break
        return _rest(parts, self._sent)

    def _take_off(self, count: int) -> None:
        self._sent += count
        while self._unsent and self._sent >= (size := _LENGTH_BYTES + len(self._unsent[0])):
            self._sent -= size
            self._unsent.popleft()

    def read(self) -> None:
        """Take what has come, which happens by itself too."""
        taken = 0
        while taken < _TURN and not self._is_over:
            room = self._arrived if self._large is None else self._large[1]
            wanted = len(room) - self._count
            try:
                count = os.readv(self._reading, [room[self._count :]])
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                self._break()
                break
            taken += count
            self._count += count
            if self._large is None:
                self._cut()
            elif self._count == len(room):
                message, self._large, self._count = self._large[0], None, 0
                self._take(message)
            else:
                self._tell()
            if count < wanted:
                # That was all; should it not have been, the loop says so.
                break
        if self._socket is not None and not self._is_over:
            awaited = 1
            if self._large is not None:
                size = len(self._large[1])
                awaited = min(max(_WORTH_READING, size // 4), size - self._count)
            if awaited != self._awaited:
                self._awaited = awaited
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, awaited)

    def wait(self, seconds: float) -> bool:
        """Take what comes within this time, in which the whole process waits; False if nothing does."""
        if self._is_over:
            return False
        if self._epoll is None:
            # Who sleeps in `poll` itself seems to be woken on the core of the sender, which then cannot go on.
            self._epoll = select.epoll()
            self._epoll.register(self._reading, select.EPOLLIN)
        # While much is on its way to many, all cores have work.
        is_awake = not self.was_large and self._awake.finds(partial(self._epoll.poll, 0))
        if not is_awake and not self._epoll.poll(seconds):
            return False
        self.read()
        return True

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told > _TOLD_S:
            self._told = now
            self.coming()

    def _cut(self) -> None:
        """Take the messages that are whole, and remember the beginning of the last."""
        arrived, start = self._arrived, 0
        while self._count - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            (length,) = _LENGTH.unpack_from(arrived, start)
            if length > MAX_BYTES:
                self._stop()
                self._fail(ProtocolError(f"a message of {length} bytes came, allowed are {MAX_BYTES}"))
                return
            if begin + length > self._count:
                if length > _LARGE:
                    self._begin(arrived[begin : self._count], length)
                    return
                break
            start = begin + length
            self.was_large = False
            self._take(arrived[begin:start].tobytes())
            if self._is_over:
                return
        self._count -= start
        if start and self._count:
            arrived[: self._count] = bytes(arrived[start : start + self._count])

    def _begin(self, begun: memoryview, length: int) -> None:
        """Have the rest of a large message come to where it stays."""
        self.was_large = True
        placed = self.place(begun, length)
        if placed is None:
            room = np.empty(length, np.uint8).data
            self._large = room, room
        else:
            room = placed.payload
            begun = begun[length - len(room) :]
            self._large = placed, room
        self._count = len(begun)
        room[: self._count] = begun

    def _break(self) -> None:
        """Nothing more will come; if the stream beside does not say why, it has to be told."""
        self._stop()
        if self._breaking is None:
            error = Unreachable("the connection beside the stream broke")
            self._breaking = self._loop.call_later(GRACE_S, self._fail, error)

    def _stop(self) -> None:
        self._is_over = True
        self._loop.remove_reader(self._reading)
        if self._lookout is not None:
            self._lookout.remove(self._reading)

    def close(self) -> None:
        """Give up the descriptors; what was not sent is not."""
        if self.closed:
            return
        self.closed = True
        Line.count -= 1
        self._stop()
        if self._breaking is not None:
            self._breaking.cancel()
        self._loop.remove_writer(self._writing)
        if self._epoll is not None:
            self._epoll.close()
        if not self._is_aside:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        if self._socket is not None:
            self._socket.detach()
        for descriptor in {self._reading, self._writing}:
            os.close(descriptor)

    def _on_room(self) -> None:
        self._loop.remove_writer(self._writing)
        self._is_full = False
        self.flush()


def _rest(parts: list[bytes | memoryview], skipped: int) -> list[bytes | memoryview]:
    """Return what is left behind so many bytes."""
    if not skipped:
        return parts
    rest: list[bytes | memoryview] = []
    for part in parts:
        if skipped < len(part):
            rest.append(memoryview(part)[skipped:] if skipped else part)
        skipped = max(0, skipped - len(part))
    return rest


def _parts(message: Message) -> list[bytes | memoryview]:
    """Return what is sent of a message, its length in front."""
    length = _LENGTH.pack(len(message))
    if isinstance(message, Apart):
        return [length + message.head, message.payload]
    return [length + message] if len(message) <= _LARGE else [length, message]
