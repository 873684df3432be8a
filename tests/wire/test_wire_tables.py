"""Keys, partitions and initial rows: the same numbers everywhere, by formulas that are written out."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.errors import JobError, RequestError, TensorError
from paramserver.wire.job import Job
from paramserver.wire.tables import (
    MAX_DIM,
    Table,
    check_job,
    check_tables,
    initial_rows,
    mix,
    partition_of,
    read_keys,
    tables_from_proto,
    tables_to_proto,
)

KEYS = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def mixed(word: int) -> int:
    """The finalizer in unbounded integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


@given(KEYS)
def test_mix_is_the_published_finalizer(key: int) -> None:
    assert int(mix(np.array([key], np.int64).view(np.uint64))[0]) == mixed(key & MASK)


@given(st.lists(KEYS, min_size=1, max_size=20), st.integers(1, 64))
def test_a_key_belongs_to_the_same_partition_in_any_company(keys: list[int], partitions: int) -> None:
    found = partition_of(np.array(keys, np.int64), partitions)
    assert found.tolist() == [(mixed(key & MASK) >> 32) * partitions >> 32 for key in keys]


def test_partitions_get_equal_shares_of_neighbouring_keys() -> None:
    counts = np.bincount(partition_of(np.arange(90_000), 9), minlength=9)
    assert abs(counts - 10_000).max() < 500


@given(st.integers(0, 2**32 - 1), st.lists(KEYS, min_size=1, max_size=9), st.sampled_from(["float32", "float64"]))
def test_an_initial_row_is_a_function_of_seed_table_key_and_column(seed: int, keys: list[int], dtype: str) -> None:
    table = Table(3, 0.25)
    rows = initial_rows(seed, "emb", table, np.array(keys, np.int64), np.dtype(dtype))
    (own,) = struct.unpack("<Q", hashlib.blake2b(f"{seed}/emb".encode(), digest_size=8).digest())
    for key, row in zip(keys, rows, strict=True):
        first = mixed((key & MASK) ^ own)
        words = [mixed(first + column * 0x9E3779B97F4A7C15 & MASK) for column in (1, 2, 3)]
        expected = [((word >> 11) / 2**52 - 1) * 0.25 for word in words]
        assert row.tolist() == np.array(expected).astype(dtype).tolist()


def test_initial_rows_are_uniform_and_unlike_in_other_tables_columns_and_seeds() -> None:
    keys = np.arange(20_000)
    table, dtype = Table(2, 2.0), np.dtype(np.float64)
    rows = initial_rows(1, "a", table, keys, dtype)
    assert np.abs(rows).max() <= 2
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(rows.var(axis=0), 4 / 3, rtol=0.03)
    others = [initial_rows(1, "b", table, keys, dtype)[:, 0], initial_rows(2, "a", table, keys, dtype)[:, 0]]
    for other in (rows[:, 1], np.roll(rows[:, 0], 1), *others):
        assert abs(np.corrcoef(rows[:, 0], other)[0, 1]) < 0.03
    assert not initial_rows(1, "a", Table(2), keys, dtype).any()


@pytest.mark.parametrize(("dim", "scale"), [(0, 0.0), (MAX_DIM + 1, 0.0), (1.0, 0.0), (1, -1.0), (1, float("nan"))])
def test_a_table_out_of_bounds_is_refused(dim: Any, scale: float) -> None:
    with pytest.raises(RequestError, match="a table has"):
        Table(dim, scale)


def test_tables_cross_the_wire() -> None:
    tables = {"w": Table(1), "v": Table(8, 0.01)}
    assert tables_from_proto(tables_to_proto(tables), ["b"]) == tables


def test_names_must_differ_from_each_other_and_from_tensors() -> None:
    for names, tensors in ((["w"], ["w"]), (["w"], ["w.rows"]), (["w", "w.keys"], []), ([""], []), (["x" * 257], [])):
        with pytest.raises(RequestError, match="name"):
            check_tables({name: Table(1) for name in names}, tensors)
    with pytest.raises(TensorError, match="2 tables have 1 names"):
        tables_from_proto(2 * tables_to_proto({"w": Table(1)}), [])


@pytest.mark.parametrize(
    ("section", "options", "named"),
    [
        ("train", {"local_steps": 2}, "train.local_steps"),
        ("train", {"aggregate": "median"}, "train.aggregate"),
        ("train", {"clip_contribution": 1.0}, "train.clip_contribution"),
        ("train", {"delay_compensation": 0.1, "mode": "async"}, "train.delay_compensation"),
        ("train", {"refuse_norm": 1.0}, "train.refuse_norm"),
        ("wire", {"push": "topk"}, "wire.push"),
        ("server", {"durability": "log"}, "server.durability"),
        ("optimizer", {"name": "lamb"}, "optimizer.name"),
    ],
)
def test_what_tables_cannot_have_is_named(section: str, options: dict[str, Any], named: str) -> None:
    base = {"task": {"use": "m"}, "data": {"source": "d"}}
    check_job(Job.from_dict(base))
    with pytest.raises(JobError, match=named):
        check_job(Job.from_dict(base | {section: options}))


def test_keys_must_rise_and_fit_their_payload() -> None:
    payload = memoryview(np.array([-5, 0, 7], "<i8").tobytes())
    assert read_keys(payload, 3).tolist() == [-5, 0, 7]
    for wrong, count in ((payload, 4), (payload, 0), (memoryview(b""), 1)):
        with pytest.raises(TensorError, match="bytes cannot hold"):
            read_keys(wrong, count)
    for keys in ([1, 1], [2, 1], [2**63 - 1, -(2**63)]):
        with pytest.raises(TensorError, match="must rise strictly"):
            read_keys(memoryview(np.array(keys, "<i8").tobytes()), 2)
