"""What a task says of its tables: which it has, and which of their rows a batch needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import RequestError, TaskError
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, check_tables, initial_rows, tensor_names
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params, Task, call, describe


def declared_tables(task: Task) -> dict[str, Table]:
    """Return the tables of a task by name; none if it has no method `tables`.

    Raises:
        TaskError: if they are declared wrongly, or the task has no method `keys`.
    """
    if not hasattr(task, "tables"):
        return {}
    tables = call(task, "tables")
    if not isinstance(tables, dict) or not all(isinstance(table, Table) for table in tables.values()):
        raise TaskError(f"tables returned {describe(tables)}; a dict of Table by name is expected")
    if tables and not hasattr(task, "keys"):
        raise TaskError(f"{type(task).__name__} has tables but no method 'keys' that says which rows a batch needs")
    try:
        check_tables(tables, ())
    except RequestError as error:
        raise TaskError(str(error)) from None
    return tables


def keys_of(task: Task, tables: Mapping[str, Table], batch: Batch) -> dict[str, Keys]:
    """Return the keys that a task names for a batch, by table in the order of `tables`: int64, of any shape.

    Raises:
        TaskError: if `keys` fails or returns anything but an array of whole numbers for every table.
    """
    found = call(task, "keys", batch)
    if not isinstance(found, dict) or set(found) != set(tables):
        raise TaskError(f"keys returned {describe(found)}; a dict with {', '.join(tables)} is expected")
    for name, keys in found.items():
        if not isinstance(keys, np.ndarray) or keys.dtype.kind not in "iu":
            raise TaskError(f"keys returned {describe(keys)} for table {name!r}; an array of int64 is expected")
    return {name: _as_int64(found[name]) for name in tables}


def with_rows(task: Task, theta: Mapping[str, Array], batch: Batch, seed: int) -> Params:
    """Return what `predict` and `loss_and_grad` take for a batch, of a θ that holds whole tables.

    A table stands in θ as two tensors, see `tensor_names`. A key that it lacks gets its initial row.
    """
    tables = declared_tables(task)
    params = dict(theta)
    for name, keys in (keys_of(task, tables, batch) if tables else {}).items():
        held, rows = (params.pop(tensor) for tensor in tensor_names(name))
        flat = keys.ravel()
        places = np.searchsorted(held, flat)
        places[places == held.size] = 0
        known = held[places] == flat if held.size else np.zeros(flat.size, bool)
        values = initial_rows(seed, name, tables[name], flat, rows.dtype)
        values[known] = rows[places[known]]
        params[name] = values.reshape(*keys.shape, tables[name].dim)
    return params


def _as_int64(keys: NDArray[Any]) -> Keys:
    # Hashes above 2⁶³ keep their bits: this wraps around.
    return keys.astype(np.int64, copy=False)
