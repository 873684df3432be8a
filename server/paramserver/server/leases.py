"""Who holds which shard: leases with epochs, spread evenly over the workers that may take them.

This module imports no grpc, no threading, no time and no random. It knows nothing of steps and versions: those are the
engine's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from paramserver.server import events as ev
from paramserver.server.events import Effect

#: So many workers that left are remembered by name; of those before them only the sums stay.
MAX_LEFT = 100


@dataclass(slots=True)
class ShardState:
    """What the engine knows of one data shard."""

    #: Name of the worker that holds the lease, or None.
    holder: str | None = None
    #: Raised with every new lease; messages with a lower one come from a former holder.
    epoch: int = 0
    #: True while the holder has an assignment that it has neither pushed nor given up.
    busy: bool = False
    #: The step of its last assignment; only this may be pushed.
    asked: int = -1
    #: 0 until surveyed.
    rows: int = 0
    #: Set once a worker has said that nobody else can read the shard.
    pinned_to: str | None = None
    #: Of the last accepted contribution; NaN and 0 before the first and after a round that closed without the shard.
    loss: float = math.nan
    samples: int = 0
    #: Assigned under a policy that has changed since: what is computed does not count.
    recalled: bool = False
    #: So many steps right below the next to be applied were superseded: their rounds closed without the shard.
    missed: int = 0
    #: When its clock last moved or its lease last changed hands.
    since: float = 0.0


@dataclass(slots=True)
class WorkerState:
    """What the engine knows of one worker."""

    accepts: frozenset[int] | None
    #: Position in the order of joining; breaks ties.
    order: int
    last_seen: float
    #: How often it was told to give a sign of life.
    heartbeat_s: float
    #: When it was given work, or joined: what it owes since then, unless it is `parked`, is a pull.
    granted: float
    #: Connected and heard of lately.
    alive: bool = True
    #: It computed for too long and was replaced; it is given work again once it asks for some.
    stuck: bool = False
    #: Why it gets no more work for this job; empty if it does.
    failure: str = ""
    #: Asked for work and was not answered yet; a silent worker that wakes up still waits for its answer.
    parked: bool = False
    #: So many assignments came with the work at `granted`; 0 before the first.
    assigned: int = 0
    #: Seconds per assignment of its last turn, from work to the next pull; 0 before the first in a phase.
    turn_s: float = 0.0
    #: Disjoint from the shards of every other worker.
    shards: set[int] = field(default_factory=set)
    pushes: int = 0
    #: Refused messages, by reason.
    rejected: Counter[str] = field(default_factory=Counter)
    #: Messages that broke the contract since it joined.
    faults: int = 0

    @property
    def usable(self) -> bool:
        """May it be given work?"""
        return self.alive and not self.failure and not self.stuck


class Leases:
    """The shards and workers of a job; `epoch` is the last lease epoch that the server has ever given."""

    def __init__(self, shards: int, epoch: int) -> None:
        self.epoch = epoch
        self.shards = [ShardState() for _ in range(shards)]
        #: Those with a stream.
        self.workers: dict[str, WorkerState] = {}
        #: Those that left, for the status; at most `MAX_LEFT`, the longest gone first.
        self.left: dict[str, WorkerState] = {}
        #: The sums of those that left before.
        self.forgotten: Counter[str] = Counter()
        #: False only if every shard has a holder and nobody has two more than another: then pushes and pulls, which
        #: change neither, need no look at the leases.
        self.unsettled = True

    def join(self, name: str, state: WorkerState) -> None:
        """Take in a worker; what was counted under its name before counts on."""
        before = self.workers.pop(name, None) or self.left.pop(name, None)
        if before is not None:
            state.pushes, state.rejected = before.pushes, before.rejected
        self.workers[name] = state

    def leave(self, name: str) -> None:
        """Note that a worker, which has no leases any more, has left."""
        self.left[name] = self.workers.pop(name)
        while len(self.left) > MAX_LEFT:
            self.forgotten += self.left.pop(next(iter(self.left))).rejected

    def rejected(self) -> Counter[str]:
        """Return how many messages were refused, by reason, of all workers that ever were."""
        known = [*self.workers.values(), *self.left.values()]
        return sum((worker.rejected for worker in known), Counter(self.forgotten))

    def hopeless(self) -> list[int]:
        """Return the shards of which every worker that may read them, here or gone, has failed."""
        known = {**self.left, **self.workers}
        found = []
        for shard, state in enumerate(self.shards):
            readers = [worker for name, worker in known.items() if self.may_read(name, shard)]
            if readers and state.pinned_to in (None, *known) and all(worker.failure for worker in readers):
                found.append(shard)
        return found

    def lease_out(self, effects: list[Effect], now: float) -> None:
        """Give free shards to the workers with the fewest, then even out; a busy shard moves when it is pushed."""
        if not any(w.usable for w in self.workers.values()):
            return
        for shard, state in enumerate(self.shards):
            if state.holder is None:
                taker = min(self.takers(shard), key=self._load, default=None)
                if taker is not None:
                    self._lease(shard, taker, now)
        while (move := self._uneven()) is not None:
            shard, taker = move
            self.revoke(shard, f"shard {shard} moves to worker {taker}, which has fewer", effects, now)
            self._lease(shard, taker, now)
        loads = [len(w.shards) for w in self.workers.values() if w.usable]
        self.unsettled = max(loads) - min(loads) >= 2 or any(shard.holder is None for shard in self.shards)

    def revoke(self, shard: int, reason: str, effects: list[Effect], now: float) -> None:
        """Take a shard back from its holder, if it has one."""
        state = self.shards[shard]
        if state.holder is not None:
            self.workers[state.holder].shards.discard(shard)
            effects.append(ev.Revoke(state.holder, shard, state.epoch, reason))
        state.holder, state.busy, state.since = None, False, now
        self.unsettled = True

    def takers(self, shard: int) -> Iterable[str]:
        """Yield the workers that may be given a shard now."""
        for name, worker in self.workers.items():
            if worker.usable and self.may_read(name, shard):
                yield name

    def may_read(self, name: str, shard: int) -> bool:
        """Say whether a worker that is or was here can read a shard."""
        worker = self.workers.get(name) or self.left[name]
        return self.shards[shard].pinned_to in (None, name) and (worker.accepts is None or shard in worker.accepts)

    def _uneven(self) -> tuple[int, str] | None:
        """Find a shard between two steps whose holder has at least two more than another worker that may take it."""
        loads = [len(w.shards) for w in self.workers.values() if w.usable]
        if max(loads) - min(loads) < 2:
            return None
        for shard in reversed(range(len(self.shards))):
            state = self.shards[shard]
            if state.holder is None or state.busy:
                continue
            taker = min(self.takers(shard), key=self._load, default=None)
            if taker and len(self.workers[state.holder].shards) - len(self.workers[taker].shards) >= 2:
                return shard, taker
        return None

    def _load(self, worker: str) -> tuple[int, int]:
        state = self.workers[worker]
        return len(state.shards), state.order

    def _lease(self, shard: int, worker: str, now: float) -> None:
        self.epoch += 1
        state = self.shards[shard]
        state.holder, state.epoch, state.busy, state.since = worker, self.epoch, False, now
        self.workers[worker].shards.add(shard)
