"""What must be true of one job, found out from θ itself and from what was said aloud; knows nothing of the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from paramserver.server.events import Contribution
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


class Origin(NamedTuple):
    """Where a version was made first: the same number may be given again when all have gone back."""

    lead: bytes
    version: int


class Told(NamedTuple):
    """What a part of θ says of each contribution of an update: who computed it, and at which version of the part."""

    by: list[int]
    at: list[int]


@dataclass
class Decision:
    """What one version is made of, as the first server tells that makes it; the others are held against it."""

    contributions: Sequence[Contribution]
    before: Origin
    told: dict[int, Told] = field(default_factory=dict)


class Part:
    """One server's part of θ, and the way to the present version of it."""

    def __init__(self, first: Array, shards: int) -> None:
        self.version = 0
        #: Of every version up to this one, and of those after it that the server may come back to.
        self.thetas: list[Array] = [first]
        self.velocities: list[Array] = [np.zeros_like(first)]
        self.clocks: list[tuple[int, ...]] = [(0,) * shards]
        self.origins = [Origin(b"", 0)]
        #: Every value that it ever had: its version, and where that was made.
        self.known: dict[bytes, tuple[int, set[Origin]]] = {first.tobytes(): (0, set(self.origins))}

    def append(self, theta: Array, velocity: Array, clocks: tuple[int, ...], origin: Origin) -> None:
        """Go on to the next version."""
        self.forget_after(self.version)
        self.version += 1
        self.thetas.append(theta)
        self.velocities.append(velocity)
        self.clocks.append(clocks)
        self.origins.append(origin)
        version, origins = self.known.get(theta.tobytes(), (self.version, set()))
        self.known[theta.tobytes()] = self.version, {origin} if version != self.version else origins | {origin}

    def forget_after(self, version: int) -> None:
        """Nobody comes back to what is after this version."""
        for column in (self.thetas, self.velocities, self.clocks, self.origins):
            del column[version + 1 :]


class Oracle:
    """Follows the θ of one job through every update and every restart.

    What is promised to outlive a crash is raised by whoever hears the promise: `promised_version`, `promised_end`,
    `switched`. A durability that promises more raises them more often.
    """

    def __init__(self, job: Job, found: list[str]) -> None:
        self.job = job
        self._found = found
        self.shape = Shape(job)
        self.parts = [Part(first, self.shape.shards) for first in self.shape.first()]
        self._decisions: dict[Origin, Decision] = {}
        #: (step, number of the worker process) of the last work on each shard that the server sent.
        self._assigned: dict[int, tuple[int, int]] = {}
        self.undisturbed = job.train.mode == "sync" and not job.train.quorum
        self._reference, self._losses = reference(self.shape) if self.undisturbed else ([], [])
        #: Has any round closed without a shard?
        self._missed = False
        self.submitted = False
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
        first = self.parts[0]
        version = next((v for v, clocks in enumerate(first.clocks[: first.version + 1]) if clocks[shard] > step), 0)
        if not version:
            raise self._broken(f"step {step} of shard {shard} was acknowledged and is not in θ")
        return version

    def _broken(self, what: str) -> Violation:
        # It is noted as well as raised: the code in between may take it for an error of its own.
        self._found.append(what)
        return Violation(what)

    @property
    def survives(self) -> bool:
        """Does the job outlive the server?"""
        return self.job.server.durability != "none"

    def versions_of(self, theta: Array) -> list[int]:
        """Say which version each part of a θ is that a worker is to compute at."""
        found = []
        for part, values in zip(self.parts, self.shape.cut(theta), strict=True):
            version, _ = part.known.get(values.tobytes(), (None, set()))
            if version is None:
                raise self._broken(f"a worker holds a θ that never was: {theta}")
            found.append(version)
        return found

    def exported(self, version: int, theta: Array) -> None:
        """Check a θ that a client was given."""
        origins: list[set[Origin]] = []
        for part, values in zip(self.parts, self.shape.cut(theta), strict=True):
            found, own = part.known.get(values.tobytes(), (None, set()))
            if found != version:
                raise self._broken(f"a client was given version {found} for version {version}")
            origins.append(own)
        if not set.intersection(*origins):
            raise self._broken(f"a client was given a version {version} that was never one: {origins}")

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
        self._rotten = max(len(part.thetas) for part in self.parts) - 1

    def server_died(self) -> None:
        """Forget what only the server knew."""
        self._assigned.clear()

    def assigned(self, shard: int, step: int, worker: int) -> None:
        """Take note that the server sent work."""
        self._assigned[shard] = step, worker

    def begun(self, number: int, theta: Array) -> None:
        """Check the first θ of a part."""
        part = self.parts[number]
        if self.survives and (self.promised_version or self.promised_end):
            raise self._broken(f"began anew, though version {self.promised_version} was promised to be kept")
        if theta.tobytes() != part.thetas[0].tobytes():
            raise self._broken("the first θ is not the one that was computed")
        part.version = 0
        part.forget_after(0)

    def restored(self, number: int, version: int, theta: Array) -> None:
        """Check a part of θ that a server which starts again or goes back has read or replayed."""
        part = self.parts[number]
        if not self.survives:
            raise self._broken("a job that was not to be kept came back")
        if version >= len(part.thetas) or theta.tobytes() != part.thetas[version].tobytes():
            raise self._broken(f"part {number} came back with a θ that version {version} never was")
        part.version = version

    def started(self, version: int) -> None:
        """Go on from the version that all servers have come back with."""
        if version < self.promised_version:
            raise self._broken(f"came back at version {version}, {self.promised_version} was promised to be kept")
        found = [part.version for part in self.parts]
        if set(found) != {version}:
            raise self._broken(f"the servers go on from version {version} with parts of the versions {found}")
        if len({part.origins[version] for part in self.parts}) > 1:
            raise self._broken(f"the servers go on from parts of version {version} that were never one")
        for part in self.parts:
            part.forget_after(version)
        self.logged_version = min(self.logged_version, version)
        self._assigned.clear()

    def updated(
        self,
        number: int,
        lead: bytes,
        version: int,
        contributions: Sequence[Contribution],
        after: Array,
        train: TrainSection,
    ) -> None:
        """Check an update of a part by the contributions that its server says it made it of, for who leads it."""
        part = self.parts[number]
        before, clocks = part.thetas[part.version], part.clocks[part.version]
        named = [(c.shard, c.step) for c in contributions]
        if version != part.version + 1:
            raise self._broken(f"version {version} follows {part.version}")
        for shard, step in named:
            if clocks[shard] != step:
                raise self._broken(f"step {step} of shard {shard} counts, its clock is {clocks[shard]}")
        is_in_rounds = train.mode == "sync"
        if is_in_rounds:
            slowest = min(clocks)
            expected = [(s, slowest) for s, clock in enumerate(clocks) if clock == slowest]
            enough = min(train.quorum or len(expected), len(expected))
            if not set(named) <= set(expected) or len(named) != enough:
                raise self._broken(f"a round of {expected} with quorum {train.quorum} was made of {named}")
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
        after = after.copy()
        told, velocity = self._check_sum(number, version, named, before, after, train)
        self._check_decision(number, Origin(lead, version), contributions, told)
        moved_on = tuple(clock + (s in moved) for s, clock in enumerate(clocks))
        part.append(after, velocity, moved_on, Origin(lead, version))
        if self.undisturbed:
            self._compare(number, after, version)

    def _check_sum(
        self,
        number: int,
        version: int,
        named: Sequence[tuple[int, int]],
        before: Array,
        after: Array,
        train: TrainSection,
    ) -> tuple[Told, Array]:
        """Hold a part against the sum over its own record of where each contribution came from.

        Returns that record, and the velocity after the update.
        """
        shape, part = self.shape, self.parts[number]
        velocity_before = part.velocities[part.version]
        told = shape.views(before - after if not shape.momentum else self._unmoved(before, after, velocity_before))
        gradient: Array | None = None
        found = Told([], [])
        for shard, step in sorted(named):
            at, by = -int(told["at"][shard, step]) - 1, -int(told["by"][shard, step])
            if not 0 <= at < version:
                raise self._broken(f"(shard {shard}, step {step}) in version {version} was computed at version {at}")
            delay = version - 1 - at
            if (train.mode == "sync" and delay) or 0 < train.max_delay < delay:
                raise self._broken(
                    f"(shard {shard}, step {step}) is {delay} versions old, allowed are {train.max_delay}"
                )
            if number == 0 and self._assigned.get(shard) != (step, by):
                raise self._broken(
                    f"(shard {shard}, step {step}) counts from worker {by}; the last work on the shard was "
                    f"(step, worker) {self._assigned.get(shard)}"
                )
            found.by.append(by)
            found.at.append(at)
            own = contribution(shape, part.thetas[at], at, shard, step, by)
            gradient = own if gradient is None else gradient + own
        assert gradient is not None
        velocity = velocity_before * shape.momentum + gradient if shape.momentum else gradient
        if (before - velocity).tobytes() != after.tobytes():
            raise self._broken(f"version {version} is not version {version - 1} and the sum of {list(named)}")
        return found, velocity

    def _check_decision(self, number: int, origin: Origin, contributions: Sequence[Contribution], told: Told) -> None:
        """Hold what one server made a version of against what the others did."""
        if len(self.parts) == 1:
            return
        part = self.parts[number]
        before = part.origins[part.version]
        decision = self._decisions.setdefault(origin, Decision(contributions, before))
        if before != decision.before:
            raise self._broken(f"version {origin.version} follows {before} on server {number}, not {decision.before}")
        names, theirs = ([(c.shard, c.epoch, c.step) for c in d] for d in (contributions, decision.contributions))
        if names != theirs:
            raise self._broken(f"version {origin.version} is made of {names} on server {number}, elsewhere of {theirs}")
        decision.told[number] = told
        for other, said in decision.told.items():
            if said.by != told.by:
                raise self._broken(
                    f"version {origin.version} has contributions of workers {told.by} on server {number}, and of "
                    f"{said.by} on server {other}"
                )
        # Those of the coordinator's version, or later ones: the others go on while a worker fetches.
        first = decision.told.get(0, told)
        if any(at < least for said in decision.told.values() for at, least in zip(said.at, first.at, strict=True)):
            raise self._broken(f"version {origin.version} has contributions computed at parts {decision.told}")

    def _unmoved(self, before: Array, after: Array, velocity: Array) -> Array:
        # Powers of two: the whole numbers come back exactly.
        gradient: Array = np.rint((before - after) - velocity * self.shape.momentum)
        return gradient

    def _compare(self, number: int, theta: Array, version: int) -> None:
        mine, undisturbed = self.shape.views(theta), self.shape.views(self._reference[number][version])
        for name in ("at", "count", "chain"):
            if mine[name].tobytes() != undisturbed[name].tobytes():
                raise self._broken(f"{name} of version {version} differs from that of the undisturbed run")

    def ended(self, status: str, steps: Sequence[int], losses: Sequence[float]) -> None:
        """Check a job that came to its end, with its history."""
        if status != "done":
            return
        final = self.parts[0].version
        for part in self.parts:
            if part.version != final:
                # Where nothing is to be kept, nobody waits for the last update.
                continue
            clocks, count = part.clocks[final], self.shape.views(part.thetas[final])["count"]
            if set(clocks) != {self.shape.steps}:
                raise self._broken(f"done at clocks {clocks}, every shard has {self.shape.steps} steps")
            if not self.shape.momentum and not self._missed and not np.all(count == 1):
                raise self._broken(f"not every contribution counts once: {count}")
        if list(steps) != list(range(1, self.shape.steps + 1)):
            raise self._broken(f"the history has the steps {list(steps)}")
        if self.undisturbed and list(losses) != self._losses:
            raise self._broken(f"losses {list(losses)}, undisturbed {self._losses}")
