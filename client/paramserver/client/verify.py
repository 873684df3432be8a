"""Computes a run again from what is known of its versions, and compares: losses, and θ's hashes where they are known.

Nothing of the run's own numbers goes into it but the order of contributions, the versions that they were computed at
and their sample counts. A gradient of the second run is computed at the second run's θ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from paramserver.client.connection.client import AppliedContribution, Origin
from paramserver.server.engine import total_steps
from paramserver.server.events import Apply, Contribution
from paramserver.server.provenance import Origins, origin_of
from paramserver.server.snapshot import Snapshot, named
from paramserver.server.snapshots import read_snapshots
from paramserver.server.store import Store
from paramserver.server.tables.tablestore import TableStore
from paramserver.wire.errors import ParamserverError, RequestError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, pack
from paramserver.wire.moments import combine
from paramserver.worker.learner import Learner
from paramserver.worker.localsteps import local_steps
from paramserver.worker.rowexchange import Wanted


@dataclass(frozen=True)
class Verified:
    """What came of computing a run again."""

    #: No difference was found.
    same: bool
    #: What decided it, in one sentence.
    reason: str
    #: The version that was begun from, and the last one that was made again.
    start: int
    version: int
    #: Contributions whose loss was compared, and versions whose hash was.
    losses: int
    hashes: int
    #: The first version that differs; None if none does.
    differs: int | None
    #: Of the θ that was computed last.
    theta_sha256: str

    def summary(self) -> dict[str, Any]:
        """Return what `paramserver verify --json` prints."""
        return asdict(self)


def state_of(run: Path) -> Path:
    """Return the state directory that a run directory holds, or `run` itself if it is one.

    Raises:
        RequestError: if it is neither.
    """
    for folder in (run / "state", run):
        if (folder / "server.json").exists():
            return folder
    raise RequestError(f"{run} is neither a run directory with a state nor a state directory")


def verify(
    run: str | Path,
    base: str | Path | None = None,
    start: int = 0,
    to: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Compute a run again and compare.

    Args:
        run: a run directory, or a server's state directory.
        base: where relative paths of the job start; as in the run by default.
        start: 0, or the version of a snapshot that is still there.
        to: the last version to make; by default the newest of which the contributions are known.
        progress: called with every version.

    Raises:
        RequestError: if the run cannot be computed again.
    """
    path = Path(run)
    folder = state_of(path)
    with closing(Origins(folder)) as origins, threadpool_limits(limits=1):
        wire = origins.job.wire
        if (wire.push, wire.pull) != ("full", "full"):
            raise RequestError(
                f"a job with wire.push = {wire.push!r} and wire.pull = {wire.pull!r} cannot be computed again;"
                " only 'full' can"
            )
        again = _Again(origins, folder, _base(path, base), start)
        return again.compare(origins.newest if to is None else to, progress)


def _base(run: Path, base: str | Path | None) -> Path:
    origin = run / "origin.json"
    if base is None and origin.exists():
        return Path(json.loads(origin.read_text(encoding="utf-8"))["base"])
    return Path(base or ".").resolve()


class _Again:
    """The second run."""

    def __init__(self, origins: Origins, folder: Path, base: Path, start: int) -> None:
        self._origins = origins
        self._policies = origins.policies()
        self._job = origins.job
        self._start = start
        self._learner = Learner(origins.job, base)
        modes = {self._job.train.mode, *(train.mode for _, train in self._policies)}
        if self._learner.tables and modes != {"sync"}:
            raise RequestError(
                "a job with tables can be computed again if it was in mode 'sync' all the time, found"
                f" {', '.join(sorted(modes))}: elsewhere it is not known how old a row was when it was pulled"
            )
        shards = range(origins.job.data.shards)
        surveys = [self._learner.survey(shard) for shard in shards]
        moments = [survey.moments for survey in surveys if survey.moments is not None]
        classes = [survey.classes for survey in surveys]
        self._learner.prepare(max(classes) if all(classes) else 0, combine(moments) if moments else None)
        steps = total_steps(self._job, [survey.rows for survey in surveys])
        if start:
            snapshot = _snapshot(folder, start)
            parameters = snapshot.parameters
            assert parameters is not None
            self._store = Store(self._policy(start), parameters.layout, [parameters.theta], steps)
            self._store.restore(start, parameters.optimizer_state)
            if self._store.elastic is not None:
                own = {shard: self._store.elastic.own(shard) for shard in shards}
                self._learner.own = {s: parameters.layout.views(x) for s, x in own.items() if x is not None}
            contents = parameters.tables
        else:
            arrays = self._learner.initial(0)
            layout = Layout.of(arrays, self._job.train.dtype)
            flat = np.empty(layout.size, layout.dtype)
            pack(arrays, layout.views(flat))
            self._store = Store(self._policy(0), layout, [flat], steps)
            contents = {}
        self._tables = TableStore(self._policy(start), self._learner.tables, steps) if self._learner.tables else None
        if self._tables is not None and contents:
            self._tables.restore(contents)
        self._layout = self._store.layout
        #: θ of the versions that gradients are still to be computed at.
        self._window: dict[int, Array] = {}
        self._last_uses = origins.last_uses(start)

    def compare(self, to: int, progress: Callable[[int], None]) -> Verified:
        """Make every version up to `to` and stop at the first that differs."""
        hashes = self._origins.hashes()
        version, losses, compared = self._start, 0, 0
        self._keep(version)
        fault, differs = "", None
        if version in hashes:
            compared, fault = 1, self._hash_fault(hashes[version])
        for update in () if fault else self._updates(to):
            version = update.version
            fault = self._make(update)
            losses += len(update.contributions)
            if not fault and version in hashes:
                compared, fault = compared + 1, self._hash_fault(hashes[version])
            if fault:
                break
            self._keep(version)
            progress(version)
        if fault:
            differs = version
        reason = fault or f"versions {self._start} to {version} came out as they were"
        return Verified(not fault, reason, self._start, version, losses, compared, differs, self._hash())

    def _updates(self, to: int) -> Iterator[Apply]:
        expected = self._start + 1
        for update in self._origins.updates(self._start, to):
            if update.version != expected:
                raise RequestError(
                    f"{self._origins.file} does not tell what made version {expected}; the next it knows is "
                    f"{update.version}"
                )
            expected += 1
            policy = self._policy(update.version - 1)
            if policy.train != self._job.train:
                self._job = policy
                self._store.restage(policy)
                if self._tables is not None:
                    self._tables.restage(policy)
            yield update

    def _make(self, update: Apply) -> str:
        """Compute the contributions of an update and apply them; return what is wrong with a loss."""
        for c in update.contributions:
            loss, flat = self._compute(c)
            if loss != c.loss:
                return (
                    f"version {update.version}: the loss of shard {c.shard}, step {c.step} is {loss!r}, "
                    f"it was {c.loss!r}"
                )
            if self._store.compensates:
                flat = np.concatenate([flat, self._theta_at(c.version)])
            self._store.replay(c.shard, flat)
        rows = () if self._tables is None else self._tables.sum_up(update.contributions)
        norm = self._store.apply(update.version, update.step, update.contributions, rows=rows)
        if self._tables is not None:
            self._tables.apply(update.version, update.step, update.contributions, norm)
        return ""

    def _compute(self, c: Contribution) -> tuple[float, Array]:
        theta = self._layout.views(self._theta_at(c.version))
        flat = np.empty(self._layout.size, self._layout.dtype)
        views = self._layout.views(flat)
        if self._tables is not None:
            return self._compute_with_rows(self._tables, c, theta, flat)
        if self._job.train.goes_local:
            loss, arrays, samples = local_steps(self._learner, theta, c.shard, c.step)
        else:
            batch = self._learner.batch(c.shard, c.step)
            samples = batch.n
            loss, arrays = self._learner.gradient(theta, batch, c.shard, c.step, views)
        pack(arrays, views, scale=samples)
        return loss, flat

    def _compute_with_rows(
        self, tables: TableStore, c: Contribution, theta: dict[str, Array], flat: Array
    ) -> tuple[float, Array]:
        """Compute a contribution in the present round, and have the tables hold its rows."""
        views = self._layout.views(flat)
        wanted = [(name, Wanted.of(keys)) for name, keys in self._learner.keys(c.shard, c.step).items()]
        rows = {name: w.spread(tables.rows_of(number, w.keys)) for number, (name, w) in enumerate(wanted)}
        batch = self._learner.batch(c.shard, c.step)
        loss, arrays = self._learner.gradient(theta | rows, batch, c.shard, c.step, views)
        pack(arrays, views, scale=batch.n)
        tables.hold(c.shard, {n: (w.keys, w.gather(arrays[name], batch.n)) for n, (name, w) in enumerate(wanted)})
        return loss, flat

    def _theta_at(self, version: int) -> Array:
        if version == self._store.version:
            return self._store.theta
        try:
            return self._window[version]
        except KeyError:
            raise RequestError(
                f"a gradient was computed at version {version}, before version {self._start}: begin at an earlier one"
            ) from None

    def _keep(self, version: int) -> None:
        """Keep θ of a version for as long as gradients are to be computed at it."""
        if self._last_uses.get(version, 0) > version + 1:
            self._window[version] = self._store.theta.copy()
        for old in [v for v in self._window if self._last_uses[v] <= version]:
            del self._window[old]

    def _policy(self, version: int) -> Job:
        """Return the job with the policy under which the next version after `version` was made."""
        trains = [train for since, train in self._policies if since <= version]
        return self._origins.job.model_copy(update={"train": trains[-1]}) if trains else self._origins.job

    def _hash(self) -> str:
        contents = {} if self._tables is None else self._tables.contents()
        return theta_sha256(named(self._layout, self._store.theta, contents))

    def _hash_fault(self, expected: str) -> str:
        found = self._hash()
        return "" if found == expected else f"version {self._store.version}: θ is {found}, it was {expected}"


def _snapshot(folder: Path, version: int) -> Snapshot:
    found: dict[int, Snapshot] = {}
    for snapshot in read_snapshots(folder):
        if snapshot.parameters is not None:
            found[snapshot.version] = snapshot
    if version not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise RequestError(f"there is no snapshot of version {version} in {folder}; there are: {there}")
    return found[version]


def contributions(run: str | Path, version: int) -> Origin:
    """Return which contributions made a version, in shard order, and what is known of the hash of its θ.

    Raises:
        RequestError: if it is not known what made the version.
    """
    update, theta_hash = origin_of(state_of(Path(run)), version)
    made = [AppliedContribution(c.shard, c.step, c.worker, c.samples, c.loss, c.version) for c in update.contributions]
    return Origin(version, made, theta_hash)


def hash_of(run: str | Path, version: int, base: str | Path | None = None) -> str:
    """Compute the hash of a version's θ again.

    Raises:
        ParamserverError: if the run cannot be computed again up to there.
    """
    found = verify(run, base, to=version)
    if not found.same or found.version != version:
        raise ParamserverError(found.reason)
    return found.theta_sha256
