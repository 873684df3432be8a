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

PAGE_BYTES = 4096

#: The first page holds the sequence number, the vector begins on the second: at its start, or as far into it as a part
#: of a larger vector begins within a page of that.
HEADER_BYTES = PAGE_BYTES

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

    def __init__(self, descriptor: int, memory: mmap.mmap, size: int, dtype: np.dtype[Any], start: int = 0) -> None:
        self._memory = memory
        #: In the table of this process, for others to open; -1 if it was not kept, or the system has no such memory.
        self.descriptor = descriptor
        #: The shared vector.
        self.values: Array = np.frombuffer(memory, dtype=dtype, count=size, offset=_first_byte(start, dtype))
        #: Odd while the vector is being changed; see `copy_whole`.
        self.sequence = np.frombuffer(memory, dtype=np.uint64, count=1)

    @classmethod
    def create(cls, size: int, dtype: np.dtype[Any], owner_writes_only: bool = False, start: int = 0) -> Segment:
        """Make a segment filled with zeros; the pages are there at once, not at first touch.

        `start` is where in a larger vector this one begins.

        Raises:
            OSError: if there is not enough memory.
        """
        return Draft(size, dtype, start).finish(owner_writes_only)

    @classmethod
    def open(
        cls, pid: int, descriptor: int, size: int, dtype: np.dtype[Any], start: int = 0, keeps: bool = False
    ) -> Segment:
        """Map another process's segment for reading; with `keeps` it can be opened from here too, whatever becomes of
        that process.

        Raises:
            ProtocolError: if there is none, it is too short, or it could shrink under the reader.
        """
        length = _first_byte(start, dtype) + size * dtype.itemsize
        own = open_sealed(pid, descriptor, length)
        try:
            memory = mmap.mmap(own, length, prot=mmap.PROT_READ)
        except OSError as error:
            os.close(own)
            raise ProtocolError(f"shared memory {descriptor} of process {pid}: {error.strerror}") from None
        if not keeps:
            os.close(own)
        return cls(own if keeps else -1, memory, size, dtype, start)

    def close(self) -> None:
        """Give up the descriptor; the memory goes when nothing maps it any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()

    def has_had(self, changes: int) -> bool:
        """Say whether the vector has been changed so many times."""
        return int(self.sequence[0]) >= 2 * changes

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


class Draft:
    """A segment in the making: it takes no more memory than has been written to it.

    So whoever announces a large vector gets nothing for it that he does not fill. Where the system has no memory of the
    kind that can be shared, the segment will be private.

    Raises:
        OSError: if there is not enough memory, here and in every method.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], start: int = 0) -> None:
        self._size, self._dtype, self._start = size, dtype, start
        self._first = _first_byte(start, dtype)
        self._length = self._first + size * dtype.itemsize
        #: Elements that have been written.
        self.written = 0
        self._descriptor = -1
        self._memory: mmap.mmap | None = None
        if AVAILABLE:
            self._descriptor = os.memfd_create("paramserver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.fchmod(self._descriptor, 0o600)
        else:
            # Only addresses, as long as nothing is written there.
            self._memory = mmap.mmap(-1, self._length)

    def append(self, values: Array) -> None:
        """Write the next elements; those of all calls are at most `size`."""
        rest = values.view(np.uint8).data
        place = self._first + self.written * self._dtype.itemsize
        if self._memory is not None:
            self._memory[place : place + len(rest)] = rest
        else:
            # Not through a mapping: there a lack of memory would end the process.
            while rest:
                done = os.pwrite(self._descriptor, rest, place)
                rest, place = rest[done:], place + done
        self.written += values.size

    def finish(self, owner_writes_only: bool = False) -> Segment:
        """Return the segment, with zeros where nothing was written."""
        memory = self._memory
        if memory is None:
            os.posix_fallocate(self._descriptor, 0, self._length)
            memory = mmap.mmap(self._descriptor, self._length)
            seals = _SEAL_SHRINK | _SEAL_GROW | (_SEAL_FUTURE_WRITE if owner_writes_only else 0)
            fcntl.fcntl(self._descriptor, _ADD_SEALS, seals | _SEAL_SEAL)
        descriptor, self._descriptor = self._descriptor, -1
        return Segment(descriptor, memory, self._size, self._dtype, self._start)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def make_probe() -> Segment | None:
    """Return a segment of random bytes, by which other processes prove that they see this one's memory; None where the
    system has no such memory."""
    if not AVAILABLE:
        return None
    probe = Segment.create(PROBE_BYTES, np.dtype(np.uint8))
    probe.values[:] = np.frombuffer(os.urandom(PROBE_BYTES), np.uint8)
    return probe


def read_probe(pid: int, descriptor: int) -> bytes:
    """Return what another process's probe holds.

    Raises:
        ProtocolError: if this process does not see it.
    """
    return Segment.open(pid, descriptor, PROBE_BYTES, np.dtype(np.uint8)).values.tobytes()


def open_sealed(pid: int, descriptor: int, length: int) -> int:
    """Return a descriptor of another process's segment, which has at least `length` bytes and never fewer.

    Raises:
        ProtocolError: if there is none, it is too short, or it could shrink under the reader.
    """
    try:
        own = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PeerGone(f"no shared memory {descriptor} of process {pid}: {error.strerror}") from None
    try:
        if fcntl.fcntl(own, _GET_SEALS) & _SEAL_SHRINK and os.fstat(own).st_size >= length:
            return own
        reason = "is short or not sealed"
    except OSError as error:
        reason = f"cannot be used: {error.strerror}"
    os.close(own)
    raise ProtocolError(f"shared memory {descriptor} of process {pid} {reason}")


def _first_byte(start: int, dtype: np.dtype[Any]) -> int:
    return HEADER_BYTES + start * dtype.itemsize % PAGE_BYTES
