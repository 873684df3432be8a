"""The consistency engine of a partition that is not the coordinator: holds contributions, applies what it is told.

This module imports no grpc, no threading, no time and no random. The coordinator's engine alone gives leases, counts
and decides; here a lease is known by the epoch that a worker shows, and a higher one fences a lower one off. What the
coordinator orders is done in its order, so that every partition goes through the same versions.
"""

from __future__ import annotations

from collections import deque

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.events import Code, Contribution, Effect
from paramserver.server.policies import make_policy
from paramserver.wire.job import Job

Order = ev.See | ev.Apply | ev.SumUp | ev.Restage | ev.End | ev.Save | ev.Capture | ev.Mark | ev.GoBack


class FollowingEngine(Engine):
    """The state machine of one job on a partition that is led; its leases have epochs above `epoch`."""

    def __init__(self, job: Job, epoch: int = 0) -> None:
        super().__init__(job, epoch)
        #: The highest epoch that a contribution of the shard came with; those of the job before are all lower.
        self._fences = [epoch + 1] * job.data.shards
        #: What is in and not applied, by shard: the newest only, since an older one will never be asked for.
        self._held: dict[int, Contribution] = {}
        #: What is still to be done, in this order.
        self._orders: deque[Order] = deque()
        #: Who waits for a later version, by worker.
        self._fetches: dict[str, ev.Fetched] = {}
        #: How often θ has gone back: what was computed before does not count, though versions come again.
        self.era = 0
        #: Version and clocks of the state to go back to.
        self._marked = (0, list(self.clocks))

    def prepare(self, total_steps: int) -> None:
        """Take note that the surveys are in, and the initial parameters may come."""
        self.total_steps, self.phase = total_steps, "initialise"

    def handle(self, event: ev.Event, now: float) -> list[Effect]:  # noqa: ARG002 (nothing here has a deadline)
        """Take in one event and return what is to be done, in order."""
        effects: list[Effect] = []
        match event:
            case ev.Pushed(contributions):
                for contribution in contributions:
                    self._hold(contribution, effects)
            case ev.Initialised():
                self.phase = "train"
                effects.append(ev.Report(None))
            case ev.Misbehaved(worker, shard, step, reason):
                effects.append(ev.Refuse(worker, shard, step, Code.INVALID, reason))
            case ev.Failed(worker, reason):
                effects.append(ev.Refuse(worker, 0, 0, Code.INVALID, reason))
            case ev.Fetched(worker):
                waiting = self._fetches.get(worker)
                # What was asked before may come once more, behind this.
                if waiting is None or waiting.number <= event.number:
                    self._fetches[worker] = event
            case ev.Left(worker):
                self._fetches.pop(worker, None)
            case ev.Ordered(order):
                self._orders.append(order)
        self._carry_on(effects)
        return effects

    def admit(self, worker: str, shard: int, epoch: int, step: int) -> ev.Refuse | None:
        """Say whether a message about (shard, step) may be taken; changes nothing."""
        if not 0 <= shard < len(self._fences):
            reason = f"shard {shard} does not exist; the job has {len(self._fences)}"
            return ev.Refuse(worker, shard, step, Code.INVALID, reason)
        if self.ended:
            return ev.Refuse(worker, shard, step, Code.FENCED, f"the job is over: {self.reason}")
        fence, clock = self._fences[shard], self.clocks[shard]
        if epoch < fence:
            reason = f"the lease on shard {shard} with epoch {epoch} has ended; epoch {fence} was seen"
            return ev.Refuse(worker, shard, step, Code.FENCED, reason)
        if step < clock:
            reason = f"step {step} of shard {shard} is in already; step {clock} is expected"
            return ev.Refuse(worker, shard, step, Code.DUPLICATE, reason)
        return None

    def _fault(self, c: Contribution) -> str:
        if self.phase != "train":
            return f"the job is in its {self.phase} phase, not training"
        if c.version > self.version:
            return f"computed at version {c.version}, θ is at version {self.version}"
        return ""

    def review(self, c: Contribution) -> ev.Refuse | None:
        """Say whether a contribution may be held, by its name and numbers; changes nothing."""
        refusal = self.admit(c.worker, c.shard, c.epoch, c.step)
        if refusal is None and (reason := self._fault(c)):
            refusal = ev.Refuse(c.worker, c.shard, c.step, Code.INVALID, reason)
        return refusal

    def _hold(self, c: Contribution, effects: list[Effect]) -> None:
        refusal = self.review(c)
        if refusal is not None:
            effects.append(refusal)
            return
        # The same again, from whoever holds the lease now, takes its place: where steps are computed at one θ, the bits
        # are the same, and elsewhere the coordinator asks for the newer one.
        self._fences[c.shard] = c.epoch
        self._held[c.shard] = c
        effects += (ev.Keep(c.shard, c.step), ev.Report(c))

    def hold_again(self, c: Contribution) -> None:
        """Take note of a contribution that the log has, to be applied next."""
        self._held[c.shard] = c

    def _carry_on(self, effects: list[Effect]) -> None:
        """Do what is ordered up to the first update that misses a contribution, and answer who waited for it."""
        while self._orders and self._is_due(self._orders[0]):
            order = self._orders.popleft()
            effects.append(order)
            match order:
                case ev.See(contributions):
                    for c in contributions:
                        self._fences[c.shard] = max(self._fences[c.shard], c.epoch)
                        self._held[c.shard] = c
                case ev.Apply(version, _, contributions):
                    self.version = version
                    for c in contributions:
                        del self._held[c.shard]
                        self.clocks[c.shard] = c.step + 1
                case ev.Restage(train):
                    self._job = self._job.model_copy(update={"train": train})
                    self._policy = make_policy(train)
                case ev.Mark():
                    self._marked = self.version, list(self.clocks)
                case ev.GoBack():
                    self.version, self.clocks = self._marked[0], list(self._marked[1])
                    self.era += 1
                    self._held.clear()
                case ev.End(_status, reason):
                    self.phase, self.reason = "done", reason
        if self.phase in ("train", "done"):
            for worker in [name for name, fetch in self._fetches.items() if self._is_there(fetch)]:
                fetch = self._fetches.pop(worker)
                effects.append(ev.Supply(worker, fetch.shards, fetch.own))

    def _is_there(self, fetch: ev.Fetched) -> bool:
        # What is asked for from an earlier era may never come again, and will not count.
        return fetch.version <= self.version or fetch.era < self.era

    def _is_due(self, order: Order) -> bool:
        match order:
            case ev.Apply() | ev.SumUp(ev.Apply()):
                named = order if isinstance(order, ev.Apply) else order.apply
                return all(_name(c) == _name(self._held.get(c.shard)) for c in named.contributions)
        return True


def _name(c: Contribution | None) -> tuple[int, int, int, int] | None:
    """Return what two computations of one step differ in, if they can differ in their values."""
    return None if c is None else (c.shard, c.epoch, c.step, c.version)
