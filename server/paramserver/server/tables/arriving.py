"""Rows of contributions on their way in: what a worker has sent of them before its push completes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paramserver.server.place import ALONE, Place
from paramserver.wire.errors import TensorError
from paramserver.wire.layout import Array, is_finite
from paramserver.wire.tables import Keys, Table, partition_of, read_keys
from paramserver.wire.v1 import paramserver_pb2 as pb

#: What the rows of one contribution may take in all.
MAX_BYTES = 1 << 30

#: The rows of one contribution by the table's number: keys (n,), rising strictly, and gradients (n, dim).
Parts = dict[int, tuple[Keys, Array]]


@dataclass(slots=True)
class Arriving:
    """The rows of one contribution so far."""

    epoch: int
    step: int
    chunks: dict[int, list[tuple[Keys, Array]]] = field(default_factory=dict)
    count: int = 0
    nbytes: int = 0
    #: What was wrong with it; the answer to its push says so.
    fault: TensorError | None = None

    def parts(self, count: int) -> Parts:
        """Return the rows, now that all are here; `count` is how many the push names.

        Raises:
            TensorError: if they are wrong, or not so many.
        """
        if self.fault is not None:
            raise self.fault
        if self.count != count:
            raise TensorError(f"{self.count} rows of tables came, the push names {count}")
        return {number: _joined(chunks) for number, chunks in sorted(self.chunks.items()) if chunks}


class ArrivingRows:
    """The rows that one worker has sent, by shard; see `Run` for when they are forgotten."""

    def __init__(self) -> None:
        self._arriving: dict[int, Arriving] = {}

    def take(
        self,
        push: pb.PushRows,
        payload: memoryview,
        tables: Sequence[Table],
        dtype: np.dtype[np.generic],
        place: Place = ALONE,
    ) -> None:
        """Take in one message about a shard that the worker was asked to compute; `place` is this server's."""
        arriving = self._arriving.get(push.shard)
        if arriving is None or (arriving.epoch, arriving.step) != (push.epoch, push.step):
            arriving = self._arriving[push.shard] = Arriving(push.epoch, push.step)
        if arriving.fault is not None:
            return
        try:
            _add(arriving, push, payload, tables, dtype, place)
        except TensorError as error:
            arriving.fault = error
            arriving.chunks.clear()

    def claim(self, push: pb.Push) -> Arriving:
        """Hand out what belongs to a push that begins; whatever comes of the push, it is not here any more."""
        arriving = self._arriving.pop(push.shard, None)
        if arriving is None or (arriving.epoch, arriving.step) != (push.epoch, push.step):
            return Arriving(push.epoch, push.step)
        return arriving

    def clear(self) -> None:
        """Forget all of it: its computation was given up."""
        self._arriving.clear()


def _add(
    arriving: Arriving,
    push: pb.PushRows,
    payload: memoryview,
    tables: Sequence[Table],
    dtype: np.dtype[np.generic],
    place: Place,
) -> None:
    if push.table >= len(tables):
        raise TensorError(f"table {push.table} does not exist; the job has {len(tables)}")
    table, chunks = tables[push.table], arriving.chunks.setdefault(push.table, [])
    held = sum(keys.size for keys, _ in chunks)
    if push.offset < held:
        return
    if push.offset > held:
        raise TensorError(f"rows of table {push.table} came with offset {push.offset}, {held} is expected")
    expected = push.count * (8 + table.dim * dtype.itemsize)
    if payload.nbytes != expected:
        raise TensorError(f"{payload.nbytes} bytes came for {push.count} rows of table {push.table}, not {expected}")
    arriving.nbytes += payload.nbytes
    if arriving.nbytes > MAX_BYTES:
        raise TensorError(f"the rows of a contribution take more than {MAX_BYTES} bytes")
    keys = read_keys(payload, push.count)
    if chunks and keys[0] <= chunks[-1][0][-1]:
        raise TensorError(f"key {keys[0]} follows {chunks[-1][0][-1]}; keys must rise strictly")
    check_keys(keys, place)
    values = np.frombuffer(payload, dtype, offset=8 * push.count).reshape(push.count, table.dim)
    if not is_finite(values):
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise TensorError(
            f"table {push.table} holds {values[row, column]} in column {column} of the row of key {keys[row]}",
            "not_finite",
        )
    chunks.append((keys, values))
    arriving.count += push.count


def check_keys(keys: Keys, place: Place) -> None:
    """Refuse keys whose rows are on another server.

    Raises:
        TensorError: if there is one.
    """
    if place.partitions == 1:
        return
    owners = partition_of(keys, place.partitions)
    strange = np.flatnonzero(owners != place.partition)
    if strange.size:
        key, owner = keys[strange[0]], owners[strange[0]]
        raise TensorError(f"the row of key {key} is on partition {owner} of {place.partitions}; this is {place}")


def _joined(chunks: list[tuple[Keys, Array]]) -> tuple[Keys, Array]:
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate([keys for keys, _ in chunks]), np.concatenate([values for _, values in chunks])
