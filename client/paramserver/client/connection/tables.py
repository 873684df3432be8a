"""Tables as they come in, chunk by chunk, beside the dense parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, read_keys, tensor_names
from paramserver.wire.v1 import paramserver_pb2 as pb


class PulledTables:
    """Puts the chunks of a pull's tables together."""

    def __init__(self, tables: Mapping[str, Table], dtype: np.dtype[Any]) -> None:
        self._tables = list(tables.items())
        self._dtype = dtype
        self._chunks: list[list[tuple[Keys, Array]]] = [[] for _ in self._tables]
        #: Rows that each table has in all, once a chunk has said so.
        self._totals: list[int | None] = [None] * len(self._tables)

    def take(self, chunk: pb.TableChunk, payload: memoryview) -> None:
        """Take in a chunk.

        Raises:
            ProtocolError: if it is not what was announced.
        """
        if chunk.table >= len(self._tables):
            raise ProtocolError(f"rows of table {chunk.table} came; the job has {len(self._tables)} tables")
        dim = self._tables[chunk.table][1].dim
        self._totals[chunk.table] = chunk.total
        if payload.nbytes != chunk.count * (8 + dim * self._dtype.itemsize):
            raise ProtocolError(f"{payload.nbytes} bytes came for {chunk.count} rows of {dim} {self._dtype.name}")
        if chunk.count:
            keys = read_keys(payload, chunk.count)
            rows = np.frombuffer(payload, self._dtype, offset=8 * chunk.count).reshape(-1, dim)
            self._chunks[chunk.table].append((keys, rows))

    def tensors(self) -> dict[str, Array]:
        """Return every table as two tensors.

        Raises:
            ProtocolError: if rows are missing.
        """
        found: dict[str, Array] = {}
        for (name, table), chunks, total in zip(self._tables, self._chunks, self._totals, strict=True):
            empty = (np.empty(0, np.int64), np.empty((0, table.dim), self._dtype))
            keys, rows = (np.concatenate(parts) for parts in zip(empty, *chunks, strict=True))
            if keys.size != total:
                raise ProtocolError(f"table {name!r} ends after {keys.size} of {total} rows")
            found |= dict(zip(tensor_names(name), (keys, rows), strict=True))
        return found
