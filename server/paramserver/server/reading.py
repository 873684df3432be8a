"""θ as it was at one moment, on its way to a reader: the flat vector, then tables in the order of their keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from paramserver.server.store import BLOCK_BYTES, Store
from paramserver.server.tables.rows import Contents
from paramserver.server.tables.tablestore import TableStore
from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys
from paramserver.wire.v1 import paramserver_pb2 as pb


class Copied(NamedTuple):
    """A copy of what one server holds of θ."""

    theta: memoryview
    tables: list[Contents]

    @classmethod
    def of(cls, store: Store, tables: TableStore | None, stays: bool = False) -> Self:
        """Copy it as it is now, the flat vector only if it does not stay so."""
        values = store.theta.view(np.uint8)
        return cls(
            (values if stays else values.copy()).data, [] if tables is None else list(tables.contents().values())
        )


class Piece(NamedTuple):
    """Some rows of a table: keys (n,), rising over all its pieces, rows (n, dim), and how many it has in all."""

    total: int
    keys: Keys
    rows: Array

    def to_proto(self, table: int) -> tuple[pb.TableChunk, bytes]:
        """Return the wire form."""
        chunk = pb.TableChunk(table=table, count=self.keys.size, total=self.total)
        return chunk, self.keys.tobytes() + self.rows.tobytes()


class Captured(NamedTuple):
    """All of θ at one version."""

    version: int
    theta: AsyncIterator[memoryview]
    #: In the order of the layout; each in one piece or more.
    tables: list[AsyncIterator[Piece]]


async def in_chunks(data: memoryview) -> AsyncIterator[memoryview]:
    """Yield the bytes in pieces that fit a message."""
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


async def stream(contents: Contents) -> AsyncIterator[Piece]:
    """Yield a table in pieces that fit a message."""
    # Sorting millions of keys takes a while, in which workers go on.
    keys, rows = await asyncio.to_thread(contents.in_order)
    for piece in _cut(keys.size, keys, rows):
        yield piece


async def received(replies: AsyncIterator[pb.ReadReply], like: Contents) -> AsyncIterator[Piece]:
    """Yield the pieces of a table that another server sends."""
    async for reply in replies:
        count = reply.rows.count
        keys = np.frombuffer(reply.payload, np.int64, count)
        rows = np.frombuffer(reply.payload, like.rows.dtype, offset=8 * count).reshape(count, like.table.dim)
        yield Piece(reply.rows.total, keys, rows)


async def merged(parts: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[Piece]:
    """Yield one table that is dealt by key to several servers, holding no more than some pieces of each at a time.

    Raises:
        ProtocolError: if a part ends too soon.
    """
    held = [await _next(part) for part in parts]
    total = sum(piece.total for piece in held)
    left = [piece.total - piece.keys.size for piece in held]
    given = 0
    while given < total:
        for number, part in enumerate(parts):
            if not held[number].keys.size and left[number]:
                held[number] = await _next(part)
                left[number] -= held[number].keys.size
        # Beyond the last key of one that goes on its next ones may come.
        limits = [piece.keys[-1] for piece, more in zip(held, left, strict=True) if more]
        counts = [p.keys.size if not limits else int(np.searchsorted(p.keys, min(limits), "right")) for p in held]
        keys = np.concatenate([p.keys[:n] for p, n in zip(held, counts, strict=True)])
        rows = np.concatenate([p.rows[:n] for p, n in zip(held, counts, strict=True)])
        order = np.argsort(keys)
        for piece in _cut(total, keys[order], rows[order]):
            yield piece
        given += keys.size
        held = [Piece(p.total, p.keys[n:], p.rows[n:]) for p, n in zip(held, counts, strict=True)]
    if not total:
        yield held[0]


async def _next(part: AsyncIterator[Piece]) -> Piece:
    piece = await anext(part, None)
    if piece is None:
        raise ProtocolError("a table of another server ended before all of its rows had come")
    return piece


def _cut(total: int, keys: Keys, rows: Array) -> Iterator[Piece]:
    step = max(1, BLOCK_BYTES // (8 + rows.itemsize * rows.shape[1]))
    for start in range(0, max(1, keys.size), step):
        yield Piece(total, keys[start : start + step], rows[start : start + step])
