"""Two pipes between a worker and a server of one machine, through which messages go once they share memory.

A message through gRPC costs several hand-overs between threads, through a pipe one system call on either side. Like
shared memory, pipes have no name: the worker makes them, and the server opens its ends in the worker's descriptor
table, so that nobody else can, and nothing is left behind. In a pipe each message stands behind its length, 4
bytes, little-endian.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence

from paramserver.wire.errors import PeerGone, ProtocolError

#: No message is longer, as on the stream.
MAX_BYTES = 16 << 20

_LENGTH_BYTES = 4

#: Bytes that are read at once: as many as a pipe holds.
_PIECE = 1 << 16


class PipePair:
    """What a worker offers: a pipe up to the server and one down from it."""

    def __init__(self) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        #: Descriptors for the server to open: where it reads, and where it writes.
        self.up, self._writing = os.pipe2(flags)
        self._reading, self.down = os.pipe2(flags)

    def take(self) -> tuple[int, int]:
        """Return the worker's ends, to read from and to write to, once the server has opened its own."""
        os.close(self.up)
        os.close(self.down)
        return self._reading, self._writing

    def close(self) -> None:
        """Give all of it up."""
        for descriptor in self.take():
            os.close(descriptor)


def open_pipes(pid: int, up: int, down: int) -> tuple[int, int]:
    """Return the server's ends of the pipes that a worker made, to read from and to write to.

    Raises:
        ProtocolError: if there are none that this process can open.
    """
    reading = _open(pid, up, os.O_RDONLY)
    try:
        return reading, _open(pid, down, os.O_WRONLY)
    except ProtocolError:
        os.close(reading)
        raise


def _open(pid: int, descriptor: int, mode: int) -> int:
    try:
        own = os.open(f"/proc/{pid}/fd/{descriptor}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PeerGone(f"no pipe {descriptor} of process {pid}: {error.strerror}") from None
    if not stat.S_ISFIFO(os.fstat(own).st_mode):
        os.close(own)
        raise ProtocolError(f"descriptor {descriptor} of process {pid} is no pipe")
    return own


class Pipes:
    """An open pair of pipes in the running event loop; owns its descriptors, `reading` and `writing`.

    `take` gets every message that comes; `drained` is called whenever all that was to be sent is sent, and `fail` when
    what comes is no message, after which nothing more does. That the other side is gone is no news from here: the
    stream beside the pipes ends, and says why.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        take: Callable[[bytes], None],
        drained: Callable[[], None],
        fail: Callable[[ProtocolError], None],
    ) -> None:
        self._reading, self._writing = reading, writing
        self._take, self._drained, self._fail = take, drained, fail
        self._loop = asyncio.get_running_loop()
        #: Answers of one or more messages that have yet to be sent; whoever adds one calls `flush`.
        self.outbox: deque[Sequence[bytes]] = deque()
        #: What is left of an answer of which a part is sent.
        self._unsent = memoryview(b"")
        self._is_full = False
        #: The beginning of a message whose end has yet to come, and how many bytes there are then.
        self._begun = bytearray()
        self._awaited = 0
        self.closed = False
        self._loop.add_reader(reading, self.read)

    @property
    def is_drained(self) -> bool:
        """Whether all is sent."""
        return not self.outbox and not self._unsent

    def flush(self) -> None:
        """Send what the pipe takes now, and the rest when it takes more."""
        if self._is_full or self.closed:
            return
        try:
            while self.outbox or self._unsent:
                if not self._unsent:
                    self._unsent = memoryview(_framed(self.outbox.popleft()))
                self._unsent = self._unsent[os.write(self._writing, self._unsent) :]
        except BlockingIOError:
            self._is_full = True
            self._loop.add_writer(self._writing, self._on_room)
            return
        except OSError:
            # Nobody reads any more.
            self.outbox.clear()
            self._unsent = memoryview(b"")
        self._drained()

    def read(self) -> None:
        """Take what has come, which happens by itself too."""
        if self.closed:
            return
        try:
            data = os.read(self._reading, _PIECE)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._reading)
            return
        if self._begun:
            self._begun += data
            if len(self._begun) < self._awaited:
                return
            data = bytes(self._begun)
            self._begun.clear()
        self._cut(data)

    def _cut(self, data: bytes) -> None:
        """Take the messages that are whole, and remember the beginning of the last."""
        start, size = 0, len(data)
        while size - start >= _LENGTH_BYTES and not self.closed:
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(data[start:begin], "little")
            if length > MAX_BYTES:
                self._loop.remove_reader(self._reading)
                self._fail(ProtocolError(f"a message of {length} bytes is in a pipe, allowed are {MAX_BYTES}"))
                return
            if begin + length > size:
                self._awaited = _LENGTH_BYTES + length
                break
            start = begin + length
            self._take(data[begin:start])
        if start < size:
            self._begun += data[start:]
            if size - start < _LENGTH_BYTES:
                self._awaited = _LENGTH_BYTES

    def close(self) -> None:
        """Give up the pipes; what was not sent is not."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._reading)
        self._loop.remove_writer(self._writing)
        os.close(self._reading)
        os.close(self._writing)

    def _on_room(self) -> None:
        self._loop.remove_writer(self._writing)
        self._is_full = False
        self.flush()


def _framed(messages: Sequence[bytes]) -> bytes:
    return b"".join(part for message in messages for part in (len(message).to_bytes(_LENGTH_BYTES, "little"), message))
