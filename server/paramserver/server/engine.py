"""The consistency engine: who computes what, which contributions count, when θ changes, when the job ends.

This module imports no grpc, no threading, no time and no random. `handle` is the only way in which state changes;
what should happen outside comes back as effects, to be carried out in order. Gradients and parameters are never seen
here: a contribution is its name (shard, step) and a few numbers.

The vector clock does three jobs: `clocks[s]`, the next step expected of shard s, refuses what was counted before
(deduplication), bounds how far shards drift apart (staleness) and is all that recovery needs to know.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Self

from paramserver.server import events as ev
from paramserver.server.enginestate import EngineState, ShardRecord
from paramserver.server.events import Assignment, Code, Contribution, Effect, Kind
from paramserver.server.leases import Leases, ShardState, WorkerState
from paramserver.server.pace import LOOK_EVERY_S, Pace
from paramserver.server.policies import make_policy, why_it_waits
from paramserver.server.waits import Wait, explain, whom
from paramserver.wire.job import MAX_STEPS, Job, TrainSection

#: Of `phase`; what every event asks for is looked up here, without a call.
_ENDED = frozenset({"done", "failed", "stopped"})

#: Events that by themselves give no reason to look at the leases.
_KEEP_LEASES = (ev.Pushed, ev.Pulled, ev.Heard)


class Engine:
    """The state machine of one job on one partition.

    `epoch` is the last lease epoch that the server has ever given, so that leases of earlier jobs are fenced too.
    """

    def __init__(self, job: Job, epoch: int = 0) -> None:
        self._job = job
        self._policy = make_policy(job.train)
        self._absent_s = job.server.absent_s
        #: Of the current phase.
        self._pace = Pace(job.server)
        #: survey, initialise, train, done, failed or stopped.
        self.phase = "survey"
        self.reason = ""
        self.version = 0
        self.clocks = [0] * job.data.shards
        self._leases = Leases(job.data.shards, epoch)
        #: The shards, by number; as the workers below the very ones of the leases, which change them in place alone.
        self.shards: list[ShardState] = self._leases.shards
        #: The workers, by name.
        self.workers: dict[str, WorkerState] = self._leases.workers
        self.total_steps = 0
        self.staleness: Counter[int] = Counter()
        self.samples = 0
        self.loss = math.nan
        self.train_started = math.nan
        self.ended_at = math.nan
        #: Sync only: the contributions of the open round, by shard.
        self._round: dict[int, Contribution] = {}
        self._finished_steps = 0
        self._calm_losses = 0
        self._calm_gradients = 0
        self._joined = 0

    def state(self, now: float) -> EngineState | None:
        """Return what a restart needs, as of the current version; None if it may as well begin anew.

        That is so before the parameters are initialised, and after a failure: its cause may be gone by then.
        """
        if self.phase not in ("train", "done", "stopped"):
            return None
        # Contributions of the open round are not in θ. Their shards do the step again.
        open_round = self._round
        staleness = self.staleness - Counter(self.version - c.version for c in open_round.values())
        return EngineState(
            phase=self.phase,
            reason=self.reason,
            version=self.version,
            shards=tuple(
                ShardRecord(
                    clock=self.clocks[i] - (i in open_round),
                    rows=shard.rows,
                    pinned_to=shard.pinned_to,
                    loss=shard.loss,
                    samples=shard.samples,
                    missed=shard.missed,
                )
                for i, shard in enumerate(self.shards)
            ),
            total_steps=self.total_steps,
            finished_steps=self._finished_steps,
            samples=self.samples - sum(c.samples for c in open_round.values()),
            loss=self.loss,
            elapsed_s=(self.ended_at if self.ended else now) - self.train_started,
            staleness=dict(staleness),
            calm_losses=self._calm_losses,
            calm_gradients=self._calm_gradients,
        )

    @classmethod
    def restored(cls, job: Job, state: EngineState, epoch: int, now: float) -> Self:
        """Return an engine that goes on from `state`; no worker has joined it yet.

        `epoch` must not be below any lease epoch given before.
        """
        engine = cls(job, epoch)
        engine.phase, engine.reason, engine.total_steps = state.phase, state.reason, state.total_steps
        engine.shards[:] = [ShardState(rows=s.rows, pinned_to=s.pinned_to, since=now) for s in state.shards]
        engine._adopt(state)
        engine.train_started = now - state.elapsed_s
        engine.ended_at = now if engine.ended else math.nan
        return engine

    def _adopt(self, state: EngineState) -> None:
        """Take over what changes with every step."""
        self.version, self._finished_steps = state.version, state.finished_steps
        self.clocks = [shard.clock for shard in state.shards]
        for shard, record in zip(self.shards, state.shards, strict=True):
            shard.loss, shard.samples, shard.missed = record.loss, record.samples, record.missed
        self.samples, self.loss, self.staleness = state.samples, state.loss, Counter(state.staleness)
        self._calm_losses, self._calm_gradients = state.calm_losses, state.calm_gradients

    @property
    def epoch(self) -> int:
        """The last lease epoch that was given."""
        return self._leases.epoch

    @property
    def ended(self) -> bool:
        """Is the job over?"""
        return self.phase in _ENDED

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Take in one event at time `now` (seconds, monotonic) and return what is to be done, in order."""
        effects: list[Effect] = []
        if self.phase in _ENDED:
            return self._after_the_end(event)
        match event:
            case ev.Pushed():
                worker = event.contributions[0].worker
                self._seen(worker, now)
                for contribution in event.contributions:
                    self._push(contribution, effects, now)
                if event.pull:
                    self._pull(worker, now)
            case ev.Joined():
                self._join(event, now, effects)
            case ev.Left(worker, reason):
                self._leave(worker, reason, effects, now)
            case ev.Heard(worker):
                self._seen(worker, now)
            case ev.Pulled(worker):
                self._seen(worker, now)
                self._pull(worker, now)
            case ev.Surveyed():
                self._seen(event.worker, now)
                self._survey(event, effects)
            case ev.Initialised():
                self._seen(event.worker, now)
                self._initialise(event, effects, now)
            case ev.Replayed(contribution):
                self._count(contribution, effects, now)
            case ev.Misbehaved():
                self._seen(event.worker, now)
                self._misbehave(event, effects, now)
            case ev.Failed(worker, reason):
                self._fail(worker, reason, effects, now)
            case ev.Measured(_version, norm):
                self._measure(norm, effects, now)
            case ev.PolicyChanged(train):
                self._change_policy(train, effects)
            case ev.TakenBack(state):
                self._take_back(state, effects)
            case ev.StopAsked(reason):
                self._end("stopped", reason, effects, now)
            case ev.Broken(reason):
                self._end("failed", reason, effects, now)
            case ev.Tick():
                self._tick(effects, now)
        if self.phase not in _ENDED:
            if self._leases.unsettled or not isinstance(event, _KEEP_LEASES):
                self._leases.lease_out(effects, now)
            self._answer(effects, now)
        return effects

    def admit(self, worker: str, shard: int, epoch: int, step: int) -> ev.Refuse | None:
        """Say whether a message about (shard, step) may be taken; changes nothing."""
        if not 0 <= shard < len(self.shards):
            reason = f"shard {shard} does not exist; the job has {len(self.shards)}"
            return ev.Refuse(worker, shard, step, Code.INVALID, reason, "unknown_shard")
        if self.phase in _ENDED:
            return ev.Refuse(worker, shard, step, Code.FENCED, f"the job is over: {self.reason}")
        state, clock = self.shards[shard], self.clocks[shard]
        applied = clock - (shard in self._round)
        if applied - state.missed <= step < applied:
            reason = f"the round of step {step} closed without shard {shard}; step {clock} is expected"
            return ev.Refuse(worker, shard, step, Code.SUPERSEDED, reason)
        if step < clock:
            reason = f"step {step} of shard {shard} is in already; step {clock} is expected"
            return ev.Refuse(worker, shard, step, Code.DUPLICATE, reason)
        if state.holder != worker or state.epoch != epoch:
            reason = (
                f"the lease on shard {shard} with epoch {epoch} has ended; "
                f"epoch {state.epoch} belongs to {state.holder or 'nobody'}"
            )
            return ev.Refuse(worker, shard, step, Code.FENCED, reason)
        if step > clock:
            reason = f"step {step} of shard {shard} comes too early; step {clock} is expected"
            return ev.Refuse(worker, shard, step, Code.GAP, reason)
        if state.recalled:
            reason = f"step {step} of shard {shard} was assigned before the policy became {self._policy.name}"
            return ev.Refuse(worker, shard, step, Code.STALE, f"{reason}: compute it again")
        if not state.busy or step != state.asked:
            # What nobody was asked for would run past the barrier or the staleness bound. A round that closed without
            # the shard has moved its clock on, but asked for nothing.
            reason = f"step {step} of shard {shard} was not assigned, or was given up or refused since"
            return ev.Refuse(worker, shard, step, Code.INVALID, reason, "not_assigned")
        return None

    def review(self, c: Contribution) -> ev.Refuse | None:
        """Say whether a contribution may count, by its name and numbers; changes nothing."""
        refusal = self.admit(c.worker, c.shard, c.epoch, c.step)
        if refusal is None and (reason := self._fault(c)):
            refusal = ev.Refuse(c.worker, c.shard, c.step, Code.INVALID, reason, "numbers")
        if refusal is None:
            allowed, reason = self._policy.may_count(c.shard, self.version - c.version)
            refusal = None if allowed else ev.Refuse(c.worker, c.shard, c.step, Code.STALE, reason)
        return refusal

    @property
    def longest_heartbeat_s(self) -> float:
        """How often a worker that joins is to give a sign of life."""
        return self._pace.longest_heartbeat_s

    def next_deadline(self) -> float:
        """Return when a Tick is due (infinity: never)."""
        if self.ended:
            return math.inf
        # Whatever else may be late is found with the next look.
        deadlines = [self._pace.looked + LOOK_EVERY_S]
        deadlines += [w.last_seen + self._pace.silence_s(w) for w in self.workers.values() if w.alive]
        if self.phase == "train" and self._job.stop.max_seconds:
            deadlines.append(self.train_started + self._job.stop.max_seconds)
        return min(deadlines)

    def why_it_waits(self, worker: str) -> str:
        """Say why a worker that asked for work has none; empty if it has some or the policy is not the reason."""
        state = self.workers[worker]
        if self.phase != "train" or not state.parked or not state.shards:
            return ""
        nearest = min(state.shards, key=lambda s: (self.clocks[s], s))
        return why_it_waits(self._policy, self.clocks, nearest)

    def waits(self, now: float) -> list[Wait]:
        """Say who holds the job up, since when, and what happens next."""
        if self.ended:
            return []
        if self.phase == "train":
            slowest = min(self.clocks)
            late = [s for s, clock in enumerate(self.clocks) if clock == slowest]
            what = f"step {slowest}"
            if self._policy.quorum:
                what += f" ({len(self._round)} contributions are in, {self._policy.quorum} close the round)"
        elif self.phase == "survey":
            late, what = [s for s, state in enumerate(self.shards) if not state.rows], "the survey"
        else:
            late, what = [0], "the first θ"
        return [explain(self._leases, self._pace, shard, what, self._absent_s, now) for shard in late]

    def rejected(self) -> Counter[str]:
        """Return how many messages were refused, by reason, of all workers that ever were."""
        return self._leases.rejected()

    @property
    def left(self) -> dict[str, WorkerState]:
        """The last workers that left, by name."""
        return self._leases.left

    def _after_the_end(self, event: ev.Event) -> list[Effect]:
        if isinstance(event, ev.Pushed):
            refusals = (self.admit(c.worker, c.shard, c.epoch, c.step) for c in event.contributions)
            return [refusal for refusal in refusals if refusal]
        if isinstance(event, ev.Left):
            self._leave(event.worker, event.reason, [], self.ended_at)
        return []

    def _seen(self, worker: str, now: float) -> None:
        state = self.workers.get(worker)
        if state is not None:
            state.last_seen = now
            if not state.alive:
                # A worker that was silent and speaks again is as good as new; what it held was taken over.
                state.alive = True
                self._leases.unsettled = True

    def _join(self, event: ev.Joined, now: float, effects: list[Effect]) -> None:
        if event.worker in self.workers:
            self._drop(event.worker, "joined again", effects, now)
        self._joined += 1
        state = WorkerState(event.accepts, self._joined, now, self._pace.longest_heartbeat_s, granted=now)
        self._leases.join(event.worker, state)
        for shard in sorted(event.pinned):
            if shard < len(self.shards):
                self.shards[shard].pinned_to = event.worker
                if self.shards[shard].holder is not None:
                    self._leases.revoke(shard, f"shard {shard} is pinned to worker {event.worker}", effects, now)

    def _leave(self, worker: str, reason: str, effects: list[Effect], now: float) -> None:
        self._drop(worker, reason, effects, now)
        if worker in self.workers:
            self._leases.leave(worker)

    def _drop(self, worker: str, reason: str, effects: list[Effect], now: float) -> None:
        """Take every lease of a worker back; others get the shards in `Leases.lease_out`."""
        state = self.workers.get(worker)
        if state is None:
            return
        state.alive = False
        for shard in sorted(state.shards):
            self._leases.revoke(shard, reason, effects, now)

    def _pull(self, worker: str, now: float) -> None:
        state = self.workers.get(worker)
        if state is None:
            return
        if state.assigned and not state.parked:
            state.turn_s = (now - state.granted) / state.assigned
        if state.stuck:
            state.stuck, self._leases.unsettled = False, True
        state.parked = True
        for shard in state.shards:
            self.shards[shard].busy = False

    def _survey(self, event: ev.Surveyed, effects: list[Effect]) -> None:
        refusal = self.admit(event.worker, event.shard, event.epoch, 0)
        if refusal or self.phase != "survey":
            effects.extend([refusal] if refusal else [])
            return
        state = self.shards[event.shard]
        state.busy = False
        state.rows = event.rows
        if all(shard.rows for shard in self.shards):
            self.total_steps = total_steps(self._job, [shard.rows for shard in self.shards])
            self._begin("initialise")
            effects.append(ev.CombineSurveys())

    def _initialise(self, event: ev.Initialised, effects: list[Effect], now: float) -> None:
        refusal = self.admit(event.worker, event.shard, event.epoch, 0)
        if refusal or self.phase != "initialise":
            effects.extend([refusal] if refusal else [])
            return
        self.shards[event.shard].busy = False
        self._begin("train")
        self.train_started = now
        for shard in self.shards:
            shard.since = now

    def _begin(self, phase: str) -> None:
        """Go to the next phase, whose turns have nothing to do with those of the one before."""
        self.phase = phase
        self._pace = Pace(self._job.server)
        for worker in self.workers.values():
            worker.turn_s, worker.assigned = 0.0, 0

    def _push(self, c: Contribution, effects: list[Effect], now: float) -> None:
        refusal = self.review(c)
        if refusal is not None:
            self._refuse(refusal, effects, now)
            return
        effects.append(ev.Keep(c.shard, c.step))
        self.workers[c.worker].pushes += 1
        self._count(c, effects, now)

    def _count(self, c: Contribution, effects: list[Effect], now: float) -> None:
        shard = self.shards[c.shard]
        shard.busy, shard.since, shard.loss, shard.samples = False, now, c.loss, c.samples
        self.clocks[c.shard] += 1
        self.samples += c.samples
        self.staleness[self.version - c.version] += 1
        if not self._policy.rounds:
            self._apply((c,), effects)
        else:
            self._round[c.shard] = c
            self._close_round(c.step, effects)
        if min(self.clocks) > self._finished_steps:
            self._finished_steps += 1
            self._progress(effects, now)

    def _fault(self, c: Contribution) -> str:
        if self.phase != "train":
            return f"the job is in its {self.phase} phase, not training"
        rows = self.shards[c.shard].rows * self._job.train.local_steps
        if not 1 <= c.samples <= rows or not math.isfinite(c.loss):
            return f"samples = {c.samples} and loss = {c.loss}; 1 to {rows} samples and a finite loss are needed"
        if c.version > self.version or (self._policy.rounds and c.version != self.version):
            return f"computed at version {c.version}, θ is at version {self.version}"
        return ""

    def _close_round(self, step: int, effects: list[Effect]) -> None:
        """Apply the round of `step` if nobody is missing or the quorum is reached; who is late goes on to the next."""
        if step in self.clocks:
            if not self._policy.quorum or len(self._round) < self._policy.quorum:
                return
            for s, shard in enumerate(self.shards):
                if self.clocks[s] == step:
                    self.clocks[s] += 1
                    shard.missed, shard.loss, shard.samples = shard.missed + 1, math.nan, 0
        in_shard_order = tuple(map(self._round.__getitem__, sorted(self._round)))
        self._round.clear()
        self._apply(in_shard_order, effects)

    def _change_policy(self, train: TrainSection, effects: list[Effect]) -> None:
        """Go on under another policy, from θ as it is.

        The open round is taken back and what is being computed will not count, so that a switch itself never changes
        θ and costs each shard at most one step.
        """
        self._job = self._job.model_copy(update={"train": train})
        self._policy = make_policy(train)
        self.staleness -= Counter(self.version - c.version for c in self._round.values())
        for c in self._round.values():
            self.clocks[c.shard] -= 1
            self.samples -= c.samples
            reason = f"step {c.step} of shard {c.shard} is taken back: the policy is now {self._policy.name}"
            effects.append(ev.Refuse(c.worker, c.shard, c.step, Code.STALE, reason))
        self._round.clear()
        for shard in self.shards:
            shard.recalled = shard.busy and self.phase == "train"
        effects.append(ev.Restage(train))

    def _take_back(self, state: EngineState, effects: list[Effect]) -> None:
        """Go on from an earlier state of this job; leases stay, but what is being computed will not count."""
        for number, (shard, clock) in enumerate(zip(self.shards, self.clocks, strict=True)):
            if shard.holder is not None and clock > state.shards[number].clock:
                # So that its holder computes the step once more when it is told to.
                reason = (
                    f"step {clock - 1} of shard {number} is taken back: the job goes back to version {state.version}"
                )
                effects.append(ev.Refuse(shard.holder, number, clock - 1, Code.STALE, reason))
        self._round.clear()
        self._adopt(state)
        for shard in self.shards:
            shard.recalled = shard.busy
        effects.append(ev.GoBack())

    def _apply(self, contributions: tuple[Contribution, ...], effects: list[Effect]) -> None:
        self.version += 1
        # Only now: an open round can be taken back, and then these steps were superseded as before.
        for c in contributions:
            self.shards[c.shard].missed = 0
        # In rounds this is the version; elsewhere as many updates make a step as there are shards.
        count = 1 + (sum(self.clocks) - 1) // len(self.shards)
        effects.append(ev.Apply(self.version, count, contributions))

    def _progress(self, effects: list[Effect], now: float) -> None:
        """Every shard has made one more step: record it and see whether the job is over."""
        samples, summed = 0, 0.0
        for shard in self.shards:
            if shard.samples:
                samples += shard.samples
                summed += shard.samples * shard.loss
        before, self.loss = self.loss, summed / samples
        elapsed = now - self.train_started
        effects.append(ev.Progress(self._finished_steps, self.version, self.loss, self.samples, elapsed))
        stop = self._job.stop
        if stop.target_loss is not None and self.loss <= stop.target_loss:
            self._end("done", f"loss {self.loss:.6g} reached the target {stop.target_loss:g}", effects, now)
        elif self._finished_steps >= self.total_steps:
            self._end("done", f"all {self.total_steps} steps are made", effects, now)
        elif stop.tolerance:
            change = abs(self.loss - before) / max(abs(before), abs(self.loss), math.ulp(0.0))
            self._calm_losses = self._calm_losses + 1 if change < stop.tolerance else 0
            if self._calm_losses >= stop.patience:
                reason = f"converged: loss changed by less than {stop.tolerance:g} of itself {stop.patience} times"
                self._end("done", reason, effects, now)

    def _measure(self, norm: float, effects: list[Effect], now: float) -> None:
        stop = self._job.stop
        self._calm_gradients = self._calm_gradients + 1 if norm < stop.tolerance else 0
        if stop.tolerance and self._calm_gradients >= stop.patience:
            reason = f"converged: gradient norm {norm:.3g} below {stop.tolerance:g} {stop.patience} times"
            self._end("done", reason, effects, now)

    def _misbehave(self, event: ev.Misbehaved, effects: list[Effect], now: float) -> None:
        refusal = ev.Refuse(event.worker, event.shard, event.step, Code.INVALID, event.reason, event.fault)
        self._refuse(refusal, effects, now)

    def _refuse(self, refusal: ev.Refuse, effects: list[Effect], now: float) -> None:
        effects.append(refusal)
        state = self.workers.get(refusal.worker)
        # What came before it in the same message may have been the last step of the job.
        if state is None or self.ended:
            return
        state.rejected[refusal.fault or refusal.code.value] += 1
        if refusal.code is not Code.INVALID:
            return
        if refusal.shard in state.shards:
            self.shards[refusal.shard].busy = False
        state.faults += 1
        if state.faults >= self._job.server.max_bad_pushes:
            self._fail(refusal.worker, f"{state.faults} bad pushes, the last: {refusal.reason}", effects, now)

    def _fail(self, worker: str, reason: str, effects: list[Effect], now: float) -> None:
        state = self.workers.get(worker)
        if state is None:
            return
        state.failure = reason
        self._drop(worker, f"worker {worker} failed: {reason}", effects, now)
        state.alive = True
        if not any(w.usable for w in self.workers.values()):
            self._end("failed", f"worker {worker}: {reason}", effects, now)
            return
        hopeless = self._leases.hopeless()
        if len(self.shards) - len(hopeless) < (self._policy.quorum or len(self.shards)):
            cause = f"shard {hopeless[0]} can be read by no worker that has not failed"
            self._end("failed", f"{cause}; worker {worker}: {reason}", effects, now)

    def _tick(self, effects: list[Effect], now: float) -> None:
        limit = self._job.stop.max_seconds
        # The sums of `next_deadline`: a difference could round to less, and the tick would come again at once.
        if self.phase == "train" and limit and now >= self.train_started + limit:
            self._end("done", f"the time limit of {limit:g} s is reached", effects, now)
            return
        self._pace.look(self.workers.values(), now)
        for name, worker in self.workers.items():
            silence, limit_s = now - worker.last_seen, self._pace.silence_s(worker)
            if worker.alive and now >= worker.last_seen + limit_s:
                reason = f"worker {name} was silent for {silence:.1f} s; a lease ends after {limit_s:g} s"
                self._drop(name, reason, effects, now)
            elif worker.usable and self._pace.is_overdue(worker, now) and self._can_be_replaced(name, now):
                late_s, step_s = now - worker.granted, self._pace.step_s
                reason = f"worker {name} computes for {late_s:.1f} s, a step takes {step_s:.2g} s: it is stuck"
                self._drop(name, reason, effects, now)
                worker.alive = worker.stuck = True
        for shard in self.shards:
            # Nobody said before when the job began.
            shard.since = shard.since or now
        for s in self._orphans():
            waited_s = now - self.shards[s].since
            if waited_s >= self._absent_s:
                self._end("failed", f"shard {s} waited {waited_s:.1f} s for {whom(self._leases, s)}", effects, now)
                return

    def _can_be_replaced(self, worker: str, now: float) -> bool:
        """Say whether somebody who is not late too could do what a worker is late with."""
        return any(
            not self._pace.is_overdue(self.workers[taker], now)
            for shard in self.workers[worker].shards
            for taker in self._leases.takers(shard)
        )

    def _orphans(self) -> list[int]:
        """Return the shards that nobody holds, for the lack of which the job will come to an end."""
        training = self.phase == "train"
        free = [s for s, shard in enumerate(self.shards) if shard.holder is None and shard.since]
        if training and 0 < self._policy.quorum <= len(self.shards) - len(free):
            return []
        return [s for s in free if not (training and self.clocks[s] >= self.total_steps)] if self._absent_s else []

    def _end(self, status: str, reason: str, effects: list[Effect], now: float) -> None:
        self.phase, self.reason, self.ended_at = status, reason, now
        effects.append(ev.End(status, reason))

    def _answer(self, effects: list[Effect], now: float) -> None:
        """Answer every parked pull that the phase and the policy let proceed, in order of joining."""
        last = self._last_step()
        for name, worker in self.workers.items():
            if worker.parked and worker.usable:
                assignments = self._assignments(worker, last)
                if assignments:
                    worker.parked, worker.granted, worker.assigned = False, now, len(assignments)
                    for assignment in assignments:
                        state = self.shards[assignment.shard]
                        state.busy, state.recalled, state.asked = True, False, assignment.step
                    # Who has yet to show how long it takes may be reading its data for the first time.
                    due_s = self._pace.heartbeat_s if worker.turn_s else self._pace.longest_heartbeat_s
                    told = None if due_s == worker.heartbeat_s else due_s
                    worker.heartbeat_s = due_s
                    effects.append(ev.Grant(name, self.version, tuple(assignments), told))

    def _last_step(self) -> int:
        """Return the last step that the policy lets any shard make now."""
        last, lead = self.total_steps - 1, self._policy.lead
        return last if lead is None else min(last, min(self.clocks) + lead)

    def _assignments(self, worker: WorkerState, last: int) -> list[Assignment]:
        if self.phase == "survey":
            return [self._assign(Kind.SURVEY, s) for s in sorted(worker.shards) if not self.shards[s].rows]
        if self.phase == "initialise":
            return [self._assign(Kind.INITIAL, 0)] if 0 in worker.shards else []
        clocks = self.clocks
        ready = [(clocks[s], s) for s in worker.shards if clocks[s] <= last]
        if not ready:
            return []
        ready.sort()
        # Within a round every shard computes at the same θ; otherwise each step deserves a θ as fresh as can be.
        chosen = ready if self._policy.rounds else ready[:1]
        return [Assignment(Kind.GRADIENT, s, self.shards[s].epoch, clock) for clock, s in chosen]

    def _assign(self, kind: Kind, shard: int) -> Assignment:
        return Assignment(kind, shard, self.shards[shard].epoch, self.clocks[shard])


def total_steps(job: Job, rows: list[int]) -> int:
    """Return the steps of every shard: a step is `local_steps` batches, an epoch as many as the largest shard has."""
    if job.train.steps is not None:
        return job.train.steps
    batch = job.data.batch_size
    per_epoch = max(math.ceil(n / batch) for n in rows) if batch else 1
    return min(MAX_STEPS, math.ceil(job.train.epochs_or_default * per_epoch / job.train.local_steps))
