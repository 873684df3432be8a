"""The engine against a naive model of the promise: what was assigned counts once, and nothing else ever does.

The model does not know how the engine decides. It keeps the assignments that were sent out and not yet used up,
says which contributions must count because of them, what θ must be updated with, and who may be given work.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.events import Assignment, Code, Contribution, Kind
from paramserver.server.pace import HEARTBEATS_PER_LEASE
from paramserver.wire.job import Job

LEASE_S = 10.0
STUCK_S = 20.0
MAX_BAD_PUSHES = 3
NAMES = [f"w{i}" for i in range(6)]
ROWS = 50

#: What a connected worker does next, mostly its work.
ACTS = ["work"] * 12 + ["work and pull"] * 20 + ["pull"] * 8 + ["heartbeat", "heartbeat", "leave", "fail"]


#: In what a contribution may differ from what was asked for.
CHANGES = ["next round", "later", "earlier", "epoch", "version", "shard", "samples", "loss"]


class Ticket(NamedTuple):
    """An assignment as its worker received it."""

    worker: str
    version: int
    assignment: Assignment


class PolicyChoice(NamedTuple):
    """The keys of a job that make its policy."""

    mode: str
    quorum: int
    staleness: int
    max_delay: int


def policies() -> st.SearchStrategy[PolicyChoice]:
    return st.builds(
        PolicyChoice,
        mode=st.sampled_from(["sync", "sync", "async", "ssp"]),
        quorum=st.sampled_from([0, 0, 1, 2, 3]),
        staleness=st.integers(0, 3),
        max_delay=st.sampled_from([0, 0, 1, 2, 5]),
    )


class Naive:
    """What any engine must do, kept in plain dicts and found out from events and effects alone."""

    def __init__(self, policy: PolicyChoice, shards: int, total: int) -> None:
        self.policy, self.shards, self.total = policy, shards, total
        self.open: dict[int, Ticket] = {}
        #: Shards whose open assignment is of a policy before.
        self.recalled: set[int] = set()
        #: What rounds closed without.
        self.missed: set[tuple[int, int]] = set()
        self.switched = False
        self.counted: dict[tuple[int, int], Contribution] = {}
        self.applied: list[tuple[int, int]] = []
        self.version = 0
        self.rows: dict[int, int] = {}
        self.initialised = False
        self.over = ""
        self.connected: dict[str, tuple[frozenset[int] | None, frozenset[int]]] = {}
        self.last_heard: dict[str, float] = {}
        self.silent: set[str] = set()
        #: How often each was told to give a sign of life.
        self.heartbeat_s: dict[str, float] = {}
        #: Since when each owes a pull.
        self.owes_since: dict[str, float] = {}
        self.stuck: set[str] = set()
        #: What those could read that ever were here.
        self.readers: dict[str, frozenset[int] | None] = {}
        self.failed: set[str] = set()
        self.invalid: dict[str, int] = defaultdict(int)
        self.asked: set[str] = set()
        self.pins: dict[int, str] = {}
        self.last_lease: dict[int, tuple[int, str]] = {}
        self.revoked: set[tuple[int, int]] = set()

    @property
    def training(self) -> bool:
        return self.initialised and not self.over

    def usable(self) -> list[str]:
        return [w for w in self.connected if w not in self.silent | self.failed | self.stuck]

    def is_hopeless(self) -> bool:
        """Can too many shards be read only by workers that have failed?"""
        lost = 0
        for shard in range(self.shards):
            may = [
                w
                for w, accepts in self.readers.items()
                if (accepts is None or shard in accepts) and self.pins.get(shard, w) == w
            ]
            lost += bool(may) and all(w in self.failed for w in may)
        return self.shards - lost < ((self.policy.mode == "sync" and self.policy.quorum) or self.shards)

    def clock(self, shard: int) -> int:
        return sum(1 for settled_shard, _ in [*self.counted, *self.missed] if settled_shard == shard)

    def slowest(self) -> int:
        return min(self.clock(s) for s in range(self.shards))

    def ahead_allowed(self, shard: int) -> bool:
        lead = self.clock(shard) - self.slowest()
        mode = self.policy.mode
        return mode == "async" or lead <= (0 if mode == "sync" else self.policy.staleness)

    def may_read(self, worker: str, shard: int) -> bool:
        accepts, _ = self.connected[worker]
        return (accepts is None or shard in accepts) and self.pins.get(shard, worker) == worker

    def must_count(self, c: Contribution) -> bool:
        """A contribution counts if exactly this was assigned to exactly this worker and is still open."""
        ticket = self.open.get(c.shard)
        return (
            self.training
            and c.worker not in self.failed
            and ticket is not None
            and ticket.worker == c.worker
            and ticket.assignment == Assignment(Kind.GRADIENT, c.shard, c.epoch, c.step)
            and c.shard not in self.recalled
            and c.step == self.clock(c.shard)
            and self.is_fresh(c)
            and 1 <= c.samples <= ROWS
            and math.isfinite(c.loss)
        )

    def is_fresh(self, c: Contribution) -> bool:
        if self.policy.mode == "sync":
            return c.version == self.version
        return 0 <= self.version - c.version <= (self.policy.max_delay or math.inf)

    def switch(self, policy: PolicyChoice) -> None:
        """What is not applied does not count; what is being computed will not."""
        self.counted = {name: c for name, c in self.counted.items() if name in self.applied}
        self.recalled = set(self.open) if self.training else set()
        self.policy, self.switched = policy, True

    def count(self, c: Contribution) -> list[tuple[int, tuple[Contribution, ...]]]:
        """Count a contribution; return the updates of θ that must follow, as (version, contributions)."""
        self.counted[c.shard, c.step] = c
        del self.open[c.shard]
        if self.policy.mode == "sync":
            round_now = {(s, c.step) for s in range(self.shards)} - set(self.applied)
            together = tuple(self.counted[name] for name in sorted(round_now & set(self.counted)))
            absent = round_now - set(self.counted)
            if absent and (self.policy.quorum == 0 or len(together) < self.policy.quorum):
                return []
            self.missed |= absent
        else:
            together = (c,)
        self.version += 1
        return [(self.version, together)]


class EngineMachine(RuleBasedStateMachine):
    """Workers that come, go, sleep, lie and repeat themselves, against one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.tickets: list[Ticket] = []
        self.pushed: list[Contribution] = []
        self.in_hand: dict[str, list[Ticket]] = defaultdict(list)
        #: True while an event is checked: what fails there must not be hidden by the teardown.
        self.checking = False

    @initialize(
        policy=policies(),
        shards=st.integers(1, 5),
        total=st.integers(1, 8),
        first_epoch=st.sampled_from([0, 7]),
        workers=st.integers(0, 4),
        started=st.booleans(),
    )
    def begin(
        self, policy: PolicyChoice, shards: int, total: int, first_epoch: int, workers: int, started: bool
    ) -> None:
        policy = policy._replace(quorum=min(policy.quorum, shards))
        self.engine = Engine(make_job(policy, shards, total), first_epoch)
        self.first_epoch = first_epoch
        self.model = Naive(policy, shards, total)
        for name in NAMES[:workers]:
            self.join(name, None, frozenset())
        # Half of the runs begin where it gets interesting.
        if started and workers:
            self.bring_to_training()

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        """Let both handle an event and compare everything that has a right answer."""
        model = self.model
        over, failed = model.over, set(model.failed)
        self.checking = True
        effects = self.engine.handle(event, self.now)
        if isinstance(event, ev.Pushed):
            self.check_contributions(event, effects)
        else:
            assert not any(isinstance(e, ev.Keep | ev.Apply) for e in effects)
            for effect in effects:
                self.check(event, effect)
        if over:
            assert all(isinstance(e, ev.Refuse) for e in effects)
        elif model.failed > failed and (not model.usable() or model.is_hopeless()):
            assert model.over == "failed", "nobody is left to do the job"
        self.checking = False
        return effects

    def check_contributions(self, event: ev.Pushed, effects: list[ev.Effect]) -> None:
        """Each is kept or refused in its turn, after whatever follows from those before it in the same message."""
        model = self.model
        answers = [index for index, effect in enumerate(effects) if isinstance(effect, ev.Keep | ev.Refuse)]
        assert len(answers) == len(event.contributions)
        assert answers[:1] == [0]
        ends = [*answers[1:], len(effects)]
        for c, start, end in zip(event.contributions, answers, ends, strict=True):
            expected = []
            if model.must_count(c):
                assert effects[start] == ev.Keep(c.shard, c.step)
                expected = model.count(c)
                model.applied += [(a.shard, a.step) for _, together in expected for a in together]
            else:
                refusal = effects[start]
                assert isinstance(refusal, ev.Refuse)
                self.check_refusal(c, refusal)
            if end == len(effects) and event.pull and not model.over:
                self.give_up(c.worker)
            follows = effects[start:end]
            assert [(e.version, e.contributions) for e in follows if isinstance(e, ev.Apply)] == expected
            for effect in follows:
                self.check(event, effect)

    def check_refusal(self, c: Contribution, refusal: ev.Refuse) -> None:
        model = self.model
        assert (refusal.worker, refusal.shard, refusal.step) == (c.worker, c.shard, c.step)
        if not 0 <= c.shard < model.shards:
            assert refusal.code is Code.INVALID
        elif model.over:
            assert refusal.code is Code.FENCED
        elif (c.shard, c.step) in model.counted:
            assert refusal.code is Code.DUPLICATE
        elif (c.shard, c.step) in model.missed:
            is_last = c.step == model.clock(c.shard) - 1
            assert refusal.code in ([Code.SUPERSEDED] if is_last else [Code.SUPERSEDED, Code.DUPLICATE])
        elif c.worker in model.failed or (c.shard, c.epoch) in model.revoked:
            assert refusal.code is Code.FENCED
        else:
            assert refusal.code in (Code.FENCED, Code.GAP, Code.STALE, Code.INVALID)
        if refusal.code is Code.STALE:
            assert c.shard in model.recalled or model.version - c.version > model.policy.max_delay > 0
        # A push that breaks the contract uses up the assignment of the one who sent it, and of nobody else.
        ticket = model.open.get(c.shard)
        if refusal.code is Code.INVALID and ticket is not None and ticket.worker == c.worker:
            self.forget(ticket)

    def give_up(self, worker: str) -> None:
        """A pull gives up what the worker was assigned and did not push."""
        self.model.asked.add(worker)
        self.model.stuck.discard(worker)
        for shard in [s for s, ticket in self.model.open.items() if ticket.worker == worker]:
            del self.model.open[shard]

    def check(self, event: ev.Event, effect: ev.Effect) -> None:
        model = self.model
        match effect:
            case ev.Grant(worker, version, assignments, heartbeat_s):
                if heartbeat_s is not None:
                    assert 0.5 <= heartbeat_s <= LEASE_S / HEARTBEATS_PER_LEASE
                    model.heartbeat_s[worker] = heartbeat_s
                model.owes_since[worker] = self.now
                assert worker in model.usable()
                assert worker in model.asked, "nobody is answered who did not ask"
                assert assignments
                assert version == model.version
                model.asked.discard(worker)
                for assignment in assignments:
                    self.check_assignment(worker, version, assignment)
                if model.initialised and model.policy.mode != "sync":
                    assert len(assignments) == 1, "each step deserves a θ as fresh as can be"
            case ev.Refuse(worker, _, _, code, reason):
                assert reason
                if code is Code.INVALID and isinstance(event, ev.Pushed | ev.Misbehaved) and not model.over:
                    model.invalid[worker] += 1
                    if model.invalid[worker] >= MAX_BAD_PUSHES:
                        model.failed.add(worker)
                        model.asked.discard(worker)
            case ev.Revoke(worker, shard, epoch, reason):
                assert reason
                if reason.endswith("it is stuck"):
                    assert isinstance(event, ev.Tick)
                    assert worker not in model.asked
                    assert self.now - model.owes_since[worker] >= STUCK_S
                    model.stuck.add(worker)
                model.revoked.add((shard, epoch))
                ticket = model.open.get(shard)
                if ticket is not None and ticket.worker == worker:
                    del model.open[shard]
            case ev.CombineSurveys():
                assert len(model.rows) == model.shards
            case ev.End(status, reason):
                assert not model.over, "a job ends once"
                assert reason
                model.over = status
                if status == "done":
                    assert model.slowest() == model.total
                elif status == "failed":
                    assert model.failed
                    assert not model.usable() or model.is_hopeless()
            case _:
                pass

    def check_assignment(self, worker: str, version: int, assignment: Assignment) -> None:
        model = self.model
        kind, shard, epoch, step = assignment
        assert model.may_read(worker, shard), f"{worker} cannot read shard {shard}"
        assert shard not in model.open, f"shard {shard} is computed by {model.open[shard].worker}"
        assert (shard, epoch) not in model.revoked
        last_epoch, last_holder = model.last_lease.get(shard, (self.first_epoch, ""))
        assert epoch > last_epoch or (epoch == last_epoch and worker == last_holder)
        model.last_lease[shard] = (epoch, worker)
        assert step == model.clock(shard)
        if kind is Kind.GRADIENT:
            assert model.initialised
            assert step < model.total
            assert model.ahead_allowed(shard), f"step {step} of shard {shard}, slowest {model.slowest()}"
        else:
            assert step == 0
            assert not model.initialised
            assert kind is (Kind.INITIAL if len(model.rows) == model.shards else Kind.SURVEY)
        ticket = Ticket(worker, version, assignment)
        model.open[shard] = ticket
        model.recalled.discard(shard)
        self.tickets.append(ticket)
        self.in_hand[worker].append(ticket)

    def hear(self, worker: str) -> None:
        self.model.last_heard[worker] = self.now
        self.model.silent.discard(worker)

    @rule(
        worker=st.sampled_from(NAMES),
        accepts=st.none() | st.none() | st.frozensets(st.integers(0, 4), min_size=1),
        pinned=st.just(frozenset()) | st.just(frozenset()) | st.frozensets(st.integers(0, 5), max_size=1),
    )
    def join(self, worker: str, accepts: frozenset[int] | None, pinned: frozenset[int]) -> None:
        model = self.model
        if not model.over:
            if accepts is not None:
                accepts |= pinned
            for shard in pinned:
                model.pins[shard] = worker
            model.connected[worker] = (accepts, pinned)
            model.last_heard[worker] = self.now
            model.heartbeat_s[worker] = LEASE_S / HEARTBEATS_PER_LEASE
            model.owes_since[worker] = self.now
            model.readers[worker] = accepts
            model.silent.discard(worker)
            model.stuck.discard(worker)
            model.failed.discard(worker)
            model.asked.discard(worker)
            model.invalid[worker] = 0
        # The stream before is gone, and with it what was still to be computed for it.
        self.in_hand[worker].clear()
        self.feed(ev.Joined(worker, accepts, pinned))

    @precondition(lambda self: self.model.connected)
    @rule(acts=st.lists(st.tuples(st.integers(0, len(NAMES) - 1), st.sampled_from(ACTS)), min_size=1, max_size=6))
    def act(self, acts: list[tuple[int, str]]) -> None:
        for position, act in acts:
            connected = sorted(self.model.connected)
            if connected:
                self.act_of(connected[position % len(connected)], act)

    def act_of(self, worker: str, act: str) -> None:
        match act:
            case "work" | "work and pull":
                self.work(worker, fused=act == "work and pull")
            case "pull":
                self.pull(worker)
            case "heartbeat":
                self.heartbeat(worker)
            case "leave":
                self.leave(worker)
            case "fail":
                self.fail(worker)

    def leave(self, worker: str) -> None:
        del self.model.connected[worker]
        self.model.asked.discard(worker)
        self.model.silent.discard(worker)
        self.model.stuck.discard(worker)
        self.in_hand[worker].clear()
        self.feed(ev.Left(worker, "it left"))

    def pull(self, worker: str) -> None:
        model = self.model
        self.hear(worker)
        if not model.over:
            self.give_up(worker)
        self.feed(ev.Pulled(worker))

    def heartbeat(self, worker: str) -> None:
        self.hear(worker)
        self.feed(ev.Heard(worker))

    def work(self, worker: str, fused: bool) -> None:
        """An honest worker finishes what it was told longest ago, or all that it was told at once."""
        in_hand = self.in_hand[worker]
        if fused and in_hand and all(ticket.assignment.kind is Kind.GRADIENT for ticket in in_hand):
            contributions = tuple(map(self.contribution, in_hand))
            in_hand.clear()
            self.send(contributions, pull=True)
            return
        if self.in_hand[worker]:
            self.carry_out(self.in_hand[worker].pop(0))
        if fused and not self.in_hand[worker]:
            self.pull(worker)

    def carry_out(self, ticket: Ticket) -> None:
        worker, _, (kind, shard, epoch, _) = ticket
        model = self.model
        self.hear(worker)
        holds = model.open.get(shard) == ticket
        if kind is Kind.GRADIENT:
            self.push(self.contribution(ticket))
        elif kind is Kind.SURVEY:
            surveying = len(model.rows) < model.shards and not model.over
            if holds:
                model.rows[shard] = ROWS
                del model.open[shard]
            effects = self.feed(ev.Surveyed(worker, shard, epoch, ROWS))
            combined = any(isinstance(e, ev.CombineSurveys) for e in effects)
            assert combined == (surveying and len(model.rows) == model.shards)
        else:
            if holds and not model.over:
                model.initialised = True
                del model.open[shard]
            self.feed(ev.Initialised(worker, shard, epoch))

    def contribution(self, ticket: Ticket) -> Contribution:
        worker, version, (_, shard, epoch, step) = ticket
        return Contribution(worker, shard, epoch, step, version, 1 + shard, 1.0 / (1 + step))

    def push(self, contribution: Contribution) -> None:
        self.send((contribution,))

    def send(self, contributions: tuple[Contribution, ...], pull: bool = False) -> None:
        self.pushed += contributions
        self.hear(contributions[0].worker)
        self.feed(ev.Pushed(contributions, pull))

    @precondition(lambda self: self.pushed)
    @rule(data=st.data())
    def push_again(self, data: st.DataObject) -> None:
        contribution = data.draw(st.sampled_from(self.pushed))
        if contribution.worker in self.model.connected:
            self.push(contribution)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), change=st.sampled_from(["none", "later", "earlier", "epoch", "version", "shard"]))
    def push_what_was_once_asked_for(self, data: st.DataObject, change: str) -> None:
        c = self.changed(self.contribution(data.draw(st.sampled_from(self.tickets[-12:]))), data, change)
        if c.worker in self.model.connected:
            self.refused_or_counted(c)

    @precondition(lambda self: self.model.training and self.model.open)
    @rule(data=st.data(), change=st.sampled_from([*CHANGES, "version", "worker"]))
    def push_almost_what_is_asked_for(self, data: st.DataObject, change: str) -> None:
        """What would count, changed in one thing."""
        ticket = data.draw(st.sampled_from(list(self.model.open.values())))
        c = self.changed(self.contribution(ticket), data, change)
        if c.worker in self.model.connected:
            self.refused_or_counted(c)

    @precondition(lambda self: self.model.connected and self.tickets)
    @rule(data=st.data(), pull=st.booleans())
    def push_anything_together(self, data: st.DataObject, pull: bool) -> None:
        """Whatever the worker or another was ever asked for, as often as it likes, changed in up to two things."""
        worker = data.draw(st.sampled_from(sorted(self.model.connected)))
        known = [*self.tickets[-8:], *(t for t in self.model.open.values() if t.worker == worker)]
        change = st.sampled_from(["none", "none", *CHANGES])
        together = []
        for ticket, *changes in data.draw(st.lists(st.tuples(st.sampled_from(known), change, change), max_size=6)):
            c = self.contribution(ticket)
            for name in changes:
                c = self.changed(c, data, name)
            together.append(c._replace(worker=worker))
        if together:
            self.hear(worker)
            self.feed(ev.Pushed(tuple(together), pull))

    def changed(self, c: Contribution, data: st.DataObject, change: str) -> Contribution:
        match change:
            case "next round":
                return c._replace(step=c.step + 1, version=c.version + 1)
            case "later":
                return c._replace(step=c.step + data.draw(st.integers(1, 3)))
            case "earlier":
                return c._replace(step=max(0, c.step - 1))
            case "epoch":
                return c._replace(epoch=max(0, c.epoch + data.draw(st.sampled_from([-1, 1]))))
            case "version":
                return c._replace(version=max(0, c.version + data.draw(st.sampled_from([-1, 1, 5]))))
            case "shard":
                return c._replace(shard=data.draw(st.integers(0, self.model.shards + 1)))
            case "samples":
                return c._replace(samples=data.draw(st.sampled_from([0, ROWS + 1])))
            case "loss":
                return c._replace(loss=data.draw(st.sampled_from([math.nan, math.inf])))
            case "worker":
                return c._replace(worker=data.draw(st.sampled_from(sorted(self.model.connected))))
        return c

    def refused_or_counted(self, c: Contribution) -> None:
        self.hear(c.worker)
        self.feed(ev.Pushed((c,)))

    def forget(self, ticket: Ticket) -> None:
        if self.model.open.get(ticket.assignment.shard) == ticket:
            del self.model.open[ticket.assignment.shard]

    @precondition(lambda self: self.model.connected and not self.model.over)
    @rule(position=st.integers(0, len(NAMES) - 1), shard=st.integers(0, 5))
    def misbehave(self, position: int, shard: int) -> None:
        model = self.model
        worker = sorted(model.connected)[position % len(model.connected)]
        self.hear(worker)
        ticket = model.open.get(shard)
        if ticket is not None and ticket.worker == worker:
            self.forget(ticket)
        effects = self.feed(ev.Misbehaved(worker, shard, 0, "its bytes lie"))
        assert any(isinstance(e, ev.Refuse) and e.code is Code.INVALID for e in effects)

    def fail(self, worker: str) -> None:
        model = self.model
        if model.over:
            return
        model.failed.add(worker)
        model.asked.discard(worker)
        effects = self.feed(ev.Failed(worker, "no such file"))
        ends = [e for e in effects if isinstance(e, ev.End)]
        assert bool(ends) == (not model.usable() or model.is_hopeless())
        assert all(e.status == "failed" and "no such file" in e.reason and worker in e.reason for e in ends)

    @rule(dt=st.sampled_from([0.5, 4.0, 9.9, 10.0, 25.0]))
    def time_passes(self, dt: float) -> None:
        """The shell's timer wakes the engine at its deadline, however late."""
        self.now += dt
        if self.engine.next_deadline() <= self.now:
            self.tick()

    @rule()
    def tick(self) -> None:
        for worker, heard in self.model.last_heard.items():
            # As many heartbeats as it was told, and never longer than a lease.
            limit_s = min(LEASE_S, HEARTBEATS_PER_LEASE * self.model.heartbeat_s.get(worker, math.inf))
            # The sum, as the engine has it: a difference could round to less.
            if worker in self.model.connected and not self.model.over and self.now >= heard + limit_s:
                self.model.silent.add(worker)
        self.feed(ev.Tick())

    @precondition(lambda self: len(self.pushed) > 8)
    @rule(really=st.integers(0, 9))
    def stop(self, really: int) -> None:
        if really == 9 and not self.model.over:
            effects = self.feed(ev.StopAsked("enough"))
            assert effects == [ev.End("stopped", "enough")]

    @rule(policy=policies(), really=st.integers(0, 3))
    def switch_policy(self, policy: PolicyChoice, really: int) -> None:
        if really == 3 and not self.model.over:
            policy = policy._replace(quorum=min(policy.quorum, self.model.shards))
            self.model.switch(policy)
            train = make_job(policy, self.model.shards, self.model.total).train
            effects = self.feed(ev.PolicyChanged(train))
            assert ev.Restage(train) in effects

    @invariant()
    def what_is_counted_is_told(self) -> None:
        if hasattr(self, "model"):
            assert self.engine.samples == sum(c.samples for c in self.model.counted.values())
            assert self.engine.staleness.total() == len(self.model.counted)

    @invariant()
    def nothing_is_applied_twice(self) -> None:
        applied = self.model.applied
        assert len(applied) == len(set(applied))
        assert set(applied) <= set(self.model.counted)

    @invariant()
    def clocks_count_contributions(self) -> None:
        model = self.model
        assert list(self.engine.clocks) == [model.clock(s) for s in range(model.shards)]
        assert self.engine.version == model.version
        for shard in range(model.shards):
            settled = model.counted.keys() | model.missed
            assert all((shard, step) in settled for step in range(model.clock(shard))), "no step is left out"
            assert not model.counted.keys() & model.missed

    @invariant()
    def clocks_stay_within_the_bound(self) -> None:
        model = self.model
        clocks = [model.clock(s) for s in range(model.shards)]
        bound = {"sync": 1, "ssp": model.policy.staleness + 1, "async": model.total}[model.policy.mode]
        # After a switch the shards that are ahead wait until the others have caught up.
        assert max(clocks) - min(clocks) <= (model.total if model.switched else bound)
        assert max(clocks) <= model.total

    @invariant()
    def leases_are_consistent(self) -> None:
        held = {w: state.shards for w, state in self.engine.workers.items() if state.shards}
        assert sum(map(len, held.values())) == len(set().union(*held.values())), "one holder per shard"
        assert {s: w for w, shards in held.items() for s in shards} == {
            s: state.holder for s, state in enumerate(self.engine.shards) if state.holder is not None
        }
        if not self.model.over:
            assert set(held) <= set(self.model.usable())
            epochs = [state.epoch for state in self.engine.shards if state.holder is not None]
            assert len(epochs) == len(set(epochs))

    @invariant()
    def work_is_spread_evenly(self) -> None:
        model = self.model
        usable = model.usable()
        free_choice = not model.pins and all(model.connected[w][0] is None for w in usable)
        if usable and free_choice and not model.open and not model.over:
            loads = [len(self.engine.workers[w].shards) for w in usable]
            assert sum(loads) == model.shards
            assert max(loads) - min(loads) <= 1

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """Whoever asked has no shard that could proceed; whatever shard is free has nobody to take it."""
        model = self.model
        if model.over:
            return
        for shard, state in enumerate(self.engine.shards):
            if state.holder is None:
                assert not any(model.may_read(w, shard) for w in model.usable())
        for worker in model.asked & set(model.usable()):
            for shard in self.engine.workers[worker].shards:
                if shard in model.open:
                    continue
                if model.initialised:
                    assert model.clock(shard) >= model.total or not model.ahead_allowed(shard)
                elif len(model.rows) < model.shards:
                    assert shard in model.rows
                else:
                    assert shard != 0

    @invariant()
    def waiting_is_explained_and_ends(self) -> None:
        waits = self.engine.waits(self.now)
        if self.model.over:
            assert waits == []
            assert self.engine.next_deadline() == math.inf
            return
        assert waits
        for wait in waits:
            assert str(wait.shard) in wait.reason or "θ" in wait.reason
            assert wait.since_s >= 0
            assert wait.worker in ("", *self.model.usable())
        if any(self.engine.workers[w].shards for w in self.model.usable()):
            assert self.engine.next_deadline() < math.inf

    def bring_to_training(self) -> None:
        for _ in range(200):
            if self.model.initialised or self.model.over:
                return
            self.one_honest_round()
        raise AssertionError(f"never began to train: {self.engine.waits(self.now)}")

    def one_honest_round(self) -> None:
        for worker in self.model.usable():
            if worker not in self.model.asked:
                self.in_hand[worker].clear()
                self.pull(worker)
            while self.in_hand[worker]:
                self.carry_out(self.in_hand[worker].pop(0))

    def teardown(self) -> None:
        """Once faults stop, one healthy worker is enough to finish the job, in a bounded number of events."""
        if not hasattr(self, "engine") or self.checking or self.model.over:
            return
        for worker in list(self.model.connected):
            self.leave(worker)
        for worker in sorted({self.model.pins[s] for s in self.model.pins if s < self.model.shards}) or ["w0"]:
            self.join(worker, None, frozenset())
        if not all(self.model.may_read(self.model.usable()[0], s) for s in range(self.model.shards)):
            assert len(self.model.usable()) > 0
        for _ in range(2 * self.model.shards * self.model.total + 2 * self.model.shards + 20):
            if self.model.over:
                break
            self.one_honest_round()
        assert self.model.over == "done", self.engine.waits(self.now)
        assert len(self.model.applied) + len(self.model.missed) == self.model.shards * self.model.total


def make_job(policy: PolicyChoice, shards: int = 2, steps: int = 5, **stop: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "anything"},
            "data": {"source": "anywhere", "shards": shards},
            "train": {"steps": steps, **policy._asdict()},
            "stop": stop,
            "server": {"lease_s": LEASE_S, "stuck_s": STUCK_S},
        }
    )


EngineMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestEngine = EngineMachine.TestCase
