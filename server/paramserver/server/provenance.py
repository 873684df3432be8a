"""Where every version of θ comes from: which contributions made it, and its hash where that is known.

Kept in an SQLite file beside the snapshots, since it is asked by version, grows with the run and is not needed to go
on: θ never depends on it. What is here goes at least as far as the newest snapshot; what was counted after that comes
with the next one, or from the log. Rows of versions that a crash took back are removed at the restart.

    job (job_id, job)                     one row
    policies (version, train)             the policy from this version on
    contributions (version, shard, number, step, worker, samples, loss, computed_at)
                                          `number` is that of the update for schedules, `computed_at` the version of θ
                                          that the gradient was computed at
    hashes (version, theta_sha256)        of snapshots, and of every `hash_every`th version
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from paramserver.server.events import Apply, Contribution
from paramserver.wire.errors import RequestError
from paramserver.wire.job import Job, TrainSection

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "provenance.db"

#: Updates that wait for the next snapshot in memory, before they are written without one.
PENDING = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (job_id TEXT NOT NULL, job TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS policies (version INTEGER PRIMARY KEY, train TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS hashes (version INTEGER PRIMARY KEY, theta_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS contributions (
    version INTEGER NOT NULL, shard INTEGER NOT NULL, number INTEGER NOT NULL, step INTEGER NOT NULL,
    worker TEXT NOT NULL, samples INTEGER NOT NULL, loss REAL NOT NULL, computed_at INTEGER NOT NULL,
    PRIMARY KEY (version, shard)) WITHOUT ROWID;
"""


class Notes(NamedTuple):
    """What is new since the last time."""

    updates: list[Apply]
    hashes: list[tuple[int, str]]
    policies: list[tuple[int, TrainSection]]


class Provenance:
    """Takes down where the versions of a run come from; `write` may be called from a thread, one call at a time.

    `version` is the one that the run goes on from, under the policy `train`.
    """

    def __init__(self, folder: Path, job_id: str, job: Job, version: int, train: TrainSection) -> None:
        self._file = folder / FILE
        self._job = job_id, job.to_json()
        self._version = version
        self._hash_every = job.server.hash_every
        self._new = Notes([], [], [(version, train)])
        self._unwritten: list[Notes] = []
        #: Called when much waits to be written.
        self.full: Callable[[], None] = lambda: None
        self._connection: sqlite3.Connection | None = None

    def applied(self, update: Apply) -> bool:
        """Take note of an update; returns whether `hashed` is to be told the hash of what came of it."""
        self._new.updates.append(update)
        if len(self._new.updates) == PENDING:
            self.full()
        return self._hash_every > 0 and update.version % self._hash_every == 0

    def hashed(self, version: int, theta_sha256: str) -> None:
        """Take note of a version's hash."""
        self._new.hashes.append((version, theta_sha256))

    def switched(self, version: int, train: TrainSection) -> None:
        """Take note of the policy from a version on."""
        self._new.policies.append((version, train))

    def take(self) -> Notes:
        """Return what is new, to be written."""
        new, self._new = self._new, Notes([], [], [])
        return new

    def write(self, notes: Notes) -> None:
        """Write notes; what cannot be written is tried again with the next ones, since no θ depends on it."""
        self._unwritten.append(notes)
        try:
            if self._connection is None:
                self._connection = self._open()
            with self._connection:
                for waiting in self._unwritten:
                    _insert(self._connection, waiting)
        except (sqlite3.Error, OSError) as error:
            log.error("%s cannot be written: %s; training goes on", self._file, error)
        else:
            self._unwritten.clear()

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        try:
            return self._begin()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = self._file.with_name(f"{FILE}.broken")
            log.error("%s is broken: %s; it is kept as %s and begun anew", self._file, error, aside.name)
            self._file.replace(aside)
            return self._begin()

    def _begin(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
            with connection:
                keep = connection.execute("SELECT job_id, job FROM job").fetchall() == [self._job]
                if not keep:
                    connection.execute("DELETE FROM job")
                    connection.execute("INSERT INTO job VALUES (?, ?)", self._job)
                # Versions that the crash took back are made again; a new job has none.
                above = self._version if keep else -1
                for table in ("policies", "hashes", "contributions"):
                    connection.execute(f"DELETE FROM {table} WHERE version > ?", (above,))
        except BaseException:
            connection.close()
            raise
        return connection


def remove(folder: Path) -> None:
    """Forget what is known of a directory's versions."""
    for file in folder.glob(f"{FILE}*"):
        with suppress(OSError):
            file.unlink()


def _insert(connection: sqlite3.Connection, notes: Notes) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO policies VALUES (?, ?)",
        ((version, train.model_dump_json()) for version, train in notes.policies),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO contributions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (update.version, c.shard, update.step, c.step, c.worker, c.samples, c.loss, c.version)
            for update in notes.updates
            for c in update.contributions
        ),
    )
    connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", notes.hashes)


class Origins:
    """What a state directory knows of where its versions come from; reads while a server writes, too.

    Raises:
        RequestError: if it knows nothing, or is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        if not self.file.exists():
            raise RequestError(f"{folder} holds no {FILE}: nothing is known of its versions")
        self._connection = self._guarded(lambda: sqlite3.connect(f"file:{self.file}?mode=rw", uri=True))
        try:
            rows = self._query("SELECT job_id, job FROM job")
            if len(rows) != 1:
                raise RequestError(f"{self.file} names no job")
        except RequestError:
            self.close()
            raise
        self.job_id: str = rows[0][0]
        self.job = Job.from_json(rows[0][1])

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @property
    def newest(self) -> int:
        """The newest version of which the contributions are known; 0 if there is none."""
        return int(self._query("SELECT COALESCE(MAX(version), 0) FROM contributions")[0][0])

    def update(self, version: int) -> Apply | None:
        """Return what made a version; None if that is not known."""
        return next(self.updates(version - 1, version), None)

    def updates(self, after: int, to: int) -> Iterator[Apply]:
        """Yield what made the versions after `after` up to `to`, in order."""
        with closing(
            self._guarded(
                lambda: self._connection.execute(
                    "SELECT version, number, worker, shard, step, computed_at, samples, loss FROM contributions"
                    " WHERE version > ? AND version <= ? ORDER BY version, shard",
                    (after, to),
                )
            )
        ) as rows:
            for (version, number), group in groupby(rows, key=lambda row: (row[0], row[1])):
                contributions = tuple(
                    Contribution(worker, shard, 0, step, computed_at, samples, loss)
                    for _, _, worker, shard, step, computed_at, samples, loss in group
                )
                yield Apply(version, number, contributions)

    def last_uses(self, after: int) -> dict[int, int]:
        """Return, for every version that gradients of updates after `after` were computed at, the last such update."""
        return dict(
            self._query(
                "SELECT computed_at, MAX(version) FROM contributions WHERE version > ? GROUP BY computed_at", (after,)
            )
        )

    def hashes(self) -> dict[int, str]:
        """Return the known hashes of θ by version."""
        return dict(self._query("SELECT version, theta_sha256 FROM hashes ORDER BY version"))

    def policies(self) -> list[tuple[int, TrainSection]]:
        """Return the policies, each with the version from which it counts."""
        rows = self._query("SELECT version, train FROM policies ORDER BY version")
        return [(version, TrainSection.model_validate_json(train)) for version, train in rows]

    def _query(self, text: str, arguments: tuple[int, ...] = ()) -> list[Any]:
        return self._guarded(lambda: self._connection.execute(text, arguments).fetchall())

    def _guarded(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.Error as error:
            raise RequestError(f"{self.file} cannot be read: {error}") from None


def origin_of(folder: Path, version: int) -> tuple[Apply, str]:
    """Return which contributions made a version, and the hash of its θ; empty if that was not written down.

    Raises:
        RequestError: if it is not known what made the version.
    """
    with closing(Origins(folder)) as origins:
        update = origins.update(version)
        if update is None:
            raise RequestError(f"it is not known what made version {version}; known are versions 1 to {origins.newest}")
        return update, origins.hashes().get(version, "")
