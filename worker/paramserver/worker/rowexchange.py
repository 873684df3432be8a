"""Rows of tables between server and task: pulls those that a batch needs, pushes what they are to change by.

Rows always travel in messages, also where the dense parameters lie in shared memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, ascending, partition_of
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.stream import Stream

T = TypeVar("T")

#: Answers that may be on their way to this worker; well below what the server lets pile up.
MAX_ASKED = 16

#: Acts on a message that is no answer to what was asked.
Aside = Callable[[pb.ServerMessage, memoryview], Awaitable[None]]


class WorkGivenUp(Exception):
    """The assigned work can no longer count: the lease ended, or the job did (`asks_again` is False then)."""

    def __init__(self, asks_again: bool) -> None:
        super().__init__()
        self.asks_again = asks_again


@dataclass(frozen=True, slots=True)
class Wanted:
    """The keys of a table as a task named them, and the distinct ones in rising order."""

    shape: tuple[int, ...]
    keys: Keys
    #: Where in `keys` each of those named stands; None if they were named as they stand there.
    inverse: NDArray[Any] | None

    @classmethod
    def of(cls, named: Keys) -> Wanted:
        """Sort out keys of any shape."""
        if named.ndim == 1 and ascending(named):
            return cls(named.shape, named, None)
        keys, inverse = np.unique(named.ravel(), return_inverse=True)
        return cls(named.shape, keys, inverse.ravel())

    def spread(self, rows: Array) -> Array:
        """Return the rows (of `keys`, shape (n, dim)) as they were named, read-only, shape (*shape, dim)."""
        spread = rows if self.inverse is None else rows[self.inverse]
        spread = spread.reshape(*self.shape, rows.shape[1])
        spread.flags.writeable = False
        return spread

    def gather(self, gradient: Array, samples: int) -> Array:
        """Return `samples` times the gradient for each of `keys`, shape (n, dim), of one shaped as `spread` is.

        Where a key was named more than once its gradients are added in the order of naming, in float64.
        """
        dim = gradient.shape[-1]
        if self.inverse is None:
            return np.multiply(gradient, samples, order="C")
        places = self.inverse[:, None] * dim + np.arange(dim)
        weights = gradient.reshape(-1).astype(np.float64)
        total = np.bincount(places.ravel(), weights, self.keys.size * dim)
        return (total * samples).astype(gradient.dtype).reshape(self.keys.size, dim)


class DealtRows:
    """Exchanges rows with all servers that hold some; `exchanges` has one for each, in their order."""

    def __init__(self, exchanges: Sequence[RowExchange]) -> None:
        self._exchanges = exchanges

    async def pull(self, assignment: pb.Assignment, wanted: Mapping[str, Wanted]) -> dict[str, Array]:
        """Return the rows of the wanted keys, see `RowExchange.pull`."""
        first, *others = self._exchanges
        if not others:
            return await first.pull(assignment, wanted)
        dealt = self._deal(wanted)
        asked = (e.pull(assignment, own) for e, (own, _) in zip(self._exchanges, dealt, strict=True))
        parts = await _all(asked)
        rows: dict[str, Array] = {}
        for name, w in wanted.items():
            whole = rows[name] = np.empty((w.keys.size, parts[0][name].shape[1]), parts[0][name].dtype)
            for part, (_, places) in zip(parts, dealt, strict=True):
                whole[places[name]] = part[name]
        return rows

    async def push(
        self, assignment: pb.Assignment, wanted: Mapping[str, Wanted], sums: Mapping[str, Array]
    ) -> list[int]:
        """Send the rows that belong to the pushes that follow, and return how many those are for each server."""
        first, *others = self._exchanges
        if not others:
            return [await first.push(assignment, wanted, sums)]
        sent = []
        for exchange, (own, places) in zip(self._exchanges, self._deal(wanted), strict=True):
            theirs = {name: values[places[name]] for name, values in sums.items()}
            sent.append(exchange.push(assignment, own, theirs))
        return await _all(sent)

    def _deal(self, wanted: Mapping[str, Wanted]) -> list[tuple[dict[str, Wanted], dict[str, Array]]]:
        """Return for every server which of the wanted keys are its, and where among all they stand."""
        dealt: list[tuple[dict[str, Wanted], dict[str, Array]]] = [({}, {}) for _ in self._exchanges]
        for name, w in wanted.items():
            owners = partition_of(w.keys, len(self._exchanges))
            for server, (own, places) in enumerate(dealt):
                places[name] = np.flatnonzero(owners == server)
                keys = w.keys[places[name]]
                own[name] = Wanted(keys.shape, keys, None)
        return dealt


async def _all(asked: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, so that nobody still reads a stream, and only then tell of the first that failed."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return found  # type: ignore[return-value]


class RowExchange:
    """Pulls and pushes rows on one stream, for one job; `tables` are those of the layout, in its order."""

    def __init__(
        self, stream: Stream, tables: Mapping[str, Table], dtype: np.dtype[Any], chunk_bytes: int, aside: Aside
    ) -> None:
        self._stream = stream
        self._tables = tables
        self._dtype = dtype
        self._chunk_bytes = chunk_bytes
        self._aside = aside
        self._number = 0

    async def pull(self, assignment: pb.Assignment, wanted: Mapping[str, Wanted]) -> dict[str, Array]:
        """Return the rows of the wanted keys, by table, shape (n, dim).

        Raises:
            WorkGivenUp: if the server no longer wants the step.
            ProtocolError: if it breaks the contract.
        """
        rows = {name: np.empty((wanted[name].keys.size, t.dim), self._dtype) for name, t in self._tables.items()}
        asked: deque[tuple[int, Array]] = deque()
        for position, (name, table) in enumerate(self._tables.items()):
            for start, stop in self._cut(wanted[name].keys.size, max(8, self._row_bytes(table))):
                if len(asked) == MAX_ASKED:
                    await self._receive(assignment, asked)
                self._number += 1
                message = pb.PullRows(
                    shard=assignment.shard,
                    epoch=assignment.epoch,
                    step=assignment.step,
                    table=position,
                    number=self._number,
                )
                await self._stream.send(pb.WorkerMessage(pull_rows=message), wanted[name].keys[start:stop])
                asked.append((self._number, rows[name][start:stop]))
        while asked:
            await self._receive(assignment, asked)
        return rows

    async def push(self, assignment: pb.Assignment, wanted: Mapping[str, Wanted], sums: Mapping[str, Array]) -> int:
        """Send the rows that belong to the push that follows, and return how many those are."""
        count = 0
        for position, (name, table) in enumerate(self._tables.items()):
            keys, values = wanted[name].keys, sums[name]
            for start, stop in self._cut(keys.size, 8 + self._row_bytes(table)):
                message = pb.PushRows(
                    shard=assignment.shard,
                    epoch=assignment.epoch,
                    step=assignment.step,
                    table=position,
                    count=stop - start,
                    offset=start,
                )
                parts = (keys[start:stop].view(np.uint8), values[start:stop].reshape(-1).view(np.uint8))
                await self._stream.send(pb.WorkerMessage(push_rows=message), np.concatenate(parts))
                count += stop - start
        return count

    async def _receive(self, assignment: pb.Assignment, asked: deque[tuple[int, Array]]) -> None:
        """Take in the answer to what was asked first."""
        number, place = asked.popleft()
        while True:
            received = await self._stream.receive()
            if received is None:
                raise WorkGivenUp(asks_again=False)
            message, payload = received
            kind = message.WhichOneof("kind")
            if kind == "rows" and message.rows.number >= number:
                break
            if kind in ("rows", "work"):
                # What came twice: nothing new is sent before what is assigned is done.
                continue
            await self._aside(message, payload)
            if kind in ("job", "ended"):
                raise WorkGivenUp(asks_again=False)
            if kind == "refusal" and (message.refusal.shard, message.refusal.step) == (
                assignment.shard,
                assignment.step,
            ):
                # So are the others that were asked for under this name, before the next work comes.
                raise WorkGivenUp(asks_again=True)
        if message.rows.number > number or payload.nbytes != place.nbytes:
            raise ProtocolError(
                f"{payload.nbytes} bytes of rows came with number {message.rows.number};"
                f" {place.nbytes} with number {number} were asked for"
            )
        place[:] = np.frombuffer(payload, self._dtype).reshape(place.shape)

    def _row_bytes(self, table: Table) -> int:
        return table.dim * self._dtype.itemsize

    def _cut(self, count: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        rows = self._chunk_bytes // row_bytes
        return ((start, min(start + rows, count)) for start in range(0, count, rows))
