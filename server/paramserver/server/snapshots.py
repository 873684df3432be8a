"""The state directory of a server: its last two snapshots, each a file that is there whole or not at all.

    server.json                          how often a server has started here
    <serial>-<job>-<sha256>.safetensors  a snapshot; its name holds the hash of its bytes, so that one rename puts
                                         content and checksum in place together
    snapshot.partial                     a snapshot that was being written; means nothing
    *.log                                contributions behind the snapshots, see `server.logformat`
    provenance.db                        which contributions made which version, see `server.provenance`

What is written is on the disk before it takes its name (fsync of the file, rename, fsync of the directory): a process
that is killed loses nothing that was announced as saved, nor does a machine that loses power. One server at a time
holds a directory, by a lock that the kernel drops with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from paramserver.server.events import Apply
from paramserver.server.replay import reach, remove_segments, replayed, segments
from paramserver.server.snapshot import FORMAT, Snapshot, parse
from paramserver.wire.errors import StateError
from paramserver.wire.job import Job

log = logging.getLogger(__name__)

#: How many snapshots of a job are kept.
KEPT = 2

#: A server that starts takes its lease epochs from a range of this size of its own, above those of all before it.
EPOCHS_PER_START = 1 << 32

_MARK = "server.json"
_PARTIAL = "snapshot.partial"
_NAME = re.compile(r"(?P<serial>\d{10})-(?P<job>[0-9a-f]{8})-(?P<sha256>[0-9a-f]{64})\.safetensors")


class Saved(NamedTuple):
    """A snapshot on the disk."""

    file: Path
    version: int
    #: Of θ; empty if there was none yet.
    theta_sha256: str


class StateDirectory:
    """A state directory that this process holds until it ends or calls `close`.

    Only a directory that is new, empty or a state directory already is taken. Whatever is wrong with one, opening it
    changes nothing in it.

    Raises:
        StateError: if the directory is in use, not a state directory, broken, of a newer format, or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _make(path)
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StateError(f"state directory {path}: {error.strerror}") from None
        # Snapshots come from a thread, the submission of a job from the event loop. Held while a file is written.
        self._writing = threading.Lock()
        #: Files known to be good, oldest first.
        self._good: list[Path] = []
        #: Of the files that were read or written by this process.
        self._versions: dict[Path, int] = {}
        self._serial = 0
        #: What the log had to add to the newest snapshot.
        self.replayed: list[Apply] = []
        self._newest: Snapshot | None = None
        try:
            self._starts = self._open()
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"state directory {path}: {error.strerror}") from None
        except StateError:
            os.close(self._lock)
            raise

    @property
    def first_epoch(self) -> int:
        """The lease epochs of this process lie above this number, and those of all before it do not."""
        return (self._starts - 1) * EPOCHS_PER_START

    def close(self) -> None:
        """Let another server have the directory."""
        os.close(self._lock)

    def save(self, snapshot: Snapshot, common: int | None = None) -> Saved:
        """Write a snapshot; once this returns, it outlives the process and the machine's power.

        Older ones of the job are removed but for the newest, or the newest up to version `common`, to which all
        partitions can go back, by their logs if need be; and so are all those of other jobs.

        Raises:
            StateError: if it cannot be written; those written before are still there.
        """
        partial = self.path / _PARTIAL
        theta = snapshot.theta_sha256
        with self._writing:
            try:
                sha256 = self._write(partial, snapshot.pieces(theta))
                # Never given twice: where the sync fails after the rename, a file with this number is left over.
                self._serial += 1
                file = self.path / f"{self._serial:010d}-{_tag(snapshot)}-{sha256}.safetensors"
                partial.rename(file)
                os.fsync(self._lock)
            except OSError as error:
                with suppress(OSError):
                    partial.unlink()
                raise StateError(f"snapshot in {self.path}: {error.strerror}") from None
            older = [f for f in self._good if _tag_of(f) == _tag(snapshot)]
            if common is not None:
                older = [f for f in older if self._versions.get(f, common + 1) <= common][-1:]
            self._good = [*older, file][-KEPT:]
            self._versions = {f: v for f, v in self._versions.items() if f in self._good}
            self._versions[file] = snapshot.version
            self._remove_others()
        return Saved(file, snapshot.version, theta)

    def clear(self) -> None:
        """Remove all snapshots: what comes next is not to be kept, and must not be mistaken for what came before.

        Raises:
            StateError: if one of them may come back.
        """
        with self._writing:
            self._good = []
            try:
                for file in self._snapshots():
                    file.unlink()
                os.fsync(self._lock)
            except OSError as error:
                raise StateError(f"state directory {self.path}: {error.strerror}") from None

    def take_newest(self) -> Snapshot | None:
        """Hand out, once, the newest whole snapshot that was found on opening; None if there is none."""
        newest, self._newest = self._newest, None
        return newest

    def whole(self) -> Iterator[Snapshot]:
        """Yield the snapshots of the last job that are whole and hold parameters, the newest first."""
        with self._writing:
            for file in reversed(self._good):
                snapshot, fault = _read(file)
                if snapshot is None:
                    log.error("%s", fault)
                elif snapshot.engine is not None:
                    self._versions[file] = snapshot.version
                    yield snapshot

    def reaches(self) -> Iterator[tuple[Snapshot, int]]:
        """Yield what `whole` does, each with the version up to which the log leads on from it.

        Raises:
            StateError: if something was acknowledged that can no longer be read.
        """
        for number, snapshot in enumerate(self.whole()):
            yield snapshot, reach(snapshot.version, segments(self.path, _tag(snapshot)), is_newest=number == 0)

    def at(self, snapshot: Snapshot, version: int) -> Snapshot:
        """Return a single server's or the coordinator's snapshot with what the log adds to it up to a version.

        Raises:
            StateError: if the log does not lead there.
        """
        return replayed(snapshot, segments(self.path, _tag(snapshot)), version)[0]

    def go_on_from(self, beginning: Snapshot, version: int | None) -> None:
        """Forget what was kept of later versions, or of all, so that it is not mistaken for what comes now.

        `beginning` is the job without parameters, which is all that is left if it begins anew. Of the log, what is
        later is void once the next segment is there.

        Raises:
            StateError: if something of it may come back.
        """
        if version is not None:
            self._forget_after(version)
            return
        self.save(beginning, common=-1)
        remove_segments(self.path)
        self.sync()

    def _forget_after(self, version: int) -> None:
        with self._writing:
            later = [file for file in self._good if self._versions.get(file, version) > version]
            self._good = [file for file in self._good if file not in later]
            try:
                for file in later:
                    file.unlink()
                os.fsync(self._lock)
            except OSError as error:
                raise StateError(f"state directory {self.path}: {error.strerror}") from None

    @property
    def oldest_version(self) -> int | None:
        """The version of the oldest snapshot that is kept; None if that is not known."""
        versions = [self._versions.get(file) for file in self._good]
        return None if not versions or None in versions else min(v for v in versions if v is not None)

    @staticmethod
    def tag(job_id: str, job: Job) -> str:
        """Return what the names of all files of a job hold."""
        text = json.dumps([job_id, job.to_json()])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def sync(self) -> None:
        """Put the names of new files on the disk.

        Raises:
            OSError: if that fails.
        """
        os.fsync(self._lock)

    def _load(self) -> Snapshot | None:
        """Read the newest snapshot that is whole; name broken ones in the log."""
        files = self._snapshots()
        if not files:
            return None
        # Snapshots of an earlier job may be left over, if the server died when it was about to remove them.
        files = [file for file in files if _tag_of(file) == _tag_of(files[-1])]
        broken: list[str] = []
        while files:
            snapshot, fault = _read(files[-1])
            if snapshot is not None:
                for reason in broken:
                    log.error("%s; going on from the one before it", reason)
                self._good = files
                self._versions[files[-1]] = snapshot.version
                log.info("found %s of version %d", files[-1], snapshot.version)
                if snapshot.job.server.partitions > 1:
                    # How far to go on from it, the coordinator says; what is broken is found out now.
                    reach(snapshot.version, segments(self.path, _tag(snapshot)))
                    return snapshot
                snapshot, self.replayed = replayed(snapshot, segments(self.path, _tag(snapshot)))
                return snapshot
            broken.append(fault)
            files.pop()
        raise StateError(
            f"state directory {self.path}: no snapshot is whole; move the directory away to begin anew\n  "
            + "\n  ".join(broken)
        )

    def _open(self) -> int:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"state directory {self.path}: another server uses it") from None
        mark = self.path / _MARK
        # A server that died before its first start was complete leaves a partial mark.
        found = {entry.name for entry in self.path.iterdir()} - {f"{_MARK}.partial"}
        if not mark.exists():
            if found:
                raise StateError(
                    f"state directory {self.path}: holds {min(found)!r} and no {_MARK}, so it is none; "
                    "name one that is empty or does not exist"
                )
            starts = 0
        else:
            starts = _read_mark(mark)
        self._serial = max((int(file.name[:10]) for file in self._snapshots()), default=0)
        self._newest = self._load()
        text = _mark_text(starts + 1)
        partial = self.path / f"{_MARK}.partial"
        self._write(partial, [memoryview(text.encode())])
        partial.rename(mark)
        os.fsync(self._lock)
        return starts + 1

    def _snapshots(self) -> list[Path]:
        return sorted(file for file in self.path.iterdir() if _NAME.fullmatch(file.name))

    def _remove_others(self) -> None:
        for file in self._snapshots():
            if file not in self._good:
                # Left over, they do no harm: the next save tries again, and a restart takes the newest.
                with suppress(OSError):
                    file.unlink()

    @staticmethod
    def _write(partial: Path, pieces: Iterable[memoryview]) -> str:
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


def _make(path: Path) -> None:
    """Make a directory and those above it; once this returns they outlive the machine's power."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        above = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(above)
        finally:
            os.close(above)


def _read(file: Path) -> tuple[Snapshot | None, str]:
    """Return the snapshot, or None and what is wrong with the file."""
    try:
        data = bytearray(file.stat().st_size)
        with file.open("rb", buffering=0) as opened:
            view, end = memoryview(data), 0
            while count := opened.readinto(view[end:]):
                end += count
        view.release()
        del data[end:]
    except OSError as error:
        return None, f"snapshot {file}: {error.strerror}"
    found = hashlib.sha256(data).hexdigest()
    promised = _match(file)["sha256"]
    if found != promised:
        return None, f"snapshot {file} is broken: {len(data)} bytes with SHA-256 {found}, its name says {promised}"
    try:
        return parse(memoryview(data)), ""
    except StateError as error:
        # The bytes are those that were written, so an older snapshot would only hide what is wrong.
        raise StateError(f"snapshot {file}: {error}") from None


def _match(file: Path) -> re.Match[str]:
    match = _NAME.fullmatch(file.name)
    assert match is not None
    return match


def _tag_of(file: Path) -> str:
    return _match(file)["job"]


def _tag(snapshot: Snapshot) -> str:
    return StateDirectory.tag(snapshot.job_id, snapshot.job)


def _mark_text(starts: int, written: int = FORMAT) -> str:
    body = {"format": written, "starts": starts}
    return json.dumps({**body, "sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest()}) + "\n"


def _read_mark(mark: Path) -> int:
    text = mark.read_bytes()
    try:
        found = json.loads(text)
        written, starts = found["format"], found["starts"]
        whole = text == _mark_text(starts, written).encode()
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StateError(f"{mark} is broken: {text[:100]!r}; move the directory away to begin anew")
    if written > FORMAT:
        raise StateError(f"{mark} has format {written}, this program reads up to format {FORMAT}; use a newer one")
    return int(starts)


def read_snapshots(path: Path) -> list[Snapshot]:
    """Return the whole snapshots of a state directory, oldest first, whoever uses it.

    Raises:
        StateError: if one was written by a newer program.
    """
    files = sorted(file for file in path.iterdir() if _NAME.fullmatch(file.name))
    return [snapshot for snapshot, _ in map(_read, files) if snapshot is not None]
