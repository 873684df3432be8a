"""The log of a job in async or ssp mode: what is counted is on the disk before anybody is told that it counts.

Contributions that come in while a group is being written and synced make the next group, so that the disk is asked
once for many of them. Work is handed out meanwhile, since what a worker computes at a θ that is lost is fenced; how far
training may be ahead of the disk is bounded. What is told for good is held back until the versions of θ that it speaks
of are safe: acknowledgements, the end of the job, and what clients read. `fdatasync` comes before it, so that it
survives the loss of power and not only that of the process.

The log goes back to a snapshot. Every snapshot begins a new segment; those behind the oldest snapshot that is kept are
removed. When the log cannot be written, nothing is acknowledged or handed out any more, snapshots are tried instead,
and the first that succeeds makes safe what was counted until then and begins the log anew.

Where θ is cut over several servers each logs its part of every contribution, and a version is safe when it is on all
disks: the others tell the coordinator, whose log is the one that knows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from paramserver.server.events import Apply
from paramserver.server.logformat import MARK_BYTES, Record, SegmentName, encode, opening, safe_note
from paramserver.server.replay import segments
from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.snapshots import StateDirectory
from paramserver.server.store import Store
from paramserver.wire.errors import StateError
from paramserver.wire.framing import Message
from paramserver.wire.job import TrainSection

log = logging.getLogger(__name__)

#: A segment that grows beyond this, and beyond this many times the snapshot, calls for a snapshot: it bounds the time
#: of a restart, and the disk.
SEGMENT_BYTES = 256 << 20
SEGMENT_SNAPSHOTS = 8

#: Work is handed out while no more versions than this, …
AHEAD_VERSIONS = 1024
#: … and no more bytes of contributions, are on the way to the disk; workers may still push what they have in hand.
AHEAD_BYTES = 64 << 20

#: While nobody waits for it, a group is written this long after its first contribution, or when it has so many bytes:
#: a sync takes a processor's time too, as much as writing six contributions of 40 kB does.
LINGER_S = 0.005
LINGER_BYTES = 1 << 20

#: Buffers in one call, below the limit of every system.
_BUFFERS = 512


class _Begin(NamedTuple):
    """A new segment is due."""

    base: int
    train: TrainSection
    #: The log has everything from the last safe version to `base`; otherwise a snapshot has to be safe first.
    continues: bool
    mark: bytes


@dataclass(slots=True)
class _Frames:
    """Contributions as they will lie, one behind the other, in the segment that was begun before them."""

    pieces: list[bytes | memoryview] = field(default_factory=list)
    #: What the last of them makes.
    version: int = 0
    nbytes: int = 0


class _Anchor(NamedTuple):
    """A snapshot of this version is on the disk."""

    version: int


_Entry = _Frames | _Begin | _Anchor


class _Held(NamedTuple):
    """What a session is to be told once a version is safe."""

    version: int
    session: Session
    messages: tuple[Message, ...]


class Log:
    """The log of one run; belongs to the event loop. A thread writes.

    `snapshot_wanted` is called when a snapshot should be taken as soon as possible, `moved` when more is on the disk or
    it cannot be written. `others` are as many partitions as have a log of their own for the same run.
    """

    def __init__(self, run: Run, directory: StateDirectory, others: int = 0, linger_s: float = LINGER_S) -> None:
        self._run = run
        self._directory = directory
        self._linger_s = linger_s
        self.snapshot_wanted: Callable[[], None] = lambda: None
        self.moved: Callable[[], None] = lambda: None
        self._writer = _Writer(directory, run)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self._pending: list[_Entry] = []
        #: Writes what is pending; None if nothing is, or while the group before is being written.
        self._timer: asyncio.Handle | None = None
        #: It does so in this turn of the loop.
        self._is_due = False
        self._writing = False
        #: How many wait for all to be safe that is counted by now.
        self._waiting = 0
        #: Versions up to these are on the disks of the partitions, by number; this one's is the first.
        self._on_disk = [run.engine.version] * (1 + others)
        #: Why nothing is written there at the moment; empty where all is well.
        self._errors = [""] * (1 + others)
        #: The newest version that has to be safe before it is spoken of; rounds made later need not be.
        self._promised = run.engine.version
        #: How far that may be ahead while work is handed out.
        self._ahead = AHEAD_VERSIONS
        #: Until a snapshot of this version is on the disk, nothing from it on is safe; None if there is one.
        self._anchor: int | None = None
        #: Contributions are being logged; False in sync mode, before the first θ, and after a failure.
        self._active = False
        self._closed = False
        #: Of the newest segment, and the bytes of contributions in it.
        self._mark = b""
        self._bytes = 0
        #: Work that waits, in order, until the version in front is safe, …
        self._work: deque[_Held] = deque()
        #: … and what may be told only then.
        self._told: deque[_Held] = deque()
        self._moved = asyncio.Event()
        if self._logs:
            # What was recovered is on the disk.
            self._begin(continues=True)

    @property
    def safe(self) -> int:
        """Versions up to this one survive whatever happens to processes and power."""
        return min(self._on_disk)

    @property
    def error(self) -> str:
        """Why nothing becomes safe at the moment; empty if all is well."""
        return next(filter(None, self._errors), "")

    @property
    def _in_rounds(self) -> bool:
        """Whether what is counted now need not be logged, since it is computed again instead."""
        return self._run.job.train.mode == "sync"

    @property
    def _logs(self) -> bool:
        return self._run.engine.phase == "train" and not self._in_rounds

    def append(self, applied: Apply, elapsed_s: float, store: Store) -> None:
        """Log the contribution that makes a version; its values stay as they are until they are on the disk."""
        if self._in_rounds:
            return
        self._promised = applied.version
        if not self._active:
            return
        (contribution,) = applied.contributions
        pieces = [piece.data.cast("B") for piece in store.contribution(contribution.shard) if piece.size]
        answers = store.answers(applied.answer)
        record = Record(applied.version, applied.step, elapsed_s, contribution, pieces, answers)
        size = record.nbytes
        # Not in the thread: for the little Python that this is both would wait for the interpreter again and again.
        self._add_frame(record.version, encode(self._mark, record, self._on_disk[0]), size)
        self._ahead = min(AHEAD_VERSIONS, AHEAD_BYTES // max(1, size))
        before = self._bytes
        self._bytes += size
        limit = max(SEGMENT_BYTES, SEGMENT_SNAPSHOTS * store.theta.nbytes)
        if before <= limit < self._bytes:
            self.snapshot_wanted()

    def keeps(self, session: Session, messages: tuple[Message, ...], for_good: bool) -> bool:
        """Take what a session is to be told, if it cannot be told now; it is delivered once it may be."""
        held = self._told if for_good else self._work
        version = self._promised - (0 if for_good or self.error else self._ahead)
        if not held and version <= self.safe:
            return False
        held.append(_Held(version, session, messages))
        self._see_to_it()
        return True

    async def caught_up(self) -> None:
        """Wait until everything that is counted now is safe.

        Raises:
            StateError: if it cannot be made so for the time being.
        """
        version = self._promised
        with self._urgently():
            while self.safe < version:
                if self.error:
                    raise StateError(f"version {version} of θ is not safe: {self.error}")
                await self._moved.wait()

    def reported(self, partition: int, safe: int, error: str) -> None:
        """Take note of what another partition says of its log."""
        if error and error != self._errors[partition]:
            log.error("partition %d: %s; training waits for the disk", partition, error)
        self._on_disk[partition], self._errors[partition] = safe, error
        if error:
            self.snapshot_wanted()
        self._look()

    def pause(self) -> None:
        """Log nothing more until the next snapshot begins: what comes first is safe with that."""
        self._active = False

    async def written(self) -> None:
        """Wait until what is pending is on the disk.

        Raises:
            StateError: if it cannot be written.
        """
        with self._urgently():
            while self._writing or self._pending:
                await self._moved.wait()
        if self._errors[0]:
            raise StateError(self._errors[0])

    def snapshot_begun(self) -> None:
        """Take note that a snapshot of the current version is on its way: contributions go to a new segment."""
        if self._logs:
            self._begin(continues=self._active)
        else:
            self._active, self._errors[0] = False, ""

    def snapshot_saved(self, version: int) -> None:
        """Take note that the snapshot of this version is on the disk."""
        if self._anchor is not None and version >= self._anchor:
            self._anchor = None
        self._add(_Anchor(version))

    def snapshot_failed(self, reason: str) -> None:
        """Take note that a snapshot could not be written; one that the log needs is asked for again."""
        if self._anchor is not None:
            self._active, self._errors[0] = False, reason
            self.snapshot_wanted()
            self._look()

    async def close(self) -> None:
        """Write what is left, and end; whoever waits for more is told."""
        with suppress(StateError):
            await self.written()
        self._active, self._closed, self._errors[0] = False, True, self._errors[0] or "the log was closed"
        self._wake()
        self._thread.shutdown()
        self._writer.close()

    def _begin(self, continues: bool) -> None:
        version = self._run.engine.version
        self._active, self._bytes, self._errors[0] = True, 0, ""
        self._mark = os.urandom(MARK_BYTES)
        if not continues:
            self._anchor, self._promised = version, max(self._promised, version)
        self._add(_Begin(version, self._run.job.train, continues, self._mark))

    @contextmanager
    def _urgently(self) -> Iterator[None]:
        """Have what is pending written as soon as possible for as long as somebody waits."""
        self._waiting += 1
        self._see_to_it()
        try:
            yield
        finally:
            self._waiting -= 1

    def _add_frame(self, version: int, pieces: list[bytes | memoryview], nbytes: int) -> None:
        """Put a contribution behind those that already wait for the thread, which then has little to do."""
        frames = self._pending[-1] if self._pending else None
        if not isinstance(frames, _Frames):
            frames = _Frames()
            self._pending.append(frames)
        frames.pieces += pieces
        frames.version = version
        frames.nbytes += nbytes
        self._see_to_it()

    def _add(self, entry: _Entry) -> None:
        if self._closed:
            # A snapshot that was begun before has come late.
            return
        self._pending.append(entry)
        self._see_to_it()

    def _see_to_it(self) -> None:
        """Have what is pending written in a while, or soon; what else this turn of the loop brings belongs to it."""
        if self._writing or not self._pending or self._is_due:
            return
        if self._is_urgent:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._is_due = asyncio.get_running_loop().call_soon(self._write), True
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._write)

    @property
    def _is_urgent(self) -> bool:
        """Whether somebody waits for what is pending, or it is more than contributions, or many of them."""
        if self._waiting or self._told or self._work:
            return True
        last = self._pending[-1]
        return not isinstance(last, _Frames) or last.nbytes >= LINGER_BYTES

    def _write(self) -> None:
        group, self._pending = self._pending, []
        self._timer, self._is_due, self._writing = None, False, True
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._writer.write, group)
        done.add_done_callback(self._returned)

    def _returned(self, done: asyncio.Future[int]) -> None:
        self._writing = False
        error = done.exception()
        if error is None:
            self._on_disk[0] = done.result()
        elif isinstance(error, OSError):
            self._failed(error)
        else:
            raise error
        self._see_to_it()
        self._look()

    def _look(self) -> None:
        """See what may be told by now."""
        safe = self.safe
        for held in (self._work, self._told):
            while held and held[0].version <= safe:
                _, session, messages = held.popleft()
                session.deliver(messages)
        self.moved()
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _failed(self, error: OSError) -> None:
        # What a failed sync has left on the disk nobody knows, so this segment is not written to again.
        self._active, self._errors[0] = False, f"the log cannot be written: {error.strerror}"
        self._pending = [entry for entry in self._pending if isinstance(entry, _Anchor)]
        log.error("%s; training waits for the disk", self._errors[0])
        self.snapshot_wanted()


class _Writer:
    """The thread's side: one segment at a time, synced group by group."""

    def __init__(self, directory: StateDirectory, run: Run) -> None:
        self._directory = directory
        self._job = directory.tag(run.job_id, run.submitted)
        self._name: SegmentName | None = None
        self._file = -1
        #: Up to here everything was written.
        self._written = run.engine.version
        self._safe = run.engine.version
        #: A snapshot of this version has to be on the disk before what was written is safe; None if one is.
        self._anchor: int | None = None
        self._buffers: list[bytes | memoryview] = []

    def write(self, group: list[_Entry]) -> int:
        """Write a group and return up to which version everything is safe.

        Raises:
            OSError: if it cannot be written; the segment has then ended, and records are passed over up to the next.
        """
        try:
            for entry in group:
                match entry:
                    case _Frames() if self._name is not None:
                        self._buffers += entry.pieces
                        self._written = entry.version
                    case _Begin():
                        self._sync()
                        self._open(entry)
                    case _Anchor(version):
                        if self._anchor is not None and version >= self._anchor:
                            self._anchor = None
                        self._safe = max(self._safe, version)
            self._sync()
        except OSError:
            self.close()
            raise
        if any(isinstance(entry, _Anchor) for entry in group):
            self._remove_obsolete()
        return self._safe

    def close(self) -> None:
        """End the segment."""
        self._buffers.clear()
        self._name = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _sync(self) -> None:
        """Put what was gathered on the disk, and note there that it is safe before anybody is told."""
        if self._name is None:
            return
        if self._buffers:
            _write_all(self._file, self._buffers)
            self._buffers = []
            os.fdatasync(self._file)
        if self._anchor is None:
            self._safe = max(self._safe, self._written)
        _write_all(self._file, [safe_note(self._name.mark, self._safe)])

    def _open(self, begin: _Begin) -> None:
        self.close()
        serial = max((name.serial for name, _ in segments(self._directory.path, self._job)), default=0) + 1
        name = SegmentName(serial, self._job, begin.base, begin.mark)
        self._file = os.open(
            self._directory.path / str(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666
        )
        self._name = name
        if not begin.continues:
            self._anchor = begin.base
        self._written = begin.base
        self._buffers += opening(name, begin.train, self._safe)
        self._directory.sync()

    def _remove_obsolete(self) -> None:
        """Remove the segments that no snapshot that is kept leads into."""
        oldest = self._directory.oldest_version
        files = segments(self._directory.path, self._job)
        for (_, file), (following, _) in itertools.pairwise(files):
            if oldest is not None and following.base <= oldest:
                # Left over, it does no harm.
                with suppress(OSError):
                    file.unlink()


def _write_all(file: int, buffers: list[bytes | memoryview]) -> None:
    for start in range(0, len(buffers), _BUFFERS):
        rest = buffers[start : start + _BUFFERS]
        while rest:
            count = os.writev(file, rest)
            if count == sum(map(len, rest)):
                break
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            if rest:
                rest[0] = memoryview(rest[0])[count:]
