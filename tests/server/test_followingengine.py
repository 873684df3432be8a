"""A partition that is led holds what is brought by who has the lease, and applies what is ordered when it has it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from paramserver.server import events as ev
from paramserver.server.events import Code, Contribution, Effect
from paramserver.server.followingengine import FollowingEngine
from paramserver.wire.job import Job


def make_engine(shards: int = 2, **train: object) -> FollowingEngine:
    tables = {
        "task": {"use": "linear_regression"},
        "data": {"source": "x.npz", "shards": shards},
        "train": train,
        "server": {"partitions": 2},
    }
    engine = FollowingEngine(Job.from_dict(tables))
    engine.prepare(total_steps=10)
    assert engine.handle(ev.Initialised("w", 0, 1), 0.0) == [ev.Report(None)]
    return engine


def contribution(shard: int = 0, step: int = 0, epoch: int = 1, version: int = 0, worker: str = "w") -> Contribution:
    return Contribution(worker, shard, epoch, step, version, samples=4, loss=1.0)


def push(engine: FollowingEngine, *contributions: Contribution) -> list[Effect]:
    return engine.handle(ev.Pushed(contributions), 0.0)


def order(
    engine: FollowingEngine, order: ev.See | ev.Apply | ev.SumUp | ev.Restage | ev.End | ev.Save | ev.Mark | ev.GoBack
) -> list[Effect]:
    return engine.handle(ev.Ordered(order), 0.0)


def refused(effects: list[Effect]) -> Code:
    (refusal,) = effects
    assert isinstance(refusal, ev.Refuse)
    return refusal.code


def test_what_is_in_is_kept_and_reported() -> None:
    engine = make_engine()
    c = contribution()
    assert push(engine, c) == [ev.Keep(0, 0), ev.Report(c)]


def test_a_higher_epoch_takes_over_and_a_lower_one_is_refused() -> None:
    engine = make_engine()
    push(engine, contribution(epoch=1, worker="dead"))
    again = contribution(epoch=3, worker="heir")
    assert push(engine, again) == [ev.Keep(0, 0), ev.Report(again)]
    assert refused(push(engine, contribution(epoch=2, worker="zombie"))) is Code.FENCED
    # A lease is on one shard.
    assert push(engine, contribution(shard=1, epoch=2)) != []


def test_what_it_sees_counts_as_what_it_was_told() -> None:
    engine = make_engine()
    c, other = contribution(epoch=3, worker=""), contribution(shard=1)
    push(engine, contribution(epoch=1, worker="dead"))
    see, apply = ev.See((c,), ((1, 2),)), ev.Apply(1, 1, (c, other))
    assert order(engine, see) == [see]
    assert refused(push(engine, contribution(epoch=2, worker="zombie"))) is Code.FENCED
    assert order(engine, apply) == []
    assert push(engine, other) == [ev.Keep(1, 0), ev.Report(other), apply]
    assert engine.clocks == [1, 1]


def test_what_was_applied_is_a_duplicate() -> None:
    engine = make_engine(shards=1)
    c = contribution()
    push(engine, c)
    apply = ev.Apply(1, 1, (c,))
    assert order(engine, apply) == [apply]
    assert (engine.version, engine.clocks) == (1, [1])
    assert refused(push(engine, c)) is Code.DUPLICATE
    assert refused(push(engine, contribution(step=1, version=2))) is Code.INVALID


def test_an_update_waits_for_its_contributions_and_everything_behind_it_waits_too() -> None:
    engine = make_engine()
    first, second = contribution(shard=0), contribution(shard=1)
    apply = ev.Apply(1, 1, (first, second))
    engine.handle(ev.Fetched("w", 1, (0,)), 0.0)
    push(engine, first)
    assert order(engine, apply) == []
    assert order(engine, ev.Save(None)) == []
    # Of another version, thus perhaps of other values.
    assert engine.version == 0
    effects = push(engine, second)
    assert effects == [ev.Keep(1, 0), ev.Report(second), apply, ev.Save(None), ev.Supply("w", (0,))]


def test_an_update_takes_no_other_computation_of_the_step() -> None:
    engine = make_engine(shards=1, mode="async")
    for step in range(2):
        c = contribution(step=step, version=step)
        push(engine, c)
        order(engine, ev.Apply(step + 1, 1, (c,)))
    stale, fresh = contribution(step=2, version=1), contribution(step=2, version=2)
    push(engine, stale)
    apply = ev.Apply(3, 1, (fresh,))
    assert order(engine, ev.SumUp(apply)) == []
    assert order(engine, apply) == []
    assert push(engine, fresh) == [ev.Keep(0, 2), ev.Report(fresh), ev.SumUp(apply), apply]


def test_parameters_are_supplied_when_they_have_the_version() -> None:
    engine = make_engine(shards=1)
    assert engine.handle(ev.Fetched("a", 0, (0,)), 0.0) == [ev.Supply("a", (0,))]
    assert engine.handle(ev.Fetched("b", 1, ()), 0.0) == []
    engine.handle(ev.Fetched("gone", 1, ()), 0.0)
    engine.handle(ev.Left("gone", ""), 0.0)
    c = contribution()
    push(engine, c)
    apply = ev.Apply(1, 1, (c,))
    assert order(engine, apply) == [apply, ev.Supply("b", ())]


def test_after_the_end_parameters_are_supplied_and_nothing_is_taken() -> None:
    engine = make_engine(shards=1)
    end = ev.End("done", "enough")
    assert order(engine, end) == [end]
    assert refused(push(engine, contribution())) is Code.FENCED
    assert engine.handle(ev.Fetched("a", 0, ()), 0.0) == [ev.Supply("a", ())]
    assert order(engine, ev.Save(3)) == [ev.Save(3)]


def test_a_bad_push_is_blamed_on_its_worker() -> None:
    engine = make_engine()
    assert refused(engine.handle(ev.Misbehaved("w", 0, 3, "NaN"), 0.0)) is Code.INVALID
    assert refused(push(engine, contribution(shard=7))) is Code.INVALID


@given(seed=st.integers(0, 2**32), shards=st.integers(1, 4), rounds=st.integers(1, 5))
def test_in_any_order_of_arrival_the_updates_are_those_of_the_coordinator(seed: int, shards: int, rounds: int) -> None:
    """Orders come in order, contributions in any order before and after; some come again under a higher epoch."""
    chance = random.Random(seed)
    engine = make_engine(shards)
    applied: list[ev.Apply] = []
    orders: list[ev.Apply] = []
    epochs = [1] * shards
    for step in range(rounds):
        epochs = [epoch + chance.randint(0, 2) for epoch in epochs]
        round_ = tuple(contribution(shard, step, epochs[shard], version=step) for shard in range(shards))
        orders.append(ev.Apply(step + 1, step + 1, round_))
        events: list[ev.Event] = [ev.Pushed((c,)) for c in round_]
        zombies = [c._replace(epoch=c.epoch - 1, worker="zombie") for c in round_ if chance.random() < 0.3]
        events += [ev.Pushed((c,)) for c in zombies]
        chance.shuffle(events)
        events.insert(chance.randint(0, len(events)), ev.Ordered(orders[-1]))
        for event in events:
            applied += [e for e in engine.handle(event, 0.0) if isinstance(e, ev.Apply)]
        assert applied == orders
        assert engine.clocks == [step + 1] * shards


def test_after_going_back_what_was_marked_is_there_again_and_nothing_else() -> None:
    engine = make_engine(shards=1)
    for step in range(3):
        if step == 1:
            order(engine, ev.Mark())
        c = contribution(step=step, version=step)
        push(engine, c)
        order(engine, ev.Apply(step + 1, step + 1, (c,)))
    push(engine, contribution(step=3, version=3))
    assert order(engine, ev.GoBack()) == [ev.GoBack()]
    assert (engine.version, engine.clocks, engine.era) == (1, [1], 1)
    # The same names come again; what was held under them is not taken for them.
    again = ev.Apply(2, 2, (contribution(step=1, version=1),))
    assert order(engine, again) == []
    assert push(engine, contribution(step=1, version=1))[-1] == again
    assert order(engine, ev.GoBack()) == [ev.GoBack()]
    assert (engine.version, engine.era) == (1, 2)


def test_whoever_waits_for_a_version_of_an_earlier_era_is_not_kept_waiting() -> None:
    engine = make_engine(shards=1)
    order(engine, ev.Mark())
    assert engine.handle(ev.Fetched("late", 3, (0,), (), 0), 0.0) == []
    assert order(engine, ev.GoBack()) == [ev.GoBack(), ev.Supply("late", (0,))]
    assert engine.handle(ev.Fetched("late", 1, (0,), (0,), 1), 0.0) == []
    assert engine.handle(ev.Fetched("other", 2, (0,), (), 0), 0.0) == [ev.Supply("other", (0,))]


def test_leases_of_the_job_before_mean_nothing() -> None:
    engine = FollowingEngine(
        Job.from_dict({"task": {"use": "linear_regression"}, "data": {"source": "x.npz"}}), epoch=7
    )
    engine.prepare(total_steps=10)
    refusal = engine.admit("w", 0, 7, 0)
    assert refusal is not None
    assert refusal.code is Code.FENCED
    assert engine.admit("w", 0, 8, 0) is None


def test_a_pull_that_comes_late_does_not_take_the_place_of_a_newer_one() -> None:
    engine = make_engine()
    assert engine.handle(ev.Fetched("w", 1, (0,), number=2), 0.0) == []
    assert engine.handle(ev.Fetched("w", 0, (0,), number=1), 0.0) == []
    push(engine, c := contribution())
    supplied = [e for e in order(engine, ev.Apply(1, 1, (c,))) if isinstance(e, ev.Supply)]
    assert [supply.worker for supply in supplied] == ["w"]


def test_a_newer_pull_takes_the_place_of_one_for_a_later_version() -> None:
    """The worker asked ahead, and was then given another shard of the round that is not over."""
    engine = make_engine()
    assert engine.handle(ev.Fetched("w", 1, (), number=1), 0.0) == []
    assert engine.handle(ev.Fetched("w", 0, (1,), number=2), 0.0) == [ev.Supply("w", (1,))]
    first, second = contribution(shard=0), contribution(shard=1)
    push(engine, first)
    push(engine, second)
    apply = ev.Apply(1, 1, (first, second))
    assert order(engine, apply) == [apply]
