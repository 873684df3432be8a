"""Vectors in the shared memory of several processes, mapped side by side so that they are one vector, without a copy.

Pages can be mapped next to each other, elements cannot: of a page in which one vector ends and the next begins there
is a copy, which `settle` renews.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np

from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Array
from paramserver.wire.sharing import HEADER_BYTES, PAGE_BYTES, Segment, open_sealed

_MAP_SHARED, _MAP_FIXED = 0x01, 0x10

#: A mapping starts at a page of the machine.
AVAILABLE = mmap.PAGESIZE == PAGE_BYTES


class Mosaic:
    """A vector of `size` elements whose pieces lie in other processes' segments; read-only for whoever is honest.

    What no piece was laid for is zero.
    """

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        # Only addresses: the pages that stay are those with an edge.
        self._memory = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.values: Array = np.frombuffer(self._memory, dtype=dtype)
        #: By first element: its segment, and what of it has to be copied where.
        self._pieces: dict[int, tuple[tuple[int, int], Segment, list[tuple[Array, Array]]]] = {}

    def lay(self, start: int, size: int, pid: int, descriptor: int) -> Segment:
        """Show another process's segment of `size` elements from element `start` on, if it is not there already; return
        it.

        Raises:
            ProtocolError: if it cannot be mapped.
        """
        if start in self._pieces and self._pieces[start][0] == (pid, descriptor):
            return self._pieces[start][1]
        item = self._dtype.itemsize
        begin, end = start * item, (start + size) * item
        first, last = -(-begin // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        segment = Segment.open(pid, descriptor, size, self._dtype, start)
        edges = [(start, start + size)]
        if first < last:
            # In the file, as here, the piece begins within its first page.
            self._map(pid, descriptor, first, last - first, HEADER_BYTES + first - begin // PAGE_BYTES * PAGE_BYTES)
            edges = [(start, first // item), (last // item, start + size)]
        copies = [(self.values[a:b], segment.values[a - start : b - start]) for a, b in edges if a < b]
        self._pieces[start] = (pid, descriptor), segment, copies
        return segment

    def settle(self) -> None:
        """Make the edges show what the segments hold now."""
        for _, _, copies in self._pieces.values():
            for target, source in copies:
                np.copyto(target, source)

    def _map(self, pid: int, descriptor: int, place: int, length: int, offset: int) -> None:
        address = self.values.ctypes.data + place
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        own = open_sealed(pid, descriptor, offset + length)
        try:
            found = libc.mmap(address, length, mmap.PROT_READ, _MAP_SHARED | _MAP_FIXED, own, offset)
            if found != address:
                reason = os.strerror(ctypes.get_errno())
                raise ProtocolError(f"shared memory {descriptor} of process {pid}: {reason}")
        finally:
            os.close(own)
