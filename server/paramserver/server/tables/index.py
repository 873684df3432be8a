"""Finds the places of keys, many at once: a hash index with open addressing and triangular probing.

The index holds nothing but places (4 bytes a slot); the keys themselves lie in the table's own column. All keys of a
batch are looked for at once, so that numpy's loops do the work; a compiled loop over the keys was no faster, since
both wait for memory.

Source: Knuth, "The Art of Computer Programming", volume 3, section 6.4.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, mix

#: Keys per slot at most. Every round of probing costs numpy calls, however few keys are left for it; at this load a
#: batch of thousands needs about a dozen.
MAX_LOAD = 0.5
#: Places are int32.
MAX_ROWS = 2**31 - 1

_SMALLEST = 1024
#: How many keys are put in at once when the index grows, which bounds what that takes besides.
_BLOCK = 1 << 20
_EMPTY = -1

Places = NDArray[np.int64]


class KeyIndex:
    """From keys to places 0, 1, 2, … in a column of keys, which the owner keeps and hands in with every call.

    The column has room for one key at least; what stands beyond the keys that were added means nothing.
    """

    def __init__(self) -> None:
        self._slots = np.full(_SMALLEST, _EMPTY, np.int32)
        # Unknown to whoever sends keys, so that nobody can choose many that all begin at one slot.
        self._secret = np.frombuffer(os.urandom(8), np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes that the index takes."""
        return self._slots.nbytes

    def find(self, column: Array, keys: Keys) -> Places:
        """Return the place of every key, shape (n,), or −1 where it is absent."""
        slots, mask = self._slots, self._slots.size - 1
        slot = self._home(keys)
        found = slots[slot].astype(np.int64)
        # Where a slot holds another key one further on is looked at; fewer and fewer keys are left.
        left = np.flatnonzero((found >= 0) & (column.take(found, mode="clip") != keys))
        slot = slot[left]
        step = 0
        while left.size:
            step += 1
            slot = (slot + step) & mask
            place = slots[slot].astype(np.int64)
            found[left] = place
            wrong = np.flatnonzero((place >= 0) & (column.take(place, mode="clip") != keys[left]))
            left, slot = left[wrong], slot[wrong]
        return found

    def add(self, column: Array, start: int, stop: int) -> None:
        """Take in the keys at the places start … stop − 1, which must be new; those before are in."""
        if stop > MAX_ROWS:
            raise OverflowError(f"{stop} rows are more than the {MAX_ROWS} of a table")
        slots = self._slots.size
        while stop > MAX_LOAD * slots:
            slots *= 2
        if slots > self._slots.size:
            self._slots = np.full(slots, _EMPTY, np.int32)
            start = 0
        self._put(column, start, stop)

    def rebuild(self, column: Array, rows: int) -> None:
        """Hold the keys at the places 0 … rows − 1 and no others."""
        self._slots[:] = _EMPTY
        self._put(column, 0, rows)

    def _put(self, column: Array, start: int, stop: int) -> None:
        slots, mask = self._slots, self._slots.size - 1
        for first in range(start, stop, _BLOCK):
            places = np.arange(first, min(first + _BLOCK, stop), dtype=np.int32)
            slot = self._home(column[places])
            step = 0
            while places.size:
                step += 1
                free = slots[slot] == _EMPTY
                slots[slot[free]] = places[free]
                # Of several that wanted one slot the last has it; the others and those that found it taken go on.
                lost = slots[slot] != places
                places, slot = places[lost], (slot[lost] + step) & mask

    def _home(self, keys: Keys) -> Places:
        """Return the slot at which the search for each key begins; there is a power of two of them."""
        return (mix(keys.view(np.uint64) ^ self._secret) & np.uint64(self._slots.size - 1)).view(np.int64)
