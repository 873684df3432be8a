"""Tables of a pull are whole, or the pull is not."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.client.connection.tables import PulledTables
from paramserver.wire.errors import ProtocolError
from paramserver.wire.tables import Table
from paramserver.wire.v1 import paramserver_pb2 as pb

DTYPE = np.dtype(np.float32)


def chunk(keys: list[int], total: int, table: int = 0, count: int | None = None) -> tuple[pb.TableChunk, memoryview]:
    rows = np.array([[key, key + 0.5] for key in keys], "<f4")
    payload = np.array(keys, "<i8").tobytes() + rows.tobytes()
    size = len(keys) if count is None else count
    return pb.TableChunk(table=table, count=size, total=total), memoryview(payload)


def pulled() -> PulledTables:
    return PulledTables({"a": Table(2), "b": Table(2)}, DTYPE)


def test_chunks_become_keys_and_rows() -> None:
    tables = pulled()
    for message in (chunk([-2, 0], 3), chunk([5], 3), chunk([], 0, table=1)):
        tables.take(*message)
    found = tables.tensors()
    assert {name: values.tolist() for name, values in found.items()} == {
        "a.keys": [-2, 0, 5],
        "a.rows": [[-2, -1.5], [0, 0.5], [5, 5.5]],
        "b.keys": [],
        "b.rows": [],
    }
    assert (found["b.rows"].shape, found["b.rows"].dtype) == ((0, 2), DTYPE)


def test_what_is_missing_or_wrong_is_named() -> None:
    tables = pulled()
    tables.take(*chunk([1], 2))
    with pytest.raises(ProtocolError, match="table 'a' ends after 1 of 2 rows"):
        tables.tensors()
    with pytest.raises(ProtocolError, match="rows of table 2 came"):
        tables.take(*chunk([1], 1, table=2))
    with pytest.raises(ProtocolError, match="16 bytes came for 2 rows"):
        tables.take(*chunk([1], 1, count=2))
    with pytest.raises(ProtocolError, match="must rise strictly"):
        tables.take(*chunk([1, 1], 2))
