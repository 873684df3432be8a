"""Where a worker lays its contributions: in memory that the server sees, or in an array that goes out as a message."""

from __future__ import annotations

import os

import numpy as np

from paramserver.wire.layout import Array, Layout
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.replica import Replica


class Place:
    """A flat vector for a contribution, and the views of its tensors."""

    def __init__(self, flat: Array, layout: Layout) -> None:
        self.flat = flat
        self.views = layout.views(flat)


class Outgoing:
    """Where contributions are laid before they go: one slot per shard in shared memory, or the rows of one array."""

    def __init__(self, replica: Replica) -> None:
        self._layout = replica.layout
        self._shares_memory = replica.shares_memory
        self._slots: dict[int, tuple[Segment, Place]] = {}
        self._rows: Array = np.empty((0, self._layout.size), self._layout.dtype)
        self._places: list[Place] = []
        #: Where each shard's contribution was laid last, and whose each place holds.
        self._row_of: dict[int, int] = {}
        self._shard_in: dict[int, int] = {}
        if not self._shares_memory:
            self.rows(1)

    def rows(self, count: int) -> Array:
        """Return the first rows, shape (count, elements of θ): what several contributions look like in one message."""
        if len(self._rows) < count:
            self._rows = np.empty((count, self._layout.size), self._layout.dtype)
            self._places = [Place(row, self._layout) for row in self._rows]
            self._shard_in = {}
        return self._rows[:count]

    def last(self, shard: int) -> Place | None:
        """Return where the shard's last contribution lies, if nothing has been laid there since."""
        if shard in self._slots:
            return self._slots[shard][1]
        row = self._row_of.get(shard, -1)
        return self._places[row] if self._shard_in.get(row) == shard else None

    def place(self, shard: int, row: int) -> tuple[Place, pb.Slot | None]:
        """Return where the shard's contribution is laid, and what to tell the server if it is new to it."""
        if not self._shares_memory:
            self._row_of[shard], self._shard_in[row] = row, shard
            return self._places[row], None
        if shard in self._slots:
            return self._slots[shard][1], None
        slot = Segment.create(self._layout.size, self._layout.dtype)
        place = Place(slot.values, self._layout)
        self._slots[shard] = slot, place
        return place, pb.Slot(shard=shard, memory=pb.SharedMemory(pid=os.getpid(), descriptor=slot.descriptor))
