"""The tables of a job: contributions are added in shard order and weighted as the dense parameters' are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.events import Contribution
from paramserver.server.optimizers.optimizer import Array
from paramserver.server.store import CHUNK_BYTES, Store
from paramserver.server.tables.tablestore import TableStore, sum_by_key
from paramserver.wire.errors import JobError, TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.wire.tables import Table, initial_rows, partition_of

TABLE = Table(3, 0.5)
KEYS = np.arange(-10, 20)


def make_job(**sections: Any) -> Job:
    return Job.from_dict({"task": {"use": "m"}, "data": {"source": "d", "shards": 3}, **sections})


def contribution(shard: int, samples: int, version: int = 0) -> Contribution:
    return Contribution("w", shard, 1, 0, version, samples, 1.0)


def read(store: TableStore, keys: Array = KEYS) -> Array:
    return store.read(0, memoryview(keys.astype("<i8").tobytes()))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("train", [{"mode": "sync"}, {"mode": "async", "staleness_scaling": True}])
@pytest.mark.parametrize(
    "optimizer",
    [{"name": "sgd"}, {"name": "adam"}, {"name": "ftrl"}, {"name": "adam", "clip_norm": 0.3}],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
def test_a_table_whose_rows_are_all_pushed_has_the_bits_of_a_dense_tensor(
    optimizer: dict[str, Any], train: dict[str, Any], reduce: str
) -> None:
    job = make_job(
        train={"reduce": reduce, **train},
        optimizer={**optimizer, "schedule": "constant" if optimizer["name"] == "ftrl" else "cosine"},
    )
    tables = TableStore(job, {"t": TABLE}, total_steps=9)
    first = initial_rows(0, "t", TABLE, KEYS, np.dtype(np.float32))
    dense = Store(job, Layout([("t", first.shape)], "float32"), [first.ravel()], total_steps=9)
    rng = np.random.default_rng(0)
    for version in range(1, 9):
        shards = range(3) if train["mode"] == "sync" else [version % 3]
        contributions = [contribution(s, 4 + s, max(0, version - 1 - s)) for s in shards]
        for shard in reversed(shards):
            gradient = rng.standard_normal(first.shape).astype(np.float32)
            tables.hold(shard, {0: (KEYS, gradient)})
            dense.incoming.hold(shard, dense.cut(gradient.ravel()))
        norm = dense.apply(version, version, contributions)
        assert norm is None or norm > job.optimizer.clip_norm
        tables.apply(version, version, contributions, norm)
    np.testing.assert_array_equal(read(tables), dense.layout.views(dense.theta)["t"])


@given(st.lists(st.sets(st.integers(0, 30), min_size=1), max_size=5), st.integers(0, 99))
def test_rows_of_one_key_are_added_in_the_order_of_the_parts(chosen: list[set[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        (np.array(sorted(keys)), (rng.standard_normal((len(keys), 2)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32))
        for keys in chosen
    ]
    keys, total = sum_by_key(parts, 2, np.dtype(np.float32))
    assert keys.tolist() == sorted(set().union(*chosen))
    for key, found in zip(keys.tolist(), total, strict=True):
        expected = np.zeros(2, np.float32)
        for own, values in parts:
            if key in own:
                expected = expected + values[own.tolist().index(key)]
        assert found.tolist() == expected.tolist()


def test_what_a_contribution_does_not_name_stays_as_it_was() -> None:
    store = TableStore(make_job(), {"t": TABLE}, 9)
    before = read(store)
    store.hold(0, {0: (KEYS[:2], np.ones((2, 3), np.float32))})
    store.hold(1, {})
    store.apply(1, 1, [contribution(0, 1), contribution(1, 1)])
    after = read(store)
    np.testing.assert_array_equal(after[2:], before[2:])
    np.testing.assert_allclose(after[:2], before[:2] - 0.05, rtol=1e-6)
    assert store.counts == {"t": 2}


def test_the_norm_is_that_of_the_gradient_over_all_tables() -> None:
    job = make_job(stop={"tolerance": 1e-6})
    store = TableStore(job, {"t": TABLE, "u": Table(1)}, 9)
    store.hold(0, {0: (KEYS[:1], np.full((1, 3), 2.0, np.float32)), 1: (KEYS[:1], np.full((1, 1), 4.0, np.float32))})
    assert store.sum_up([contribution(0, 2)]) == [3 + 4]


def test_contributions_that_a_new_policy_takes_back_are_forgotten() -> None:
    store = TableStore(make_job(), {"t": TABLE}, 9)
    store.hold(0, {0: (KEYS, np.ones((KEYS.size, 3), np.float32))})
    store.restage(make_job(train={"mode": "async"}))
    with pytest.raises(KeyError):
        store.apply(1, 1, [contribution(0, 1)])


def test_a_wrong_request_for_rows_is_named() -> None:
    store = TableStore(make_job(), {"t": TABLE, "wide": Table(65_536)}, 9)
    with pytest.raises(TensorError, match="table 2 does not exist; the job has 2"):
        store.read(2, memoryview(b"\0" * 8))
    with pytest.raises(TensorError, match="7 bytes of keys came"):
        store.read(0, memoryview(b"\0" * 7))
    most = CHUNK_BYTES // (65_536 * 4)
    assert store.read(1, memoryview(np.arange(most).tobytes())).nbytes == CHUNK_BYTES
    with pytest.raises(TensorError, match=f"8 for each of up to {most} keys"):
        store.read(1, memoryview(np.arange(most + 1).tobytes()))


def test_a_job_that_tables_cannot_have_is_refused() -> None:
    with pytest.raises(JobError, match=r"optimizer.name = 'lars'"):
        TableStore(make_job(optimizer={"name": "lars"}), {"t": TABLE}, 9)


@pytest.mark.parametrize("partitions", [2, 5])
def test_tables_of_partitions_together_are_the_table_of_one(partitions: int) -> None:
    job = make_job(optimizer={"name": "adam"}, server={"table_max_age": 3})
    whole, parts = TableStore(job, {"t": TABLE}, 9), [TableStore(job, {"t": TABLE}, 9) for _ in range(partitions)]
    rng = np.random.default_rng(1)
    for version in range(1, 9):
        for shard in range(3):
            keys = np.unique(rng.integers(-50, 50, 12))
            gradient = rng.standard_normal((keys.size, 3)).astype(np.float32)
            whole.hold(shard, {0: (keys, gradient)})
            home = partition_of(keys, partitions)
            for number, part in enumerate(parts):
                part.hold(shard, {0: (keys[home == number], gradient[home == number])})
        for store in (whole, *parts):
            store.apply(version, version, [contribution(s, 2) for s in range(3)])
    contents = [part.contents()["t"].in_order() for part in parts]
    keys, rows = (np.concatenate(columns) for columns in zip(*contents, strict=True))
    order = np.argsort(keys)
    expected = whole.contents()["t"].in_order()
    np.testing.assert_array_equal(keys[order], expected[0])
    np.testing.assert_array_equal(rows[order], expected[1])
