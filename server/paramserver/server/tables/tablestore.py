"""The tables of one job on one partition: gives rows out, holds contributions until they count, has them applied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from paramserver.server.events import Contribution
from paramserver.server.optimizers import make_optimizer
from paramserver.server.store import CHUNK_BYTES
from paramserver.server.tables.arriving import Parts
from paramserver.server.tables.rows import Bounds, Contents, Rows
from paramserver.server.update import how
from paramserver.wire.errors import TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, check_job, read_keys


class TableStore:
    """What `Store` is to the dense parameters; decides nothing either.

    Raises:
        JobError: if the job has what tables cannot have.
    """

    def __init__(self, job: Job, tables: Mapping[str, Table], total_steps: int) -> None:
        check_job(job)
        self.tables = dict(tables)
        self.dtype = np.dtype(job.train.dtype).newbyteorder("<")
        self._job = job
        self._total_steps = total_steps
        optimizer = make_optimizer(job.optimizer)
        bounds = Bounds(job.server.table_max_rows, job.server.table_max_age)
        self._rows = [
            Rows(name, table, job.train.seed, self.dtype, optimizer, bounds) for name, table in tables.items()
        ]
        #: Whole contributions that are not applied, by shard.
        self._held: dict[int, Parts] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each table, by name."""
        return {rows.name: rows.count for rows in self._rows}

    def read(self, number: int, payload: memoryview) -> Array:
        """Return the rows of the keys in the payload, from a table by its number in the layout.

        Raises:
            TensorError: if there is no such table, or the keys are not what they should be.
        """
        if number >= len(self._rows):
            raise TensorError(f"table {number} does not exist; the job has {len(self._rows)}")
        rows = self._rows[number]
        count, rest = divmod(payload.nbytes, 8)
        allowed = CHUNK_BYTES // max(8, rows.table.dim * self.dtype.itemsize)
        if rest or count > allowed:
            raise TensorError(f"{payload.nbytes} bytes of keys came; 8 for each of up to {allowed} keys are expected")
        return rows.read(read_keys(payload, count))

    def hold(self, shard: int, parts: Parts) -> None:
        """Take the rows of the shard's next contribution; they stay until `apply` takes them."""
        self._held[shard] = parts

    def restage(self, job: Job) -> None:
        """Go on under the policy of `job`, and forget the contributions that are not applied."""
        self._job = job
        self._held.clear()

    def apply(self, version: int, step: int, contributions: Sequence[Contribution]) -> float:
        """Update the rows that the contributions name; return the norm of their gradient, 0 if the job needs none.

        Contributions are added in the order given, so that the bits do not depend on the order of arrival, and
        weighted as those of the dense parameters are.
        """
        info, scale, freshness = how(self._job, self._total_steps, version, step, contributions)
        held = [self._held.pop(c.shard) for c in contributions]
        squares = 0.0
        for number, rows in enumerate(self._rows):
            keys, gradient = sum_by_key(
                [parts[number] for parts in held if number in parts], rows.table.dim, self.dtype
            )
            if self._job.stop.tolerance:
                squares += float(np.sum(np.square(gradient, dtype=np.float64)))
            gradient *= scale * freshness
            rows.update(keys, gradient, info)
        return scale * math.sqrt(squares)

    def contents(self) -> dict[str, Contents]:
        """Return copies of all tables, by name."""
        return {rows.name: rows.contents() for rows in self._rows}

    def restore(self, contents: Mapping[str, Contents]) -> None:
        """Fill the tables, which must be empty."""
        for rows in self._rows:
            rows.restore(contents[rows.name])


def sum_by_key(parts: Sequence[tuple[Keys, Array]], dim: int, dtype: np.dtype[np.generic]) -> tuple[Keys, Array]:
    """Return the keys of all parts, sorted, and for each the sum of its rows in the order of the parts.

    Within a part no key stands twice. The sum is an array of its own, shape (n, dim).
    """
    if len(parts) == 1:
        keys, values = parts[0]
        return keys, values.copy()
    keys = np.unique(np.concatenate([keys for keys, _ in parts])) if parts else np.empty(0, np.int64)
    total = np.zeros((keys.size, dim), dtype)
    for own, values in parts:
        total[np.searchsorted(keys, own)] += values
    return keys, total
