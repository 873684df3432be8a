"""Rows that come ahead of their push: whole and right, or named in the answer to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.server.tables import arriving
from paramserver.server.tables.arriving import ArrivingRows, Parts
from paramserver.wire.errors import TensorError
from paramserver.wire.tables import Table
from paramserver.wire.v1 import paramserver_pb2 as pb

TABLES = [Table(2), Table(1)]
DTYPE = np.dtype(np.float32)


def send(
    rows: ArrivingRows,
    keys: Any,
    values: Any,
    table: int = 0,
    step: int = 3,
    count: int | None = None,
    offset: int = 0,
) -> None:
    own = np.array(keys, "<i8")
    size = own.size if count is None else count
    message = pb.PushRows(shard=1, epoch=2, step=step, table=table, count=size, offset=offset)
    payload = own.tobytes() + np.array(values, "<f4").tobytes()
    rows.take(message, memoryview(payload), TABLES, DTYPE)


def claim(rows: ArrivingRows, count: int, step: int = 3) -> Parts:
    return rows.claim(pb.Push(shard=1, epoch=2, step=step)).parts(count)


def test_the_chunks_of_every_table_are_put_together() -> None:
    rows = ArrivingRows()
    send(rows, [-4, 1], [[1, 2], [3, 4]])
    send(rows, [5], [[5, 6]], offset=2)
    send(rows, [9], [7], table=1)
    parts = claim(rows, 4)
    assert {number: (keys.tolist(), values.tolist()) for number, (keys, values) in parts.items()} == {
        0: ([-4, 1, 5], [[1, 2], [3, 4], [5, 6]]),
        1: ([9], [[7]]),
    }
    with pytest.raises(TensorError, match="0 rows of tables came, the push names 4"):
        claim(rows, 4)


def test_rows_of_another_step_do_not_count() -> None:
    rows = ArrivingRows()
    send(rows, [1], [[1, 2]])
    with pytest.raises(TensorError, match="0 rows of tables came"):
        claim(rows, 1, step=4)
    send(rows, [2], [[1, 2]], step=4)
    assert claim(rows, 1, step=4)[0][0].tolist() == [2]


def test_what_comes_twice_counts_once() -> None:
    rows = ArrivingRows()
    for _ in range(2):
        send(rows, [1, 2], [[1, 2], [3, 4]])
    for _ in range(2):
        send(rows, [3], [[5, 6]], offset=2)
    assert claim(rows, 3)[0][0].tolist() == [1, 2, 3]


def test_a_contribution_may_have_no_rows() -> None:
    assert claim(ArrivingRows(), 0) == {}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"keys": [1], "values": [[1, 2]], "table": 2}, "table 2 does not exist"),
        ({"keys": [1], "values": [[1, 2, 3]]}, "20 bytes came for 1 rows of table 0, not 16"),
        ({"keys": [1], "values": [[1, 2]], "count": 2}, "16 bytes came for 2 rows"),
        ({"keys": [], "values": []}, "cannot hold 0 keys"),
        ({"keys": [2, 2], "values": [[1, 2], [3, 4]]}, "key 2 follows 2"),
        ({"keys": [2, 1], "values": [[1, 2], [3, 4]]}, "key 1 follows 2"),
        ({"keys": [5], "values": [[1, 2]], "offset": 2}, "with offset 2, 1 is expected"),
        ({"keys": [0], "values": [[1, 2]]}, "key 0 follows 0; keys must rise strictly"),
        ({"keys": [1, 2], "values": [[1, 2], [3, np.nan]]}, "holds nan in column 1 of the row of key 2"),
        ({"keys": [1], "values": [[np.inf, 2]]}, "holds inf in column 0"),
    ],
)
def test_what_is_wrong_is_said_when_the_push_is_in(sent: dict[str, Any], reason: str) -> None:
    rows = ArrivingRows()
    send(rows, [0], [[1, 2]])
    send(rows, **({"offset": int(sent.get("table", 0) == 0)} | sent))
    # What comes after a fault cannot make up for it.
    send(rows, [50], [[1, 2]], offset=1)
    with pytest.raises(TensorError, match=reason):
        claim(rows, 2)


def test_there_is_a_bound_on_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MAX_BYTES", 40)
    rows = ArrivingRows()
    send(rows, [1, 2], [[1, 2], [3, 4]])
    send(rows, [3], [[1, 2]], offset=2)
    with pytest.raises(TensorError, match="more than 40 bytes"):
        claim(rows, 3)
