"""Finds the places of keys, many at once: a hash index with open addressing and linear probing.

The index holds nothing but places (4 bytes a slot); the keys themselves lie in the table's own column. Where numba is
installed (the extra `fast`) a compiled loop probes, otherwise numpy does, all keys of a batch at a time. Both find the
same places; which slots they use is no part of any result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, mix

#: Whether the loops can be compiled here; numba itself is only imported by the first index that uses them.
AVAILABLE = find_spec("numba") is not None

#: Keys per slot at most: linear probing then looks at 2.2 slots for a key that is there and 6 for one that is not.
MAX_LOAD = 0.7
#: Places are int32.
MAX_ROWS = 2**31 - 1

_SMALLEST = 1024
#: How many keys are put in at once when the index grows, which bounds what that takes besides.
_BLOCK = 1 << 20
_EMPTY = -1

Places = NDArray[np.int64]


class KeyIndex:
    """From keys to places 0, 1, 2, … in a column of keys, which the owner keeps and hands in with every call."""

    def __init__(self, compiled: bool = AVAILABLE) -> None:
        find, insert = _compiled() if compiled else (_find, _insert)
        self._find: Callable[..., Places] = find
        self._insert: Callable[..., None] = insert
        self._slots = np.full(_SMALLEST, _EMPTY, np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes that the index takes."""
        return self._slots.nbytes

    def find(self, column: Array, keys: Keys) -> Places:
        """Return the place of every key, shape (n,), or −1 where it is absent."""
        return self._find(self._slots, column, keys, _home(keys, self._slots.size))

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
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            self._insert(self._slots, first, _home(column[first:last], self._slots.size))


def _home(keys: Keys, slots: int) -> Places:
    """Return the slot at which the search for each key begins; `slots` is a power of two."""
    return (mix(keys.view(np.uint64)) & np.uint64(slots - 1)).view(np.int64)


def _find(slots: Array, column: Array, keys: Keys, home: Places) -> Places:
    found = slots[home].astype(np.int64)
    # Where a slot holds another key the next one is looked at; fewer and fewer keys are left.
    left = np.flatnonzero(found >= 0)
    left = left[column[found[left]] != keys[left]]
    slot = home[left]
    while left.size:
        slot = (slot + 1) & (slots.size - 1)
        place = slots[slot].astype(np.int64)
        found[left] = place
        wrong = place >= 0
        wrong[wrong] = column[place[wrong]] != keys[left[wrong]]
        left, slot = left[wrong], slot[wrong]
    return found


def _insert(slots: Array, first: int, home: Places) -> None:
    places = np.arange(first, first + home.size, dtype=np.int32)
    while places.size:
        free = slots[home] == _EMPTY
        slots[home[free]] = places[free]
        # Of several that wanted one slot the last has it; the others and those that found it taken go on.
        lost = slots[home] != places
        places, home = places[lost], (home[lost] + 1) & (slots.size - 1)


@lru_cache
def _compiled() -> tuple[Callable[..., Places], Callable[..., None]]:
    import numba  # an extra, and slow to import

    def find(slots: Any, column: Any, keys: Any, home: Any) -> Any:
        found = np.empty(keys.size, np.int64)
        for i in range(keys.size):
            slot = home[i]
            place = slots[slot]
            while place >= 0 and column[place] != keys[i]:
                slot = (slot + 1) & (slots.size - 1)
                place = slots[slot]
            found[i] = place
        return found

    def insert(slots: Any, first: Any, home: Any) -> None:
        for i in range(home.size):
            slot = home[i]
            while slots[slot] >= 0:
                slot = (slot + 1) & (slots.size - 1)
            slots[slot] = first + i

    return numba.njit(nogil=True)(find), numba.njit(nogil=True)(insert)
