"""What the engine promises, one promise per test."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.events import Assignment, Code, Contribution, Kind
from paramserver.server.policies import make_policy, why_it_waits
from paramserver.wire.job import Job, TrainSection

LEASE_S = 10.0
ROWS = 8
START = 100.0


class Cluster:
    """An engine and honest workers, one call per act."""

    def __init__(
        self,
        mode: str = "sync",
        shards: int = 2,
        steps: int = 50,
        staleness: int = 1,
        local_steps: int = 1,
        quorum: int = 0,
        **stop: Any,
    ) -> None:
        train = {"mode": mode, "steps": steps, "staleness": staleness, "local_steps": local_steps, "quorum": quorum}
        tables = {
            "task": {"use": "anything"},
            "data": {"source": "anywhere", "shards": shards},
            "train": train,
            "stop": stop,
            "server": {"lease_s": LEASE_S},
        }
        self.engine = Engine(Job.from_dict(tables))
        self.now = START
        #: What each worker was granted last: (version, assignments).
        self.granted: dict[str, tuple[int, tuple[Assignment, ...]]] = {}
        self.log: list[ev.Effect] = []

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.engine.handle(event, self.now)
        self.log += effects
        for effect in effects:
            if isinstance(effect, ev.Grant):
                self.granted[effect.worker] = effect.version, effect.assignments
        return effects

    def join(self, *workers: str, **how: Any) -> None:
        for worker in workers:
            self.feed(ev.Joined(worker, **how))
        for worker in workers:
            self.feed(ev.Pulled(worker))

    def contribution(self, worker: str, which: int = 0, **change: Any) -> Contribution:
        version, assignments = self.granted[worker]
        _, shard, epoch, step = assignments[which]
        return Contribution(worker, shard, epoch, step, version, 1, 1.0)._replace(**change)

    def finish(self, worker: str, loss: float = 1.0, samples: int = 1) -> list[ev.Effect]:
        """The worker does all that it was granted and pulls again; returns the effects of all that."""
        version, assignments = self.granted.pop(worker, (0, ()))
        effects = []
        for kind, shard, epoch, step in assignments:
            match kind:
                case Kind.SURVEY:
                    effects += self.feed(ev.Surveyed(worker, shard, epoch, ROWS))
                case Kind.INITIAL:
                    effects += self.feed(ev.Initialised(worker, shard, epoch))
                case Kind.GRADIENT:
                    contribution = Contribution(worker, shard, epoch, step, version, samples, loss)
                    effects += self.feed(ev.Pushed((contribution,)))
        return effects + self.feed(ev.Pulled(worker))

    def to_training(self) -> None:
        for _ in range(9):
            if self.engine.phase == "train":
                break
            assert self.granted, self.engine.waits(self.now)
            for worker in list(self.granted):
                self.finish(worker)

    def shards_of(self, worker: str) -> set[int]:
        return self.engine.workers[worker].shards

    def ended(self) -> ev.End | None:
        return next((e for e in self.log if isinstance(e, ev.End)), None)


def training(*workers: str, **how: Any) -> Cluster:
    cluster = Cluster(**how)
    cluster.join(*workers)
    cluster.to_training()
    return cluster


def refusals(effects: list[ev.Effect]) -> list[Code]:
    return [e.code for e in effects if isinstance(e, ev.Refuse)]


def test_a_job_surveys_every_shard_then_initialises_then_trains() -> None:
    cluster = Cluster(shards=2)
    cluster.join("a", "b")
    assert [a.kind for w in "ab" for a in cluster.granted[w][1]] == [Kind.SURVEY] * 2
    assert not any(isinstance(e, ev.CombineSurveys) for e in cluster.finish("b"))
    effects = cluster.finish("a")
    combined = next(i for i, e in enumerate(effects) if isinstance(e, ev.CombineSurveys))
    granted = next(i for i, e in enumerate(effects) if isinstance(e, ev.Grant))
    assert combined < granted, "the census must be known before the first batch"
    assert cluster.granted["a"][1] == (Assignment(Kind.INITIAL, 0, 1, 0),)
    assert "b" not in cluster.granted
    cluster.finish("a")
    assert cluster.engine.phase == "train"
    assert {w: [a.shard for a in cluster.granted[w][1]] for w in "ab"} == {"a": [0], "b": [1]}


def test_a_sync_round_is_applied_once_whole_and_in_shard_order() -> None:
    cluster = training("a", "b", "c", shards=3)
    for worker in "ca":
        assert not any(isinstance(e, ev.Apply) for e in cluster.finish(worker))
    (update,) = [e for e in cluster.finish("b") if isinstance(e, ev.Apply)]
    assert update.version == update.step == 1
    assert [c.shard for c in update.contributions] == [0, 1, 2]
    assert all(version == 1 for version, _ in cluster.granted.values())


def test_the_same_push_twice_counts_once_and_gets_the_same_answer() -> None:
    cluster = training("a", "b")
    contribution = cluster.contribution("a")
    assert refusals(cluster.feed(ev.Pushed((contribution,)))) == []
    first, second = (cluster.feed(ev.Pushed((contribution,))) for _ in range(2))
    assert first == second
    assert refusals(first) == [Code.DUPLICATE]
    assert cluster.engine.clocks == [1, 0]
    assert cluster.engine.version == 0, "a retry must not stand in for the shard that is missing"


def test_a_push_for_the_shard_of_another_is_refused_even_with_the_right_epoch() -> None:
    cluster = training("a", "b")
    contribution = cluster.contribution("a")._replace(worker="b")
    assert refusals(cluster.feed(ev.Pushed((contribution,)))) == [Code.FENCED]
    assert cluster.engine.clocks == [0, 0]


def test_a_push_that_was_not_assigned_never_counts() -> None:
    cluster = training("a", "b")
    contribution = cluster.contribution("a")
    cluster.feed(ev.Pushed((contribution,)))
    assert refusals(cluster.feed(ev.Pushed((contribution._replace(step=1),)))) == [Code.INVALID]
    assert refusals(cluster.feed(ev.Pushed((contribution._replace(step=2),)))) == [Code.GAP]
    assert cluster.engine.clocks == [1, 0]


def test_the_close_of_a_round_asks_nobody_for_the_next() -> None:
    cluster = training("a", "b", quorum=1)
    late, guessed = cluster.contribution("b"), cluster.contribution("b", step=1, version=1)
    together = cluster.feed(ev.Pushed((cluster.contribution("a"),)))
    assert any(isinstance(e, ev.Apply) for e in together)
    assert cluster.engine.clocks == [1, 1]
    assert refusals(cluster.feed(ev.Pushed((late, guessed)))) == [Code.SUPERSEDED, Code.INVALID]
    assert cluster.engine.clocks == [1, 1]


def test_the_last_step_ends_the_job_for_all_that_comes_in_the_same_message() -> None:
    cluster = training("a", shards=1, steps=1)
    good = cluster.contribution("a")
    effects = cluster.feed(ev.Pushed((good, good, *[good._replace(shard=7)] * 3), pull=True))
    assert [e.status for e in effects if isinstance(e, ev.End)] == ["done"]
    assert refusals(effects) == [Code.FENCED, *[Code.INVALID] * 3]
    assert cluster.engine.phase == "done"


def test_what_comes_in_the_message_that_fails_a_worker_does_not_count() -> None:
    cluster = training("liar", "honest", shards=4)
    first, second = (cluster.contribution("liar", which) for which in range(2))
    effects = cluster.feed(ev.Pushed((*[first._replace(shard=7)] * 3, first, second), pull=True))
    assert refusals(effects) == [*[Code.INVALID] * 3, Code.FENCED, Code.FENCED]
    assert cluster.engine.clocks == [0] * 4
    assert cluster.shards_of("honest") == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "computed at version 1, θ is at version 0"),
        ({"samples": 0}, "samples = 0"),
        ({"samples": ROWS + 1}, f"1 to {ROWS} samples"),
        ({"loss": math.nan}, "loss = nan"),
        ({"loss": math.inf}, "loss = inf"),
        ({"shard": 2}, "shard 2 does not exist; the job has 2"),
    ],
)
def test_wrong_numbers_are_refused_with_the_numbers(change: dict[str, Any], said: str) -> None:
    cluster = training("a", "b")
    (refusal,) = [
        e for e in cluster.feed(ev.Pushed((cluster.contribution("a", **change),))) if isinstance(e, ev.Refuse)
    ]
    assert refusal.code is Code.INVALID
    assert said in refusal.reason
    assert cluster.engine.clocks == [0, 0]


def test_with_local_steps_a_contribution_may_see_every_row_as_often() -> None:
    cluster = training("a", "b", local_steps=3)
    assert refusals(cluster.feed(ev.Pushed((cluster.contribution("a", samples=3 * ROWS),)))) == []
    assert refusals(cluster.feed(ev.Pushed((cluster.contribution("b", samples=3 * ROWS + 1),)))) == [Code.INVALID]


def test_a_silent_worker_that_speaks_again_gets_a_shard_with_the_next_push() -> None:
    cluster = training("a", "b")
    cluster.now = START + 5
    cluster.finish("b")
    cluster.now = START + LEASE_S
    cluster.feed(ev.Tick())
    assert cluster.engine.workers["a"].shards == set()
    cluster.feed(ev.Heard("a"))
    cluster.finish("b")
    assert len(cluster.engine.workers["a"].shards) == 1


@pytest.mark.parametrize(("heard", "stop"), [(1015.1, {}), (START, {"max_seconds": 2.3})], ids=["lease", "limit"])
def test_a_tick_at_the_deadline_is_not_asked_for_again(heard: float, stop: dict[str, float]) -> None:
    cluster = training("a", **stop)
    cluster.now = heard
    cluster.feed(ev.Tick())
    cluster.feed(ev.Heard("a"))
    engine = cluster.engine
    while not engine.ended and engine.workers["a"].alive:
        deadline = cluster.now = engine.next_deadline()
        cluster.feed(ev.Tick())
        assert engine.next_deadline() > deadline


def test_a_silent_worker_loses_its_leases_at_the_deadline_and_not_before() -> None:
    cluster = training("a", "b")
    old = cluster.contribution("a")
    cluster.now = START + 5
    cluster.finish("b")
    assert cluster.engine.next_deadline() <= START + LEASE_S
    cluster.now = START + LEASE_S - 0.01
    assert cluster.feed(ev.Tick()) == []
    cluster.now = START + LEASE_S
    effects = cluster.feed(ev.Tick())
    revoked = [e for e in effects if isinstance(e, ev.Revoke)]
    assert [(r.worker, r.shard) for r in revoked] == [("a", 0)]
    assert "worker a was silent for 10.0 s; a lease ends after 10 s" in revoked[0].reason
    version, (assignment,) = cluster.granted["b"]
    assert assignment.shard == 0
    assert assignment.step == old.step, "the same step is computed again"
    assert assignment.epoch > old.epoch
    # The zombie wakes up: what it computed is too late.
    (refusal,) = [e for e in cluster.feed(ev.Pushed((old,))) if isinstance(e, ev.Refuse)]
    assert refusal.code is Code.FENCED
    assert f"epoch {assignment.epoch} belongs to b" in refusal.reason
    assert version == 0


def test_a_worker_that_leaves_is_replaced_at_once_without_a_tick() -> None:
    cluster = training("a", "b")
    cluster.finish("b")
    effects = cluster.feed(ev.Left("a", "its connection broke"))
    assert [(e.worker, e.reason) for e in effects if isinstance(e, ev.Revoke)] == [("a", "its connection broke")]
    assert [a.shard for a in cluster.granted["b"][1]] == [0]


def test_a_contribution_outlives_the_worker_that_made_it() -> None:
    cluster = training("a", "b")
    cluster.finish("a")
    cluster.feed(ev.Left("a", "killed"))
    (update,) = [e for e in cluster.finish("b") if isinstance(e, ev.Apply)]
    assert [c.worker for c in update.contributions] == ["a", "b"]


def test_a_late_joiner_gets_work_from_the_busiest() -> None:
    cluster = training("a", shards=4)
    cluster.feed(ev.Joined("late"))
    assert cluster.shards_of("late") == set(), "what is being computed stays where it is"
    cluster.feed(ev.Pulled("late"))
    cluster.finish("a")
    assert len(cluster.shards_of("late")) == len(cluster.shards_of("a")) == 2
    assert len(cluster.granted["late"][1]) == 2


def test_shards_that_few_can_read_go_to_those_and_pinned_ones_wait_for_their_own() -> None:
    cluster = Cluster(shards=3)
    cluster.join("a", accepts=frozenset({0, 1}))
    assert cluster.shards_of("a") == {0, 1}
    assert cluster.engine.shards[2].holder is None
    (wait,) = [w for w in cluster.engine.waits(cluster.now) if w.shard == 2]
    assert "waits for a worker to join" in wait.reason
    cluster.join("p", accepts=frozenset({2}), pinned=frozenset({2}))
    assert cluster.shards_of("p") == {2}
    cluster.feed(ev.Left("p", "killed"))
    cluster.join("b")
    assert cluster.engine.shards[2].holder is None
    (wait,) = [w for w in cluster.engine.waits(cluster.now) if w.shard == 2]
    assert "worker p, to which it is pinned" in wait.reason
    cluster.join("p", accepts=frozenset({2}), pinned=frozenset({2}))
    assert cluster.shards_of("p") == {2}


def test_pinning_takes_a_shard_from_one_who_cannot_read_it() -> None:
    cluster = Cluster(shards=2)
    cluster.join("a")
    cluster.join("p", accepts=frozenset({1}), pinned=frozenset({1}))
    assert cluster.shards_of("a") == {0}
    assert cluster.shards_of("p") == {1}


def test_ssp_lets_a_shard_run_ahead_by_the_bound_and_no_further() -> None:
    cluster = training("fast", "slow", mode="ssp", staleness=2)
    steps = []
    while "fast" in cluster.granted and len(steps) < 9:
        steps.append(cluster.granted["fast"][1][0].step)
        cluster.finish("fast")
    assert steps == [0, 1, 2], "at most 2 ahead of the slowest, which is at 0"
    cluster.finish("slow")
    assert cluster.granted["fast"][1][0].step == 3


def test_async_never_waits() -> None:
    cluster = training("fast", "slow", mode="async", steps=20)
    for version in range(20):
        assert cluster.granted["fast"][0] == version
        cluster.finish("fast")
    assert cluster.engine.clocks == [20, 0]
    assert cluster.engine.staleness == {0: 20}
    # The slow one computed at version 0; that is counted, and said.
    cluster.finish("slow")
    assert cluster.engine.staleness == {0: 20, 20: 1}


def test_policies_explain_a_wait_with_its_numbers() -> None:
    ssp = make_policy(TrainSection(mode="ssp", staleness=3))
    assert why_it_waits(ssp, [9, 4, 5, 9], 3) == "shard 3 at step 9 waits: slowest shard 1 is at 4, staleness bound 3"
    sync = make_policy(TrainSection(mode="sync"))
    assert why_it_waits(sync, [1, 0, 1, 0], 1) == ""
    assert why_it_waits(sync, [1, 0, 1, 0], 2) == "shard 2 at step 1 waits: round 0 misses shards 1, 3"


def test_a_wait_says_who_since_when_and_what_comes_next() -> None:
    cluster = training("a", "b")
    cluster.now = START + 2
    cluster.finish("b")
    cluster.feed(ev.Tick())
    cluster.now = START + 6.5
    (wait,) = cluster.engine.waits(cluster.now)
    assert (wait.shard, wait.worker, wait.since_s) == (0, "a", 6.5)
    assert wait.reason == (
        "step 0 of shard 0 waits for worker a, heard of 6.5 s ago and computing for 6.5 s where a step takes 2 s; "
        "its lease ends if it stays silent, in 3.5 s"
    )
    assert (wait.heard_s, wait.then, wait.due_s) == (6.5, "its lease ends if it stays silent", 3.5)


def test_the_job_fails_with_the_reason_when_the_last_worker_has_failed() -> None:
    cluster = training("a", "b")
    cluster.feed(ev.Failed("a", "no file train.csv"))
    assert cluster.ended() is None
    assert cluster.shards_of("b") == {0, 1}
    cluster.feed(ev.Failed("b", "no file train.csv"))
    assert cluster.ended() == ev.End("failed", "worker b: no file train.csv")


def test_a_worker_that_keeps_lying_gets_no_more_work() -> None:
    cluster = training("liar", "honest")
    for number in range(1, 4):
        assert cluster.engine.workers["liar"].failure == ""
        effects = cluster.feed(ev.Misbehaved("liar", 0, 0, f"lie {number}"))
        assert refusals(effects) == [Code.INVALID]
        cluster.feed(ev.Pulled("liar"))
    assert "3 bad pushes, the last: lie 3" in cluster.engine.workers["liar"].failure
    assert cluster.shards_of("honest") == {0, 1}
    assert cluster.engine.clocks == [0, 0]


def run_with_losses(losses: list[float], **stop: Any) -> tuple[ev.End | None, int]:
    cluster = training("a", shards=1, **stop)
    for number, loss in enumerate(losses, start=1):
        cluster.finish("a", loss=loss)
        if (end := cluster.ended()) is not None:
            return end, number
    return None, len(losses)


def test_training_stops_at_the_target_loss() -> None:
    end, rounds = run_with_losses([3.0, 0.26, 0.25, 0.1], target_loss=0.25)
    assert (end, rounds) == (ev.End("done", "loss 0.25 reached the target 0.25"), 3)


def test_the_loss_is_weighted_by_samples() -> None:
    cluster = training("a", "b", shards=2)
    cluster.finish("a", loss=1.0, samples=1)
    (progress,) = [e for e in cluster.finish("b", loss=2.0, samples=3) if isinstance(e, ev.Progress)]
    assert progress.loss == pytest.approx(1.75)
    assert progress.samples == 4
    assert (progress.step, progress.version) == (1, 1)


def test_training_stops_when_the_loss_has_been_calm_for_patience_rounds_in_a_row() -> None:
    calm_and_back = [1.0, 0.9999, 0.9998, 0.5, 0.49999, 0.49998, 0.49997, 0.4]
    end, rounds = run_with_losses(calm_and_back, tolerance=1e-3, patience=3)
    assert rounds == 7
    assert end == ev.End("done", "converged: loss changed by less than 0.001 of itself 3 times")


def test_training_stops_when_the_gradient_norm_has_been_small_for_patience_rounds() -> None:
    cluster = training("a", shards=1, tolerance=1e-3, patience=2)
    for version, norm in enumerate([1e-4, 1e-2, 1e-4], start=1):
        assert cluster.feed(ev.Measured(version, norm)) == []
    assert cluster.feed(ev.Measured(4, 1e-4)) == [
        ev.End("done", "converged: gradient norm 0.0001 below 0.001 2 times"),
    ]


def test_training_stops_at_the_time_limit_even_if_nobody_moves() -> None:
    cluster = training("a", shards=1, max_seconds=4.0)
    assert cluster.engine.next_deadline() <= START + 4
    cluster.now = START + 4
    assert cluster.feed(ev.Tick()) == [ev.End("done", "the time limit of 4 s is reached")]


def test_training_stops_after_the_last_step() -> None:
    end, rounds = run_with_losses([1.0] * 9, steps=7)
    assert (end, rounds) == (ev.End("done", "all 7 steps are made"), 7)


def test_after_the_end_pushes_are_refused_and_nothing_else_happens() -> None:
    cluster = training("a", "b")
    contribution = cluster.contribution("a")
    cluster.feed(ev.StopAsked("enough"))
    (refusal,) = cluster.feed(ev.Pushed((contribution,)))
    assert isinstance(refusal, ev.Refuse)
    assert refusal.reason == "the job is over: enough"
    for event in (ev.Tick(), ev.Pulled("a"), ev.Joined("c"), ev.Left("b", "gone"), ev.StopAsked("again")):
        assert cluster.feed(event) == []
    assert cluster.engine.next_deadline() == math.inf


def test_epochs_continue_above_those_of_the_job_before() -> None:
    job = Job.from_dict({"task": {"use": "anything"}, "data": {"source": "anywhere"}})
    engine = Engine(job, epoch=41)
    engine.handle(ev.Joined("a"), 0.0)
    (grant,) = engine.handle(ev.Pulled("a"), 0.0)
    assert isinstance(grant, ev.Grant)
    assert min(a.epoch for a in grant.assignments) == 42


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [([10, 7], 0, 3.0, 3), ([10, 7], 4, 2.0, 6), ([10, 7], 4, 0.5, 2), ([8], 8, None, 10)],
)
def test_an_epoch_is_as_many_steps_as_the_largest_shard_needs(
    rows: list[int], batch: int, epochs: float | None, steps: int
) -> None:
    job = Job.from_dict(
        {
            "task": {"use": "anything"},
            "data": {"source": "anywhere", "shards": len(rows), "batch_size": batch},
            "train": {} if epochs is None else {"epochs": epochs},
        }
    )
    engine = Engine(job)
    engine.handle(ev.Joined("a"), 0.0)
    (grant,) = engine.handle(ev.Pulled("a"), 0.0)
    assert isinstance(grant, ev.Grant)
    for assignment, count in zip(grant.assignments, rows, strict=True):
        engine.handle(ev.Surveyed("a", assignment.shard, assignment.epoch, count), 0.0)
    assert engine.total_steps == steps
