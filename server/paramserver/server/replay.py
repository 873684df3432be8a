"""Recovery from snapshot and log: every contribution that was acknowledged, applied once more in the same order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from paramserver.server import events as ev
from paramserver.server.logformat import FORMAT, Frame, Record, SegmentName, frames, read_opening, read_record
from paramserver.server.run import Run
from paramserver.server.snapshot import Snapshot
from paramserver.wire.errors import StateError
from paramserver.wire.job import TrainSection

log = logging.getLogger(__name__)


def segments(folder: Path, job: str) -> list[tuple[SegmentName, Path]]:
    """Return a job's segments in the order in which they were begun."""
    names = ((SegmentName.parse(file.name), file) for file in folder.iterdir())
    return sorted((name, file) for name, file in names if name is not None and name.job == job)


def remove_segments(folder: Path, but_of: str = "") -> None:
    """Remove the logs of all jobs but one."""
    for file in folder.iterdir():
        name = SegmentName.parse(file.name)
        if name is not None and name.job != but_of:
            with suppress(OSError):
                file.unlink()


def records(
    version: int, files: Sequence[tuple[SegmentName, Path]], until: int | None = None, is_newest: bool = True
) -> Iterator[tuple[Record, TrainSection]]:
    """Yield what the log has of contributions after a version, in order, each with the policy that it counted under.

    What was read is on the disk by then, although the process that wrote it may have been killed before. `until` is the
    last version to be yielded; what was acknowledged beyond it is not asked for, and neither is it where a newer
    snapshot holds it: rounds in between are not logged.

    Raises:
        StateError: if something was acknowledged that can no longer be read, or a newer program wrote the log.
    """
    # A newer segment was begun by a server that had recovered, or gone back, to its base, and no further.
    bases = [name.base for name, _ in files[1:]]
    limits = [min(bases[i:]) if bases[i:] else None for i in range(len(files))]
    safe = 0
    for (name, file), limit in zip(files, limits, strict=True):
        train: TrainSection | None = None
        for frame in frames(_read(file), name.mark):
            safe = max(safe, frame.safe if limit is None else min(frame.safe, limit))
            if train is None:
                train = _opened(frame, file)
            elif frame.version == version + 1 and (limit is None or frame.version <= limit):
                for record in _record(frame, file):
                    if version == until:
                        return
                    version = record.version
                    yield record, train
    if safe > version and until is None and is_newest:
        broken = "\n  ".join(str(file) for _, file in files)
        raise StateError(
            f"contributions up to version {safe} of θ were acknowledged, but the log can be read only up to version "
            f"{version}: its files are broken or missing; to go on without the rest, move them away\n  {broken}"
        )


def reach(version: int, files: Sequence[tuple[SegmentName, Path]], is_newest: bool = True) -> int:
    """Return up to which version the log leads on from a version, see `records`."""
    return max((record.version for record, _ in records(version, files, None, is_newest)), default=version)


def replayed(
    snapshot: Snapshot, files: Sequence[tuple[SegmentName, Path]], until: int | None = None
) -> tuple[Snapshot, list[ev.Apply]]:
    """Return the snapshot with what the log knows of later contributions, and these in order, see `records`.

    The bits are those that were acknowledged.

    Raises:
        StateError: if the log cannot be read.
    """
    replay = _Replay(snapshot)
    for record, train in records(snapshot.version, files, until):
        replay.take(record, train)
    if replay.updates:
        log.info("replayed %d contributions of the log, up to version %d", len(replay.updates), replay.version)
    return replay.result(), replay.updates


class _Replay:
    """A run without workers that takes contributions from the log; it is made when there is one."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._run: Run | None = None
        self._now = 0.0
        self.version = snapshot.version
        self.updates: list[ev.Apply] = []

    def take(self, record: Record, train: TrainSection) -> None:
        """Apply the contribution that makes the next version, under the policy of its segment."""
        run = self._run
        if run is None:
            state = self._snapshot.engine
            if state is None:
                return
            # The clock of the replay is the time of training.
            self._now = state.elapsed_s
            run = self._run = Run(self._snapshot.job_id, self._snapshot.job, {}, lambda: self._now, 0)
            run.restore(self._snapshot)
        self._now = record.elapsed_s
        run.replay(record, train)
        check(run, record)
        self.version = record.version
        self.updates.append(ev.Apply(record.version, record.step, (record.contribution,)))

    def result(self) -> Snapshot:
        """Return where the replay has come to."""
        return self._snapshot if self._run is None else self._run.snapshot()


def check(run: Run, record: Record) -> None:
    """Make sure that a contribution that was replayed has made the version that it made before.

    Raises:
        StateError: if it has not.
    """
    made = None if run.store is None else run.store.version
    if made != record.version or run.engine.version != record.version or run.engine.phase == "failed":
        raise StateError(
            f"the contribution that made version {record.version} of θ made version {run.engine.version} when it "
            f"was replayed: {run.engine.reason or 'it is not one that comes next'}"
        )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            return opened.read()
    except OSError as error:
        raise StateError(f"log {file}: {error.strerror}") from None


def _opened(frame: Frame, file: Path) -> TrainSection | None:
    """Return the policy of the segment; None if this is not its first frame, or broken, so that nothing can be used."""
    if frame.body is None or not frame.body[0].startswith(b"{"):
        return None
    try:
        written, train = read_opening(frame)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"log {file}: cannot be read by this program: {error}") from None
    if written > FORMAT:
        raise StateError(f"log {file} has format {written}, this program reads up to format {FORMAT}; use a newer one")
    return train


def _record(frame: Frame, file: Path) -> Iterator[Record]:
    """Yield the record of a frame that holds one whole."""
    if frame.body is None or not frame.body[0]:
        return
    try:
        yield read_record(frame)
    except (ValueError, TypeError) as error:
        raise StateError(f"log {file}: cannot be read by this program: {error}") from None
