"""What a table of rows is, where its rows belong and what they are before the first update.

Everything here is a pure function of keys and the seed, computed with 64-bit integers: the same on every machine, in
any order and for any number of servers. docs/tables.md spells the formulas out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import JobError, RequestError, TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import MAX_NAME, Array
from paramserver.wire.v1 import paramserver_pb2 as pb

#: int64, any shape or, where it is said, sorted and unique.
Keys = NDArray[np.int64]
Words = NDArray[np.uint64]

#: What a peer may declare.
MAX_TABLES = 1024
#: Even the widest row, with its key, fits a chunk of 1 MiB.
MAX_DIM = 65_536

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a task: rows of `dim` numbers by int64 key, which begin uniform in [−scale, scale).

    Raises:
        RequestError: if `dim` or `scale` are out of bounds.
    """

    dim: int
    scale: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or not 1 <= self.dim <= MAX_DIM:
            raise RequestError(f"a table has dim = {self.dim!r}; a whole number from 1 to {MAX_DIM} is expected")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 <= self.scale < math.inf:
            raise RequestError(f"a table has scale = {self.scale!r}; a finite number of 0 or more is expected")


def check_tables(tables: Mapping[str, Table], tensors: Iterable[str]) -> None:
    """Refuse tables that a job cannot have beside its dense tensors.

    Raises:
        RequestError: if there are too many, or a name is no name or used twice.
    """
    if len(tables) > MAX_TABLES:
        raise RequestError(f"{len(tables)} tables; allowed are {MAX_TABLES}")
    taken = set(tensors)
    for name in tables:
        if not 1 <= len(name) <= MAX_NAME:
            raise RequestError(f"table name {name[:40]!r} has {len(name)} characters, allowed are 1 to {MAX_NAME}")
        for own in (name, *tensor_names(name)):
            if own in taken:
                raise RequestError(f"table {name!r} and a tensor of the parameters are both named {own!r}")
            taken.add(own)


def check_job(job: Job) -> None:
    """Refuse what a job of a task with tables cannot have.

    Raises:
        JobError: naming the key.
    """
    train, optimizer = job.train, job.optimizer
    wrong = {
        f"train.local_steps = {train.local_steps} with local_update = {train.local_update!r}": train.goes_local,
        f"train.aggregate = {train.aggregate!r}: 'mean' is expected": train.aggregate != "mean",
        f"train.clip_contribution = {train.clip_contribution:g}": train.clip_contribution > 0,
        f"train.refuse_norm = {train.refuse_norm:g}": train.refuse_norm > 0,
        f"server.durability = {job.server.durability!r}": job.server.durability == "log",
        f"wire.push = {job.wire.push!r}, which keeps something back": job.wire.keeps_back,
        f"train.delay_compensation = {train.delay_compensation:g}": train.delay_compensation > 0,
        f"optimizer.name = {optimizer.name!r}, which needs whole tensors": optimizer.name in ("lars", "lamb"),
    }
    for what, found in wrong.items():
        if found:
            raise JobError(f"{what} cannot be had with a task that has tables; see docs/tables.md")


def tables_to_proto(tables: Mapping[str, Table]) -> list[pb.Table]:
    """Return the wire form."""
    return [pb.Table(name=name, dim=table.dim, scale=table.scale) for name, table in tables.items()]


def tables_from_proto(described: Iterable[pb.Table], tensors: Iterable[str]) -> dict[str, Table]:
    """Read the tables that a peer declares beside its dense tensors.

    Raises:
        TensorError: if they are out of bounds or names repeat.
    """
    described = list(described)
    try:
        tables = {table.name: Table(table.dim, table.scale) for table in described}
        if len(tables) < len(described):
            raise RequestError(f"{len(described)} tables have {len(tables)} names")
        check_tables(tables, tensors)
    except RequestError as error:
        raise TensorError(str(error)) from None
    return tables


def tensor_names(table: str) -> tuple[str, str]:
    """Return the names under which the keys and rows of a table stand among the tensors of θ."""
    return f"{table}.keys", f"{table}.rows"


def mix(words: Words) -> Words:
    """Return a new array of 64-bit words in which every bit depends on every bit of its word; a bijection.

    Source: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with the constants of
    Stafford's variant 13 (the finalizer of SplitMix64).
    """
    mixed = words ^ (words >> np.uint64(30))
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def partition_of(keys: Keys, partitions: int) -> NDArray[np.int64]:
    """Return the partition, 0 … partitions − 1, that holds the row of each key: the upper half of its mixed bits.

    The index of a table uses the lower half, so that the keys of one partition spread over all of it.
    """
    upper = mix(keys.view(np.uint64)) >> np.uint64(32)
    return ((upper * np.uint64(partitions)) >> np.uint64(32)).view(np.int64)


def initial_rows(seed: int, name: str, table: Table, keys: Keys, dtype: np.dtype[Any]) -> Array:
    """Return the rows of these keys (shape (n,)) before their first update, shape (n, dim).

    Column c of a row is word c of a SplitMix64 stream that begins at a hash of seed, table name and key, scaled to
    [−scale, scale). So a row does not depend on who asks for it, when, or beside which others.
    """
    rows = np.zeros((keys.size, table.dim), dtype)
    if not table.scale:
        return rows
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    own = np.frombuffer(digest, "<u8").astype(np.uint64)
    counters = np.arange(1, table.dim + 1, dtype=np.uint64) * _GAMMA
    words = mix(mix(keys.view(np.uint64) ^ own)[:, None] + counters)
    # 53 bits are exact in float64: the only rounding is the last one, to the table's dtype.
    rows[:] = ((words >> np.uint64(11)) * 2.0**-52 - 1.0) * table.scale
    return rows


def read_keys(payload: memoryview, count: int) -> Keys:
    """Return a copy of the first `count` keys of a payload, after checking that they rise strictly.

    Raises:
        TensorError: if the payload is shorter, or they do not.
    """
    if not 0 < 8 * count <= payload.nbytes:
        raise TensorError(f"{payload.nbytes} bytes cannot hold {count} keys; 1 key or more of 8 bytes is expected")
    keys = np.frombuffer(payload, "<i8", count).astype(np.int64)
    if not ascending(keys):
        place = int(np.flatnonzero(keys[1:] <= keys[:-1])[0])
        raise TensorError(f"key {keys[place + 1]} follows {keys[place]}; keys must rise strictly")
    return keys


def ascending(keys: Keys) -> bool:
    """Say whether keys, shape (n,), rise strictly: sorted, and none twice."""
    return bool((keys[1:] > keys[:-1]).all())
