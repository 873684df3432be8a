"""Where all servers see what workers share, the coordinator alone is told of a contribution."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import numpy as np
import pytest

from paramserver.server import following, leading
from paramserver.server.following import FollowingRun
from paramserver.server.store import Store
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.learner import Learner
from paramserver.worker.tasks.contract import Params
from paramserver.worker.trainer import Gradient
from server.inprocess import at_once
from server.severalservers import Call, Deed, Servers, told, train

#: θ is cut at 65,536, in the middle of the one tensor.
SIZE = 100_000


class Wide:
    """A task whose gradient depends on θ everywhere, and on the shard."""

    def init(self, rng: np.random.Generator, _batch: Any) -> Params:
        return {"w": rng.normal(size=SIZE)}

    def loss_and_grad(self, params: Params, batch: Any) -> tuple[float, Params]:
        return 0.0, {"w": np.sin(params["w"]) + batch.y.mean()}


def make_job(**tables: Any) -> dict[str, Any]:
    job = {
        "task": {"use": f"{__name__}:Wide"},
        "data": {"source": "builtin:linear", "shards": 2, "batch_size": 8},
        "train": {"steps": 6, "dtype": "float32"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    }
    return {name: {**job.get(name, {}), **tables.get(name, {})} for name in {**job, **tables}}


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int] | None]:
    """Return what other servers hear of where the contributions lie that they look at; it fills up later."""
    slots: list[tuple[int, int] | None] = []
    see = FollowingRun._see

    def note(run: FollowingRun, store: Store, shard: int, slot: tuple[int, int] | None) -> None:
        slots.append(slot)
        see(run, store, shard, slot)

    monkeypatch.setattr(FollowingRun, "_see", note)
    return slots


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"optimizer": {"name": "lars", "momentum": 0.0}},
        {"train": {"aggregate": "krum", "byzantine": 1}, "data": {"shards": 5}},
        {"wire": {"push": "int8"}},
    ],
    ids=["plain", "lars", "krum", "int8"],
)
@pytest.mark.parametrize("count", [2, 3])
def test_the_others_are_told_nothing_and_the_bits_are_those_of_one_server(
    monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any], count: int
) -> None:
    job = make_job(**tables)
    expected = train(monkeypatch, job, 1)
    kinds, slots = told(monkeypatch), seen(monkeypatch)
    assert train(monkeypatch, job, count, shares=True) == expected
    shards, steps = (job["data"]["shards"], job["train"]["steps"])
    # Once, however many questions an update has, and mapped once.
    assert len(slots) == shards * steps * (count - 1)
    assert sum(slot is not None for slot in slots) == shards * (count - 1)
    assert "push" not in kinds
    assert "slot" not in kinds
    # Where θ is they ask each server once.
    assert kinds.count("pull") == 2 * (count - 1)


@pytest.mark.parametrize(
    "tables",
    [
        {"train": {"refuse_norm": 1e6}},
        {"train": {"local_update": "elastic", "local_steps": 2, "elasticity": 0.5, "local_learning_rate": 0.1}},
        {"train": {"mode": "async", "delay_compensation": 0.1}, "data": {"shards": 1}},
        {"wire": {"push": "topk", "density": 0.1, "exact_every": 3}},
    ],
    ids=["refuse_norm", "elastic", "delay_compensation", "topk"],
)
def test_what_servers_have_to_know_of_each_other_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any]
) -> None:
    job = make_job(**tables)
    expected = train(monkeypatch, job, 1)
    kinds = told(monkeypatch)
    assert train(monkeypatch, job, 2, shares=True) == expected
    assert kinds.count("push") >= 6


def test_a_server_that_does_not_see_the_coordinators_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    expected = train(monkeypatch, job, 1)
    monkeypatch.setattr(following, "_look_through", lambda _lead: b"\0" * 32)
    kinds = told(monkeypatch)
    assert train(monkeypatch, job, 2, shares=True) == expected
    assert "push" in kinds


def test_a_contribution_outlives_the_worker_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(train={"steps": 8})
    expected = train(monkeypatch, job, 1)
    slots = seen(monkeypatch)
    deeds: dict[int, Deed] = {
        2: lambda servers: servers.kill_worker("b"),
        4: lambda servers: servers.kill_worker("a"),
        5: lambda servers: servers.kill_worker("b"),
    }
    assert train(monkeypatch, job, 3, deeds=deeds, shares=True) == expected
    # Each of two others has two slots in the beginning, and at least one for each worker that came anew.
    assert sum(slot is not None for slot in slots) >= 2 * (2 + 3)


def test_no_descriptor_stays_open_for_workers_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(train={"steps": 40})

    def count(_servers: Servers) -> None:
        gc.collect()
        found.append(len(os.listdir("/proc/self/fd")))

    found: list[int] = []
    deeds: dict[int, Deed] = {version: lambda servers: servers.kill_worker("b") for version in range(6, 36, 2)}
    deeds |= {5: count, 38: count}
    # Nobody else takes a shard meanwhile, and keeps a slot for it.
    train(monkeypatch, job, 2, deeds=deeds, computes={"b": at_once}, shares=True)
    early, late = found
    assert late == early


def test_whoever_shares_memory_and_takes_over_from_whom_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(train={"steps": 12})
    expected = train(monkeypatch, job, 1)
    deeds: dict[int, Deed] = {
        2: lambda servers: servers.workers["b"].cancel(),
        4: lambda servers: servers.kill_worker("b"),
        6: lambda servers: servers.workers["a"].cancel(),
        8: lambda servers: servers.kill_worker("a"),
    }
    assert train(monkeypatch, job, 2, deeds=deeds, shares=True, strangers=["b"]) == expected


def test_work_comes_when_the_others_have_its_version_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    expected = train(monkeypatch, job, 1)

    async def write(call: Call, order: pb.Order) -> None:
        asyncio.get_running_loop().call_later(0.002, call._orders.put_nowait, order.SerializeToString())

    monkeypatch.setattr(Call, "write", write)
    for strangers in ([], ["b"]):
        assert train(monkeypatch, job, 2, shares=True, strangers=strangers) == expected


async def sometimes_nan(learner: Learner, theta: Params, shard: int, step: int, out: Params) -> Gradient:
    gradient = await at_once(learner, theta, shard, step, out)
    if (shard, step) == (1, 3):
        gradient.arrays["w"][SIZE - 5] = np.nan
    return gradient


def test_the_coordinator_looks_at_the_parts_of_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(server={"max_bad_pushes": 1})
    with pytest.raises(AssertionError, match=f"tensor 'w' holds nan at element {SIZE - 5}"):
        train(monkeypatch, job, 2, computes=dict.fromkeys("ab", sometimes_nan), shares=True)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_owns_up_to_what_servers_refuse(monkeypatch: pytest.MonkeyPatch, count: int, shares: bool) -> None:
    """It did not look before the servers did, and whose part is wrong makes no difference."""
    job = make_job(server={"max_bad_pushes": 1000})
    with pytest.raises(AssertionError, match="shard 1, step 3: gradient 'w' holds nan"):
        train(monkeypatch, job, count, computes=dict.fromkeys("ab", sometimes_nan), shares=shares)


@pytest.mark.parametrize(("refuse_norm", "sees"), [(0.0, False), (1e6, True)])
def test_what_is_not_in_sight_of_all_is_refused(
    monkeypatch: pytest.MonkeyPatch, refuse_norm: float, sees: bool
) -> None:
    job = make_job(server={"max_bad_pushes": 1}, train={"refuse_norm": refuse_norm})
    describe = leading.LeadingRun._describe

    def lie(run: leading.LeadingRun, *arguments: Any) -> pb.Layout:
        layout = describe(run, *arguments)
        layout.in_sight = True
        return layout

    if not sees:
        monkeypatch.setattr(following, "_look_through", lambda _lead: b"")
    monkeypatch.setattr(leading.LeadingRun, "_describe", lie)
    with pytest.raises(AssertionError, match="said to be in sight of all servers, which it is not"):
        train(monkeypatch, job, 2, shares=True)
