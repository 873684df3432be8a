"""The tables of one job on one partition: gives rows out, holds contributions until they count, has them applied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from paramserver.server.events import Contribution
from paramserver.server.optimizers import make_optimizer
from paramserver.server.optimizers.norms import clip_factor
from paramserver.server.place import Place
from paramserver.server.store import CHUNK_BYTES
from paramserver.server.tables.arriving import Parts, check_keys
from paramserver.server.tables.rows import Bounds, Contents, Rows
from paramserver.server.update import how, mean_scale
from paramserver.server.wholesums import measures
from paramserver.wire.errors import TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.tables import Keys, Table, check_job, read_keys


class TableStore:
    """What `Store` is to the dense parameters; decides nothing either.

    Of several servers, `partition` holds the rows whose keys `partition_of` gives it, up to its share of the bound on
    rows.

    Raises:
        JobError: if the job has what tables cannot have.
    """

    def __init__(self, job: Job, tables: Mapping[str, Table], total_steps: int, partition: int = 0) -> None:
        check_job(job)
        self.tables = dict(tables)
        self.dtype = np.dtype(job.train.dtype).newbyteorder("<")
        self._job = job
        self._total_steps = total_steps
        optimizer = make_optimizer(job.optimizer)
        self.place = Place(partition, job.server.partitions)
        bounds = Bounds(-(-job.server.table_max_rows // job.server.partitions), job.server.table_max_age)
        self._rows = [
            Rows(name, table, job.train.seed, self.dtype, optimizer, bounds) for name, table in tables.items()
        ]
        #: Whole contributions that are not applied, by shard.
        self._held: dict[int, Parts] = {}
        #: What `sum_up` has added up for the next `apply`, by table.
        self._summed: list[tuple[Keys, Array]] | None = None

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
        keys = read_keys(payload, count)
        check_keys(keys, self.place)
        return rows.read(keys)

    def rows_of(self, number: int, keys: Keys) -> Array:
        """Return the rows of these keys of a table by its number, shape (n, dim), as they are now."""
        return self._rows[number].read(keys)

    def hold(self, shard: int, parts: Parts) -> None:
        """Take the rows of the shard's next contribution; they stay until `apply` takes them."""
        self._held[shard] = parts

    def restage(self, job: Job, forgets: bool = True) -> None:
        """Go on under the policy of `job`, and forget the contributions that are not applied."""
        self._job, self._summed = job, None
        if forgets:
            self._held.clear()

    def sum_up(self, contributions: Sequence[Contribution]) -> list[float]:
        """Add up the contributions that `apply` is to be given next.

        Return numbers that add up exactly to the sum of the squares of their gradient, 0 if the job needs no norm.
        """
        scale = mean_scale(self._job, contributions)
        held = [self._held.pop(c.shard) for c in contributions]
        self._summed, squares = [], [0.0]
        for number, rows in enumerate(self._rows):
            summed = sum_by_key([parts[number] for parts in held if number in parts], rows.table.dim, self.dtype)
            self._summed.append(summed)
            if measures(self._job):
                with np.errstate(over="ignore"):
                    squares += np.square(np.multiply(summed[1], scale, dtype=np.float64)).sum(axis=1).tolist()
        return exactly(squares)

    def apply(self, version: int, step: int, contributions: Sequence[Contribution], norm: float | None = None) -> None:
        """Update the rows that the contributions name; `norm` is that of the whole gradient, if the job needs it.

        Contributions are added in the order given, so that the bits do not depend on the order of arrival, and
        weighted and clipped as those of the dense parameters are.
        """
        if self._summed is None:
            self.sum_up(contributions)
        assert self._summed is not None
        info, scale, freshness = how(self._job, self._total_steps, version, step, contributions)
        factor = 1.0 if norm is None else clip_factor(norm, self._job.optimizer.clip_norm)
        for rows, (keys, gradient) in zip(self._rows, self._summed, strict=True):
            gradient *= scale * freshness
            if factor != 1.0:
                gradient *= factor
            rows.update(keys, gradient, info)
        self._summed = None

    def contents(self) -> dict[str, Contents]:
        """Return copies of all tables, by name."""
        return {rows.name: rows.contents() for rows in self._rows}

    def restore(self, contents: Mapping[str, Contents]) -> None:
        """Fill the tables, which must be empty."""
        for rows in self._rows:
            rows.restore(contents[rows.name])


def exactly(values: Sequence[float]) -> list[float]:
    """Return the fewest numbers whose exact sum is that of the values, the rounded sum first.

    So the sum of several such lists, rounded once, does not depend on how the values were dealt to them.

    Source: Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997, whose
    expansions these are.
    """
    if not all(map(math.isfinite, values)):
        return [math.inf]
    found = [math.fsum(values)]
    while math.isfinite(found[-1]) and (rest := math.fsum([*values, *(-part for part in found)])):
        found.append(rest)
    return found


def sum_by_key(parts: Sequence[tuple[Keys, Array]], dim: int, dtype: np.dtype[np.generic]) -> tuple[Keys, Array]:
    """Return the keys of all parts, sorted, and for each the sum of its rows in the order of the parts.

    Within a part no key stands twice. The sum is an array of its own, shape (n, dim).
    """
    if len(parts) == 1:
        keys, values = parts[0]
        # As below −0 becomes 0: on another number of servers these parts may be among several.
        return keys, values + dtype.type(0)
    keys = np.unique(np.concatenate([keys for keys, _ in parts])) if parts else np.empty(0, np.int64)
    total = np.zeros((keys.size, dim), dtype)
    for own, values in parts:
        total[np.searchsorted(keys, own)] += values
    return keys, total
