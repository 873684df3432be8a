"""What a task may say of its tables, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.wire.errors import TaskError
from paramserver.wire.tables import Table, initial_rows
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.tables import declared_tables, keys_of, with_rows

BATCH = Batch(np.zeros((2, 1)), np.zeros(2))


class Model:
    """A task that says what the test wants."""

    def __init__(self, tables: Any, keys: Any = None) -> None:
        self._tables, self._keys = tables, keys

    def tables(self) -> Any:
        return self._tables

    def keys(self, batch: Batch) -> Any:  # noqa: ARG002
        if isinstance(self._keys, Exception):
            raise self._keys
        return self._keys

    def init(self, rng: Any, batch: Batch) -> Any: ...

    def loss_and_grad(self, params: Any, batch: Batch) -> Any: ...


class Dense:
    """A task that has never heard of tables."""

    def init(self, rng: Any, batch: Batch) -> Any: ...

    def loss_and_grad(self, params: Any, batch: Batch) -> Any: ...


def test_a_task_need_not_have_tables() -> None:
    assert declared_tables(Dense()) == {}
    theta = {"w": np.ones(3)}
    assert with_rows(Dense(), theta, BATCH, 0) == theta


@pytest.mark.parametrize("tables", [None, [Table(1)], {"w": 1}, {"": Table(1)}, {"w": Table(1), "w.rows": Table(1)}])
def test_wrong_tables_are_named(tables: Any) -> None:
    with pytest.raises(TaskError, match="table"):
        declared_tables(Model(tables))


def test_tables_need_keys() -> None:
    class Half(Dense):
        def tables(self) -> Any:
            return {"w": Table(1)}

    with pytest.raises(TaskError, match="no method 'keys'"):
        declared_tables(Half())


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (None, "keys returned None"),
        ({}, "a dict with w is expected"),
        ({"w": np.zeros(1, int), "v": np.zeros(1, int)}, "a dict with w is expected"),
        ({"w": [1, 2]}, "for table 'w'"),
        ({"w": np.zeros(2)}, "a float64 array"),
        (ValueError("no"), "raised ValueError: no"),
    ],
)
def test_wrong_keys_are_named(keys: Any, reason: str) -> None:
    tables = {"w": Table(1)}
    with pytest.raises(TaskError, match=reason):
        keys_of(Model(tables, keys), tables, BATCH)


def test_unsigned_keys_keep_their_bits() -> None:
    tables = {"w": Table(1)}
    found = keys_of(Model(tables, {"w": np.array([2**64 - 1, 2**63, 5], np.uint64)}), tables, BATCH)
    assert found["w"].tolist() == [-1, -(2**63), 5]


def test_rows_of_a_whole_theta_and_initial_ones_for_keys_that_it_lacks() -> None:
    tables = {"w": Table(2, 0.5)}
    task = Model(tables, {"w": np.array([[7, 1], [9, 7]])})
    theta = {"b": np.zeros(1), "w.keys": np.array([1, 7]), "w.rows": np.array([[1.0, 2.0], [3.0, 4.0]])}
    params = with_rows(task, theta, BATCH, 5)
    (nine,) = initial_rows(5, "w", tables["w"], np.array([9]), np.dtype(np.float64)).tolist()
    assert set(params) == {"b", "w"}
    assert params["w"].tolist() == [[[3, 4], [1, 2]], [nine, [3, 4]]]
    empty = theta | {"w.keys": np.empty(0, np.int64), "w.rows": np.empty((0, 2))}
    assert with_rows(task, empty, BATCH, 5)["w"][1, 0].tolist() == nine
