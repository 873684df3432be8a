"""How long the engine waits: adapted to the steps, for each kind of trouble, and to an end that was announced."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.events import Assignment, Contribution, Kind
from paramserver.server.leases import MAX_LEFT, WorkerState
from paramserver.server.pace import HEARTBEATS_PER_LEASE, SHORTEST_HEARTBEAT_S, STUCK_FACTOR, Pace
from paramserver.wire.job import Job, ServerSection

LEASE_S, STUCK_S, ABSENT_S = 12.0, 5.0, 100.0
START = 1000.0


class Cluster:
    """An engine in training, and workers that are driven turn by turn."""

    def __init__(self, *workers: ev.Joined, shards: int = 2, **train: object) -> None:
        tables = {
            "task": {"use": "anything"},
            "data": {"source": "anywhere", "shards": shards},
            "train": {"steps": 1000, **train},
            "server": {"lease_s": LEASE_S, "stuck_s": STUCK_S, "absent_s": ABSENT_S},
        }
        self.engine = Engine(Job.from_dict(tables))
        self.now = START
        self.work: dict[str, tuple[int, tuple[Assignment, ...]]] = {}
        self.log: list[ev.Effect] = []
        self.feed(ev.Tick())
        for worker in workers:
            self.feed(worker)
        for worker in workers:
            self.feed(ev.Pulled(worker.worker))
        while self.work and self.engine.phase != "train":
            for name in list(self.work):
                self.turn(name)

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.engine.handle(event, self.now)
        self.log += effects
        for effect in effects:
            if isinstance(effect, ev.Grant):
                self.work[effect.worker] = effect.version, effect.assignments
        return effects

    def turn(self, worker: str, took_s: float = 0.0) -> list[ev.Effect]:
        """The worker takes its time for all that it has, pushes and pulls."""
        self.now += took_s
        version, assignments = self.work.pop(worker)
        effects = []
        for kind, shard, epoch, step in assignments:
            match kind:
                case Kind.SURVEY:
                    effects += self.feed(ev.Surveyed(worker, shard, epoch, 10))
                case Kind.INITIAL:
                    effects += self.feed(ev.Initialised(worker, shard, epoch))
                case Kind.GRADIENT:
                    effects += self.feed(ev.Pushed((Contribution(worker, shard, epoch, step, version, 1, 1.0),)))
        return effects + self.feed(ev.Pulled(worker))

    def wait_until_deadline(self, *heard: str) -> list[ev.Effect]:
        """Let time pass to the engine's next deadline; `heard` send heartbeats all the while."""
        deadline = self.engine.next_deadline()
        assert deadline < math.inf
        self.now = max(self.now, deadline)
        for worker in heard:
            self.feed(ev.Heard(worker))
        return self.feed(ev.Tick())

    def wait_for(self, worker: str, *heard: str, limit_s: float) -> ev.Revoke:
        """Wait for a worker to lose a lease."""
        end = self.now + limit_s
        while self.now <= end:
            for effect in self.wait_until_deadline(*heard):
                if isinstance(effect, ev.Revoke) and effect.worker == worker:
                    return effect
        raise AssertionError(f"{worker} kept its leases for {limit_s} s: {self.engine.waits(self.now)}")

    def holders(self) -> list[str | None]:
        return [shard.holder for shard in self.engine.shards]

    def ended(self) -> ev.End | None:
        return next((e for e in self.log if isinstance(e, ev.End)), None)


def of_any(*names: str) -> list[ev.Joined]:
    return [ev.Joined(name) for name in names]


def worker(turn_s: float = 0.0, heartbeat_s: float = 1.0, assigned: int = 1) -> WorkerState:
    return WorkerState(None, 1, START, heartbeat_s, START, turn_s=turn_s, assigned=assigned)


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=5), st.floats(0.1, 100))
def test_heartbeats_are_as_long_as_the_slowest_step_within_their_bounds(turns: list[float], lease_s: float) -> None:
    pace = Pace(ServerSection(lease_s=lease_s))
    longest = lease_s / HEARTBEATS_PER_LEASE
    assert pace.heartbeat_s == pace.longest_heartbeat_s == longest
    pace.look([worker(turn) for turn in turns], START)
    assert min(SHORTEST_HEARTBEAT_S, longest) <= pace.heartbeat_s <= longest
    assert pace.heartbeat_s >= min(max(turns), longest)
    assert pace.heartbeat_s <= max(SHORTEST_HEARTBEAT_S, 2 * max(turns))
    silence = pace.silence_s(worker(heartbeat_s=pace.heartbeat_s))
    assert silence == pytest.approx(min(lease_s, HEARTBEATS_PER_LEASE * pace.heartbeat_s))


def test_who_is_gone_does_not_set_the_pace_and_the_last_pace_stays() -> None:
    pace = Pace(ServerSection())
    slow, fast = worker(2.0), worker(0.001)
    pace.look([slow, fast], START)
    assert (pace.step_s, pace.heartbeat_s) == (2.0, 2.0)
    slow.alive = False
    pace.look([slow, fast], START)
    assert (pace.step_s, pace.heartbeat_s) == (0.001, SHORTEST_HEARTBEAT_S)
    pace.look([], START)
    assert pace.step_s == 0.001


def test_the_time_for_a_turn_grows_with_what_was_given_and_with_the_workers_own_pace() -> None:
    pace = Pace(ServerSection(stuck_s=STUCK_S))
    assert pace.turn_s(worker()) == STUCK_FACTOR * STUCK_S, "nothing is known yet"
    pace.look([worker(0.001)], START)
    assert pace.turn_s(worker(0.001)) == STUCK_S
    pace.look([worker(2.0)], START)
    assert pace.turn_s(worker(2.0, assigned=3)) == STUCK_FACTOR * 2.0 * 3
    assert pace.turn_s(worker(7.0)) == STUCK_FACTOR * 7.0, "a worker that is slow for good is not stuck"


def test_a_worker_is_told_of_shorter_heartbeats_once_it_has_shown_its_pace() -> None:
    cluster = Cluster(*of_any("a", "b"))
    for _ in range(2):
        cluster.turn("a", 0.01)
        cluster.turn("b", 0.01)
    assert all(grant.heartbeat_s is None for grant in cluster.log if isinstance(grant, ev.Grant))
    cluster.feed(ev.Tick())
    cluster.turn("a", 0.01)
    told = [e.heartbeat_s for e in cluster.turn("b", 0.01) if isinstance(e, ev.Grant)]
    assert told == [SHORTEST_HEARTBEAT_S, SHORTEST_HEARTBEAT_S]
    cluster.turn("a", 0.01)
    told = [e.heartbeat_s for e in cluster.turn("b", 0.01) if isinstance(e, ev.Grant)]
    assert told == [None, None], "what has not changed is not told again"


def test_silence_is_noticed_after_three_adaptive_heartbeats() -> None:
    cluster = Cluster(*of_any("a", "b"))
    for _ in range(3):
        cluster.turn("a", 0.01)
        cluster.turn("b", 0.01)
        cluster.feed(ev.Tick())
    silent_since = cluster.now
    revoked = cluster.wait_for("a", "b", limit_s=LEASE_S)
    assert cluster.now - silent_since <= 3 * SHORTEST_HEARTBEAT_S + 0.01
    assert "a lease ends after 1.375 s" in revoked.reason
    assert cluster.holders() == ["b", "b"]


def test_a_worker_that_only_sends_heartbeats_is_replaced_and_gets_work_again_when_it_asks() -> None:
    cluster = Cluster(*of_any("stuck", "b"))
    cluster.turn("b", 0.1)
    cluster.feed(ev.Tick())
    (wait,) = cluster.engine.waits(cluster.now)
    assert (wait.shard, wait.worker, wait.then) == (
        0,
        "stuck",
        "another worker takes the shard over if it pushes nothing",
    )
    assert wait.due_s == pytest.approx(STUCK_S - 0.1)
    since = cluster.now - 0.1
    revoked = cluster.wait_for("stuck", "stuck", "b", limit_s=3 * STUCK_S)
    assert STUCK_S <= cluster.now - since <= STUCK_S + 1.0
    assert "worker stuck computes for" in revoked.reason
    assert cluster.holders() == ["b", "b"]
    # A sign of life is no sign of work.
    cluster.feed(ev.Heard("stuck"))
    for _ in range(3):
        cluster.turn("b", 0.1)
    assert cluster.holders() == ["b", "b"]
    cluster.turn("stuck")
    cluster.turn("b", 0.1)
    assert sorted(filter(None, cluster.holders())) == ["b", "stuck"]


def test_a_worker_that_never_asks_for_work_is_replaced_too() -> None:
    cluster = Cluster(*of_any("b"))
    cluster.turn("b", 0.1)
    cluster.feed(ev.Joined("mute"))
    cluster.turn("b", 0.1)
    cluster.turn("b", 0.1)
    assert "mute" in cluster.holders()
    cluster.wait_for("mute", "mute", "b", limit_s=3 * STUCK_S)
    assert cluster.holders() == ["b", "b"]


def test_nobody_is_called_stuck_whom_nobody_could_replace() -> None:
    cluster = Cluster(*of_any("alone"))
    cluster.turn("alone", 0.1)
    for _ in range(int(10 * STUCK_S)):
        cluster.wait_until_deadline("alone")
    assert cluster.holders() == ["alone", "alone"]
    assert {wait.then for wait in cluster.engine.waits(cluster.now)} == {"no other worker can take it over"}
    cluster = Cluster(*of_any("a", "b"))
    cluster.turn("a", 0.1)
    cluster.turn("b", 0.1)
    for _ in range(int(10 * STUCK_S)):
        cluster.wait_until_deadline("a", "b")
    assert cluster.holders() == ["a", "b"], "both are late, and neither is better than the other"


def test_a_long_step_is_not_stuck_where_steps_are_long() -> None:
    cluster = Cluster(*of_any("slow", "fast"))
    cluster.turn("fast", 0.1)
    cluster.turn("slow", 4 * STUCK_S)
    cluster.turn("fast", 0.1)
    end = cluster.now + 10 * STUCK_S
    while cluster.now < end:
        cluster.wait_until_deadline("slow", "fast")
    assert "slow" in cluster.holders()


def test_a_late_push_of_a_stuck_worker_teaches_the_pace_so_that_it_is_not_replaced_for_ever() -> None:
    cluster = Cluster(*of_any("slow", "fast"))
    cluster.turn("fast", 0.1)
    since = cluster.now
    cluster.wait_for("slow", "slow", "fast", limit_s=3 * STUCK_S)
    cluster.turn("slow", since + 4 * STUCK_S - cluster.now)
    cluster.turn("fast", 0.1)
    assert "slow" in cluster.holders()
    end = cluster.now + 10 * STUCK_S
    while cluster.now < end:
        assert not any(isinstance(e, ev.Revoke) for e in cluster.wait_until_deadline("slow", "fast"))


def test_a_shard_that_only_failed_workers_may_read_ends_the_job_with_the_reason() -> None:
    cluster = Cluster(ev.Joined("a", frozenset({0})), ev.Joined("p", frozenset({1}), frozenset({1})))
    cluster.feed(ev.Failed("p", "its disk is gone"))
    end = cluster.ended()
    assert end is not None
    assert end.status == "failed"
    assert end.reason == "shard 1 can be read by no worker that has not failed; worker p: its disk is gone"


def test_a_shard_that_another_may_read_does_not_end_the_job_even_while_that_one_is_away() -> None:
    cluster = Cluster(*of_any("a", "b"), ev.Joined("c", frozenset({1})))
    cluster.feed(ev.Failed("b", "no memory"))
    assert cluster.ended() is None
    cluster = Cluster(ev.Joined("a", frozenset({0})), *of_any("b"), ev.Joined("c", frozenset({1})))
    cluster.feed(ev.Left("b", "its connection broke"))
    cluster.feed(ev.Failed("c", "no memory"))
    assert cluster.ended() is None, "b may come back"


def test_with_a_quorum_the_round_goes_on_without_what_nobody_can_read() -> None:
    cluster = Cluster(ev.Joined("a", frozenset({0})), ev.Joined("p", frozenset({1}), frozenset({1})), quorum=1)
    cluster.feed(ev.Failed("p", "its disk is gone"))
    assert cluster.ended() is None
    cluster.turn("a", 0.1)
    assert cluster.engine.version == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_finds_no_worker_fails_the_job_at_the_announced_time(workers: int) -> None:
    cluster = Cluster(*[ev.Joined("a", frozenset({0}))][:workers])
    assert cluster.engine.phase == "survey"
    wait = cluster.engine.waits(cluster.now)[-1]
    assert (wait.shard, wait.worker, wait.then) == (1, "", "the job fails if none does")
    assert wait.due_s == ABSENT_S
    while cluster.ended() is None:
        cluster.wait_until_deadline("a")
        assert cluster.now <= START + ABSENT_S + 1
    end = cluster.ended()
    assert end is not None
    assert cluster.now >= START + ABSENT_S
    assert end == ev.End("failed", f"shard {workers} waited 100.0 s for a worker to join")


def test_a_job_without_workers_that_get_there_in_time_trains_as_if_nothing_had_been() -> None:
    cluster = Cluster()
    for _ in range(3):
        cluster.now += ABSENT_S - 1
        cluster.feed(ev.Joined("a"))
        cluster.feed(ev.Pulled("a"))
        cluster.turn("a", 0.5)
        cluster.feed(ev.Left("a", "killed"))
        cluster.feed(ev.Tick())
    assert cluster.ended() is None


def test_counts_of_workers_that_left_stay_and_their_number_is_bounded() -> None:
    cluster = Cluster(*of_any("a"))
    for number in range(MAX_LEFT + 20):
        name = f"w{number}"
        cluster.feed(ev.Joined(name))
        cluster.feed(ev.Misbehaved(name, 0, 0, "a lie", "not_finite"))
        cluster.feed(ev.Left(name, "gone"))
    assert len(cluster.engine.left) == MAX_LEFT
    assert cluster.engine.rejected() == {"not_finite": MAX_LEFT + 20}
    # Who comes back goes on counting, and has every chance again.
    cluster.feed(ev.Joined("w119"))
    assert cluster.engine.workers["w119"].rejected == {"not_finite": 1}
    assert cluster.engine.workers["w119"].faults == 0
    assert "w119" not in cluster.engine.left
    assert cluster.engine.rejected() == {"not_finite": MAX_LEFT + 20}


def test_a_parked_worker_says_why_it_waits() -> None:
    cluster = Cluster(*of_any("a", "b"), mode="ssp", staleness=1)
    for _ in range(2):
        cluster.turn("b", 0.1)
    assert cluster.engine.why_it_waits("b") == "shard 1 at step 2 waits: slowest shard 0 is at 0, staleness bound 1"
    assert cluster.engine.why_it_waits("a") == ""
