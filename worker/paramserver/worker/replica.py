"""θ as a worker sees it, kept up by what the server sends or shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paramserver.wire import mosaic
from paramserver.wire.codecs import Codec, Origin, pull_codec
from paramserver.wire.codecs.codec import GRID
from paramserver.wire.errors import ProtocolError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.wire.mosaic import Mosaic
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.partitions import Partitions, place, read_into


class Replica:
    """θ as the worker sees it: read-only views of its tensors, in a copy of its own or in the server's memory.

    Raises:
        ProtocolError: if the server names memory that cannot be mapped.
    """

    def __init__(self, described: pb.Layout, job: Job, partitions: Partitions) -> None:
        self.layout = layout = Layout.from_proto(described.tensors, job.train.dtype)
        own = partitions.lay_out(layout)
        self._codec = pull_codec(job.wire)
        #: Where θ has left the range of its codec; empty if it has not.
        self.fault = ""
        self._shared: Segment | None = None
        self._mosaic: Mosaic | None = None
        if described.HasField("theta"):
            memory = described.theta
            self._shared = Segment.open(memory.pid, memory.descriptor, own.size, layout.dtype)
        self.shares_memory = self._shared is not None
        #: All servers see what lies in a slot, and have the version of the work when it comes.
        self.in_sight = described.in_sight
        self.nbytes = layout.size * layout.dtype.itemsize
        stays = self._shared is not None and not described.moves and self._codec is None
        if stays and partitions and mosaic.AVAILABLE:
            self._shared, self._mosaic = None, Mosaic(layout.size, layout.dtype)
            self._mosaic.lay(0, own.size, memory.pid, memory.descriptor)
            flat = self._mosaic.values
        elif self._shared is not None and stays and not partitions:
            flat, self._shared = self._shared.values, None
        else:
            flat = np.empty(layout.size, layout.dtype)
        self._flat: Array = flat
        #: What the server that sent the layout holds of it.
        self._own = partitions.own(flat)
        readonly = flat.view()
        readonly.flags.writeable = False
        self.views = layout.views(readonly)

    def place(self, offset: int, nbytes: int) -> memoryview | None:
        """Return where such parameters of a message belong, if they may come there before they are taken."""
        return None if self.shares_memory or self._codec is not None else place(self._own, offset, nbytes)

    def take(self, offset: int, payload: memoryview) -> None:
        """Take parameters that came in a message."""
        if self.shares_memory:
            raise ProtocolError("the server sent parameters to a worker that shares its memory")
        if not read_into(self._own, offset, payload, self._codec):
            self._note_fault(self._own)

    def settle(self, version: int) -> int:
        """Make the views show one whole version, after `take` or from the server's memory; return which.

        `version` is the one that was granted; memory may hold a newer one by now.
        """
        if self._shared is not None:
            found = self._shared.copy_whole(self._own)
            # Of several servers, the others may not be as far yet.
            version = found if self._own.size == self._flat.size else version
            if self._codec is not None:
                self._round(self._codec, self._own)
        return version

    async def fetch(self, work: pb.Work, partitions: Partitions, own: Mapping[int, Array]) -> None:
        """Bring what other servers hold of it to the version of the work, and of shards' own vectors."""
        finite = await partitions.fetch(work, self._flat, self._mosaic, own, self._codec, self.in_sight)
        if self._shared is not None and self._codec is not None:
            self._round(self._codec, self._flat[self._own.size :])
        elif not finite:
            self._note_fault(self._flat)

    def _round(self, codec: Codec, values: Array) -> None:
        """Leave of a part of θ what would have come in messages."""
        coded = np.empty(codec.nbytes(min(GRID, values.size)), np.uint8)
        for start in range(0, values.size, GRID):
            block = values[start : start + GRID]
            part = coded[: codec.nbytes(block.size)]
            codec.encode(block, part, Origin(0, 0, 0, start))
            if not codec.decode(part.data, block):
                self._note_fault(values)

    def _note_fault(self, values: Array) -> None:
        """Say where a part of θ, which is the first or the last of it, is not finite."""
        before = 0 if values is self._own else self._flat.size - values.size
        name, element = self.layout.locate(before + int(np.flatnonzero(~np.isfinite(values))[0]))
        self.fault = f"parameter {name!r} is at element {element} beyond what wire.pull can hold; use 'full'"
