"""Two pipes between a worker and a server of one machine, for a `Line` between them once they share memory.

Like shared memory, pipes have no name: the worker makes them, and the server opens its ends in the worker's descriptor
table, so that nobody else can, and nothing is left behind.
"""

from __future__ import annotations

import os
import stat

from paramserver.wire.errors import PeerGone, ProtocolError


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
