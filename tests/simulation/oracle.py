"""What must be true of one job, found out from θ itself and from what was said aloud; knows nothing of the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array
from simulation.ledger import Shape, contribution, reference


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Switch:
    """A change of the policy that somebody asked for."""

    train: TrainSection
    asked_at: float
    answered_at: float = math.inf


class Oracle:
    """Follows the θ of one job through every update and every restart.

    What is promised to outlive a crash is raised by whoever hears the promise: `promised_version`, `promised_end`,
    `switched`. A durability that promises more raises them more often.
    """

    def __init__(self, job: Job, found: list[str]) -> None:
        self.job = job
        self._found = found
        self.shape = Shape(job)
        first = self.shape.flat(self.shape.first())
        #: θ, velocity and clocks of every version on the way to the present one.
        self._thetas: list[Array] = [first]
        self._velocities: list[Array] = [np.zeros_like(first)]
        self._clocks: list[tuple[int, ...]] = [(0,) * self.shape.shards]
        #: Every θ that there ever was.
        self._known: dict[bytes, int] = {first.tobytes(): 0}
        #: (step, number of the worker process) of the last work on each shard that the server sent.
        self._assigned: dict[int, tuple[int, int]] = {}
        self.undisturbed = job.train.mode == "sync" and not job.train.quorum
        self._reference, self._losses = reference(self.shape) if self.undisturbed else ([], [])
        #: Has any round closed without a shard?
        self._missed = False
        self.submitted = False
        self.initialised = False
        self.promised_version = 0
        #: The last version that was not made by a round: rounds are computed again, and so are not logged.
        self.logged_version = 0
        self.promised_end: tuple[str, int] | None = None
        #: One of these was the last; one that was never answered may come through late.
        self._switches = [Switch(job.train, -math.inf, -math.inf)]
        #: An older snapshot was gone back to: the policy may be any that there was.
        self.rotted = False
        #: What is told of versions up to this one may have been said before they rotted.
        self._rotten = -1

    def version_with(self, shard: int, step: int) -> int:
        """Return the version that a contribution came in with which the server says is in θ."""
        version = next((v for v, clocks in enumerate(self._clocks) if clocks[shard] > step), 0)
        if not version:
            raise self._broken(f"step {step} of shard {shard} was acknowledged and is not in θ")
        return version

    def _broken(self, what: str) -> Violation:
        # It is noted as well as raised: the code in between may take it for an error of its own.
        self._found.append(what)
        return Violation(what)

    @property
    def version(self) -> int:
        """The version of θ."""
        return len(self._thetas) - 1

    @property
    def survives(self) -> bool:
        """Does the job outlive the server?"""
        return self.job.server.durability != "none"

    def version_of(self, theta: Array) -> int:
        """Say which version a θ is that a worker is to compute at."""
        version = self._known.get(theta.tobytes())
        if version is None:
            raise self._broken(f"a worker holds a θ that never was: {theta}")
        return version

    def switching(self, train: TrainSection, now: float) -> None:
        """Take note that somebody asks for another policy."""
        self.undisturbed = False
        self._switches.append(Switch(train, now))

    def switched(self, train: TrainSection, now: float) -> None:
        """Take note that the server says it has had that policy."""
        switch = next(s for s in self._switches if s.train == train and s.answered_at == math.inf)
        switch.answered_at = now
        # What was settled before this one was asked for is over.
        self._switches = [s for s in self._switches if s.answered_at >= switch.asked_at]

    @property
    def policies(self) -> list[TrainSection]:
        """One of these is in force."""
        return [switch.train for switch in self._switches]

    def promise_version(self, version: int) -> None:
        """Take note that this version is to outlive a crash."""
        if self.survives and version > self._rotten:
            self.promised_version = max(self.promised_version, version)

    def promise_end(self, status: str, version: int) -> None:
        """Take note that the job has ended and is to stay so."""
        if version > self._rotten:
            self.promised_end = status, version
        self.promise_version(version)

    def disk_rotted(self) -> None:
        """Nothing is promised but that no wrong θ comes back, nor one that is older than it has to be."""
        self.promised_version, self.promised_end = 0, None
        self.rotted = True
        self._rotten = self.version

    def server_died(self) -> None:
        """Forget what only the server knew."""
        self._assigned.clear()

    def assigned(self, shard: int, step: int, worker: int) -> None:
        """Take note that the server sent work."""
        self._assigned[shard] = step, worker

    def begun(self, theta: Array) -> None:
        """Check the first θ."""
        if self.survives and (self.promised_version or self.promised_end):
            raise self._broken(f"began anew, though version {self.promised_version} was promised to be kept")
        if theta.tobytes() != self._thetas[0].tobytes():
            raise self._broken("the first θ is not the one that was computed")
        self._forget_after(0)
        self.initialised = True

    def restored(self, version: int, theta: Array) -> None:
        """Check a θ that a server which starts again has read or replayed."""
        if not self.survives:
            raise self._broken("a job that was not to be kept came back")
        if version > self.version or theta.tobytes() != self._thetas[version].tobytes():
            raise self._broken(f"came back with a θ that version {version} never was")

    def started(self, version: int) -> None:
        """Go on from the version that a server has come back with."""
        if version < self.promised_version:
            raise self._broken(f"came back at version {version}, {self.promised_version} was promised to be kept")
        self._forget_after(version)
        self.logged_version = min(self.logged_version, version)
        self._assigned.clear()

    def _forget_after(self, version: int) -> None:
        del self._thetas[version + 1 :], self._velocities[version + 1 :], self._clocks[version + 1 :]

    def updated(self, version: int, named: Sequence[tuple[int, int]], after: Array, train: TrainSection) -> None:
        """Check an update of θ by the contributions (shard, step) that the server says it made it of."""
        before, clocks = self._thetas[-1], self._clocks[-1]
        if version != self.version + 1:
            raise self._broken(f"version {version} follows {self.version}")
        for shard, step in named:
            if clocks[shard] != step:
                raise self._broken(f"step {step} of shard {shard} counts, its clock is {clocks[shard]}")
        is_in_rounds = train.mode == "sync"
        if is_in_rounds:
            slowest = min(clocks)
            expected = [(s, slowest) for s, clock in enumerate(clocks) if clock == slowest]
            enough = min(train.quorum or len(expected), len(expected))
            if not set(named) <= set(expected) or len(named) != enough:
                raise self._broken(f"a round of {expected} with quorum {train.quorum} was made of {list(named)}")
            self._missed |= len(named) < len(expected)
            moved = {shard for shard, _ in expected}
        else:
            self.logged_version = version
            if len(named) != 1:
                raise self._broken(f"{len(named)} contributions were applied together")
            moved = {named[0][0]}
            ahead = named[0][1] - min(clocks)
            if train.mode == "ssp" and ahead > train.staleness:
                raise self._broken(f"shard {named[0][0]} is {ahead} steps ahead, allowed are {train.staleness}")
        self._check_sum(version, named, before, after, train)
        self._thetas.append(after.copy())
        self._known[after.tobytes()] = version
        self._clocks.append(tuple(clock + (s in moved) for s, clock in enumerate(clocks)))
        if self.undisturbed:
            self._compare(after, version)

    def _check_sum(
        self, version: int, named: Sequence[tuple[int, int]], before: Array, after: Array, train: TrainSection
    ) -> None:
        """Hold θ against the sum over its own record of where each contribution came from."""
        shape = self.shape
        told = shape.views(before - after if not shape.momentum else self._unmoved(before, after))
        gradient: Array | None = None
        for shard, step in sorted(named):
            at, by = -int(told["at"][shard, step]) - 1, -int(told["by"][shard, step])
            if not 0 <= at < version:
                raise self._broken(f"(shard {shard}, step {step}) in version {version} was computed at version {at}")
            delay = version - 1 - at
            if (train.mode == "sync" and delay) or 0 < train.max_delay < delay:
                raise self._broken(
                    f"(shard {shard}, step {step}) is {delay} versions old, allowed are {train.max_delay}"
                )
            if self._assigned.get(shard) != (step, by):
                raise self._broken(
                    f"(shard {shard}, step {step}) counts from worker {by}; the last work on the shard was "
                    f"(step, worker) {self._assigned.get(shard)}"
                )
            part = contribution(shape, self._thetas[at], at, shard, step, by)
            gradient = part if gradient is None else gradient + part
        assert gradient is not None
        velocity = self._velocities[-1] * shape.momentum + gradient if shape.momentum else gradient
        self._velocities.append(velocity)
        if (before - velocity).tobytes() != after.tobytes():
            raise self._broken(f"version {version} is not version {version - 1} and the sum of {list(named)}")

    def _unmoved(self, before: Array, after: Array) -> Array:
        # Powers of two: the whole numbers come back exactly.
        gradient: Array = np.rint((before - after) - self._velocities[-1] * self.shape.momentum)
        return gradient

    def _compare(self, theta: Array, version: int) -> None:
        mine, undisturbed = self.shape.views(theta), self.shape.views(self._reference[version])
        for name in ("at", "count", "chain"):
            if mine[name].tobytes() != undisturbed[name].tobytes():
                raise self._broken(f"{name} of version {version} differs from that of the undisturbed run")

    def ended(self, status: str, steps: Sequence[int], losses: Sequence[float]) -> None:
        """Check a job that came to its end, with its history."""
        if status != "done":
            return
        clocks, count = self._clocks[-1], self.shape.views(self._thetas[-1])["count"]
        if set(clocks) != {self.shape.steps}:
            raise self._broken(f"done at clocks {clocks}, every shard has {self.shape.steps} steps")
        if not self.shape.momentum and not self._missed and not np.all(count == 1):
            raise self._broken(f"not every contribution counts once: {count}")
        if list(steps) != list(range(1, self.shape.steps + 1)):
            raise self._broken(f"the history has the steps {list(steps)}")
        if self.undisturbed and list(losses) != self._losses:
            raise self._broken(f"losses {list(losses)}, undisturbed {self._losses}")
