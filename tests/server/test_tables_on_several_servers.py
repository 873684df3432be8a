"""Tables dealt by key to several servers: the rows of a single one, whoever dies."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.reading import Piece, merged
from paramserver.server.tables.tablestore import exactly
from paramserver.wire.job import Job
from server.inprocess import Training, at_once
from server.severalservers import Servers, train
from server.test_tables_in_training import make_job


@pytest.mark.parametrize("optimizer", ["adam", "ftrl"])
def test_the_rows_are_those_of_a_single_server(monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    l1 = 0.003 if optimizer == "ftrl" else 0.0
    job = make_job("TwoTables", train={"dtype": "float32"}, optimizer={"name": optimizer, "l1": l1})
    one, two, three = (train(monkeypatch, job, count) for count in (1, 2, 3))
    assert set(one) == {"b", "w.keys", "w.rows", "v.keys", "v.rows"}
    assert one == two == three


@pytest.mark.parametrize("shares", [False, True], ids=["stream", "shm"])
def test_whoever_is_killed_the_rows_come_out_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shares: bool
) -> None:
    server = {"snapshot_every_s": 0.01, "table_max_age": 4}
    job = make_job("TwoTables", train={"dtype": "float32"}, optimizer={"name": "adam", "l1": 0.0}, server=server)
    expected = train(monkeypatch, job, 1)
    deeds = {
        2: lambda servers: servers.kill(1),
        4: lambda servers: servers.kill_worker("b"),
        6: lambda servers: servers.kill(0),
        9: lambda servers: servers.kill(2),
    }
    assert train(monkeypatch, job, 3, tmp_path, deeds, shares=shares) == expected


def test_whoever_is_killed_the_same_rows_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A round names few rows, so that which of the others go is told by their age."""
    server = {"snapshot_every_s": 0.01, "table_max_rows": 40}
    job = make_job("TwoTables", data={"batch_size": 2}, train={"steps": 60}, server=server)
    expected = train(monkeypatch, job, 2)
    assert expected["w.keys"] != train(monkeypatch, job, 1)["w.keys"]
    begun: list[int] = []

    def kill(servers: Servers) -> None:
        begun.append(servers.coordinator.run.common or 0)  # type: ignore[union-attr]
        servers.kill(len(begun) % 2)

    assert train(monkeypatch, job, 2, tmp_path, {20: kill, 35: kill, 50: kill}) == expected


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_without_rounds_every_contribution_reaches_the_rows_of_every_server(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """One worker computes the shards in turn, so that the bits do not hang on who was first."""
    job = make_job("TwoTables", train={"mode": mode, "dtype": "float32"}, optimizer={"name": "sgd", "l1": 0.0})
    one, three = (train(monkeypatch, job, count, computes={"a": at_once}) for count in (1, 3))
    assert one == three


def test_the_norm_of_the_gradient_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: dict[int, list[float]] = {1: [], 3: []}
    job = make_job("TwoTables", optimizer={"name": "sgd", "l1": 0.0}, stop={"tolerance": 1e-9})
    for count, found in norms.items():
        with monkeypatch.context() as patched:
            from paramserver.server.engine import Engine

            measure = Engine._measure

            def note(engine: Any, norm: float, *rest: Any, found: list[float] = found, measure: Any = measure) -> None:
                found.append(norm)
                measure(engine, norm, *rest)

            patched.setattr(Engine, "_measure", note)
            train(patched, job, count)
    # Not that of the last step, after which the job is over.
    assert len(norms[1]) == 11
    assert norms[1] == norms[3]


def test_the_gradient_is_clipped_by_the_norm_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("TwoTables", optimizer={"name": "sgd", "l1": 0.0, "clip_norm": 0.05})
    one, two, three = (train(monkeypatch, job, count) for count in (1, 2, 3))
    assert one == two == three
    assert one["b"] == Training(job).finish(at_once).theta["b"].tobytes()


def test_each_server_keeps_its_share_of_the_bound_on_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(server={"table_max_rows": 20})
    kept = np.frombuffer(train(monkeypatch, job, 2)["w.keys"], np.int64)
    assert 16 <= kept.size <= 20
    assert (np.diff(kept) > 0).all()


def test_a_row_is_refused_where_another_server_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that deals keys in another way is told, and the job fails with what it was told."""
    monkeypatch.setattr("paramserver.worker.rowexchange.partition_of", lambda keys, _: np.zeros(keys.size, np.int64))
    with pytest.raises(AssertionError, match=r"the row of key \d+ is on partition 1 of 2; this is partition 0 of 2"):
        train(monkeypatch, make_job(), 2, computes={"a": at_once})


async def in_pieces(keys: list[int], sizes: list[int]) -> AsyncIterator[Piece]:
    own, start = np.array(sorted(keys), np.int64), 0
    for size in sizes or [len(keys)]:
        part = own[start:] if size == 0 else own[start : start + size]
        start += part.size
        yield Piece(own.size, part, part[:, None] * 2.0)
        if start == own.size:
            return
    if start < own.size:
        yield Piece(own.size, own[start:], own[start:, None] * 2.0)


@given(
    keys=st.sets(st.integers(-50, 50), max_size=30),
    servers=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 5), max_size=9),
)
def test_the_pieces_of_several_servers_become_one_table(keys: set[int], servers: int, sizes: list[int]) -> None:
    dealt = [[key for key in keys if key % servers == n] for n in range(servers)]

    async def collect() -> list[Piece]:
        return [piece async for piece in merged([in_pieces(own, sizes) for own in dealt])]

    pieces = asyncio.run(collect())
    assert np.concatenate([piece.keys for piece in pieces]).tolist() == sorted(keys)
    assert np.concatenate([piece.rows for piece in pieces])[:, 0].tolist() == [2.0 * key for key in sorted(keys)]
    assert {piece.total for piece in pieces} == {len(keys)}


@given(
    values=st.lists(st.floats(0, 1e300, allow_subnormal=False), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_a_sum_that_is_handed_on_exactly_does_not_show_how_it_was_dealt(values: list[float], cuts: list[int]) -> None:
    places = sorted({0, len(values), *(cut % (len(values) + 1) for cut in cuts)})
    parts = [exactly(values[a:b]) for a, b in itertools.pairwise(places)]
    assert math.fsum(part for own in parts for part in own) == math.fsum(values)


def test_status_counts_the_rows_of_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.from_dict(make_job().model_dump() | {"server": {"partitions": 2}})

    async def run() -> None:
        servers = Servers(2)
        monkeypatch.setattr("paramserver.server.coordinator.Link", servers.link)
        try:
            await servers.train(job, {"a": at_once}, {})
            total = (await servers.theta())["w.keys"].size
            run = servers.coordinator.run
            assert run is not None
            servers._shells[1].beat()
            while run.table_rows["w"] != total:
                await asyncio.sleep(0)
            assert run.tables is not None
            assert run.tables.counts["w"] < total
        finally:
            await servers.close()

    asyncio.run(asyncio.wait_for(run(), 30))
