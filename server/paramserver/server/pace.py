"""How long a step takes, and so how long to wait for a sign of life and for a push.

This module imports no grpc, no threading, no time and no random. Workers are measured by their turns: from the answer
to a pull until the next pull, divided by what was to be computed, so that a turn counts the parameters' way there and
the gradient's way back too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from paramserver.server.leases import WorkerState
from paramserver.wire.job import ServerSection

#: A lease outlives a lost heartbeat, and the next one's being late; it leaves time for the shards to be in other hands
#: before three are over.
HEARTBEATS_PER_LEASE = 2.75

#: However short the steps: a process may have to wait so long for a busy machine without being broken.
SHORTEST_HEARTBEAT_S = 0.5

#: Who takes so many times as long as others do, or it itself did before, is stuck.
STUCK_FACTOR = 10

#: The longest pause between two looks at the workers.
LOOK_EVERY_S = 1.0


class Pace:
    """The measured step time of one phase of a job and the deadlines that follow from it."""

    def __init__(self, server: ServerSection) -> None:
        self._lease_s = server.lease_s
        self._stuck_s = server.stuck_s
        #: What a worker is told that has yet to show how long it takes.
        self.longest_heartbeat_s = server.lease_s / HEARTBEATS_PER_LEASE
        self.heartbeat_s = self.longest_heartbeat_s
        #: Of the slowest worker; NaN before the first turn has ended, and as it was when nobody is left to measure.
        self.step_s = math.nan
        #: When the workers were last looked at.
        self.looked = -math.inf

    def look(self, workers: Iterable[WorkerState], now: float) -> None:
        """Measure anew.

        The heartbeat is as long as the slowest worker's step, so that a step which keeps its process from sending does
        not look like silence, in powers of two, so that it seldom changes, and within its bounds.
        """
        self.looked = now
        turns = [worker.turn_s for worker in workers if worker.alive and worker.turn_s]
        if turns:
            self.step_s = max(turns)
            doublings = math.ceil(math.log2(max(1.0, self.step_s / SHORTEST_HEARTBEAT_S)))
            self.heartbeat_s = min(self.longest_heartbeat_s, SHORTEST_HEARTBEAT_S * 2.0**doublings)

    def silence_s(self, worker: WorkerState) -> float:
        """Return how long a worker may say nothing."""
        return min(self._lease_s, HEARTBEATS_PER_LEASE * worker.heartbeat_s)

    def turn_s(self, worker: WorkerState) -> float:
        """Return how long a worker may compute what it was given before it counts as stuck."""
        if math.isnan(self.step_s):
            return STUCK_FACTOR * self._stuck_s
        step_s = max(self.step_s, worker.turn_s)
        return max(self._stuck_s, STUCK_FACTOR * step_s * max(1, worker.assigned))

    def is_overdue(self, worker: WorkerState, now: float) -> bool:
        """Say whether a worker has owed its next pull for too long."""
        return not worker.parked and now - worker.granted >= self.turn_s(worker)
