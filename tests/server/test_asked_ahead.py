"""Workers that all go at one version after the other ask other servers for the next one as they push."""

from __future__ import annotations

from typing import Any

import pytest

from server.severalservers import Deed, told, train
from server.test_in_sight import make_job
from server.test_tables_in_training import make_job as with_tables


@pytest.mark.parametrize(
    "tables",
    [{}, {"wire": {"push": "bf16", "pull": "bf16"}}, {"train": {"refuse_norm": 1e6}}, {"data": {"shards": 5}}],
    ids=["plain", "bf16", "refuse_norm", "several shards"],
)
@pytest.mark.parametrize("count", [2, 3])
def test_of_each_server_a_worker_asks_once_and_the_bits_are_those_of_one(
    monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any], count: int
) -> None:
    job = make_job(**tables)
    expected = train(monkeypatch, job, 1)
    kinds = told(monkeypatch)
    assert train(monkeypatch, job, count) == expected
    assert kinds.count("pull") == 2 * (count - 1)


@pytest.mark.parametrize(
    "tables",
    [
        {"train": {"mode": "async", "delay_compensation": 0.1}, "data": {"shards": 1}},
        {"train": {"quorum": 1}},
        {"train": {"local_update": "elastic", "local_steps": 2, "elasticity": 0.5, "local_learning_rate": 0.1}},
        {"wire": {"push": "topk", "density": 0.1, "exact_every": 3}},
    ],
    ids=["async", "quorum", "elastic", "topk"],
)
def test_where_it_is_not_certain_what_comes_next_they_ask_when_it_has_come(
    monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any]
) -> None:
    kinds = told(monkeypatch)
    train(monkeypatch, make_job(**tables), 2)
    assert kinds.count("pull") >= 6


def test_with_tables_they_ask_which_drops_rows_of_pushes_that_never_came(monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_tables("TwoTables", train={"dtype": "float32"}, optimizer={"name": "adam", "l1": 0.0})
    kinds = told(monkeypatch)
    train(monkeypatch, job, 2)
    assert kinds.count("pull") >= job.train.steps


def test_whoever_takes_over_in_the_middle_of_a_round_has_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has pushed its own shard, and asked for the next version."""
    job = make_job(train={"steps": 12}, data={"shards": 3})
    expected = train(monkeypatch, job, 1)
    deeds: dict[int, Deed] = {
        2: lambda servers: servers.workers["b"].cancel(),
        4: lambda servers: servers.kill_worker("b"),
        6: lambda servers: servers.workers["a"].cancel(),
        8: lambda servers: servers.kill_worker("a"),
    }
    kinds = told(monkeypatch)
    assert train(monkeypatch, job, 2, deeds=deeds) == expected
    # Two for the beginning, and some for what was not foreseen.
    assert kinds.count("pull") > 2
