"""Memory that two processes of one machine and one user share, without a name that could be left behind.

A segment is an anonymous memory file. It is opened by another process through the owner's file descriptor table, so
that only processes of the same user that see each other can share it, and it is gone with the last process that maps
it, however that ends. Seals make it safe to map: it can never shrink under a reader, and with `owner_writes_only`
nobody but the creator can ever write to it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from typing import Any

import numpy as np

from paramserver.wire.errors import PeerGone, ProtocolError
from paramserver.wire.layout import Array

#: The first page holds the sequence number, the tensor begins on the second.
HEADER_BYTES = 4096

#: Size of the random probe by which two processes find out whether they share memory.
PROBE_BYTES = 32

_SEAL_SHRINK = 0x0002
_SEAL_GROW = 0x0004
_SEAL_SEAL = 0x0001
#: Linux 5.1; the constant is missing in older Pythons.
_SEAL_FUTURE_WRITE = 0x0010
_ADD_SEALS, _GET_SEALS = 1033, 1034

#: A change takes milliseconds to a second; one that stands still for so long has lost its owner.
STUCK_S = 2.0

#: Whether this system has such memory at all.
AVAILABLE = hasattr(os, "memfd_create")


class Segment:
    """A vector of `size` elements in shared memory, with a sequence number in front.

    The creator maps it for writing; `Segment.open` maps another process's for reading.
    """

    def __init__(self, descriptor: int, memory: mmap.mmap, size: int, dtype: np.dtype[Any]) -> None:
        self._memory = memory
        #: In the owner's table; -1 for a segment of another process.
        self.descriptor = descriptor
        #: The shared vector.
        self.values: Array = np.frombuffer(memory, dtype=dtype, count=size, offset=HEADER_BYTES)
        #: Odd while the vector is being changed; see `copy_whole`.
        self.sequence = np.frombuffer(memory, dtype=np.uint64, count=1)

    @classmethod
    def create(cls, size: int, dtype: np.dtype[Any], owner_writes_only: bool = False) -> Segment:
        """Make a segment filled with zeros; the pages are there at once, not at first touch.

        Raises:
            OSError: if there is not enough memory.
        """
        length = HEADER_BYTES + size * dtype.itemsize
        descriptor = os.memfd_create("paramserver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, length)
            memory = mmap.mmap(descriptor, length)
            seals = _SEAL_SHRINK | _SEAL_GROW | (_SEAL_FUTURE_WRITE if owner_writes_only else 0)
            fcntl.fcntl(descriptor, _ADD_SEALS, seals | _SEAL_SEAL)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, memory, size, dtype)

    @classmethod
    def open(cls, pid: int, descriptor: int, size: int, dtype: np.dtype[Any]) -> Segment:
        """Map another process's segment for reading.

        Raises:
            ProtocolError: if there is none, it is too short, or it could shrink under the reader.
        """
        length = HEADER_BYTES + size * dtype.itemsize
        try:
            own = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise PeerGone(f"no shared memory {descriptor} of process {pid}: {error.strerror}") from None
        try:
            if not fcntl.fcntl(own, _GET_SEALS) & _SEAL_SHRINK or os.fstat(own).st_size < length:
                raise ProtocolError(f"shared memory {descriptor} of process {pid} is short or not sealed")
            memory = mmap.mmap(own, length, prot=mmap.PROT_READ)
        except OSError as error:
            raise ProtocolError(f"shared memory {descriptor} of process {pid}: {error.strerror}") from None
        finally:
            os.close(own)
        return cls(-1, memory, size, dtype)

    def close(self) -> None:
        """Give up the descriptor; the memory goes when nothing maps it any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()

    def copy_whole(self, out: Array) -> int:
        """Copy the vector as it was at one moment, while its owner may be changing it (a sequence lock).

        Returns how many changes it had had by then.

        Raises:
            PeerGone: if the owner began a change and does not end it, most likely because it was killed.
        """
        stuck, since = -1, 0.0
        while True:
            before = int(self.sequence[0])
            if before % 2 == 0:
                np.copyto(out, self.values)
                if int(self.sequence[0]) == before:
                    return before // 2
            elif before != stuck:
                stuck, since = before, time.monotonic()
            elif time.monotonic() - since > STUCK_S:
                raise PeerGone(f"the owner of shared memory stopped in the middle of change {before // 2 + 1} of it")
            os.sched_yield()
