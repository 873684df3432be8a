"""A simulated disk: what was written but not synced is lost, torn or kept when the power goes.

Every operation takes time and is there from the end of it on. A process may die between any two, also within one call
of the code under test: what it did after its death is taken back. `Path`, `Os` and `Flock` have the shape of
`pathlib.Path`, `os` and `fcntl`, as much of it as the code under test uses, and lead to the disk of whoever uses them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from random import Random
from types import TracebackType
from typing import NamedTuple, Self

from simulation.loop import Process


class Operation(NamedTuple):
    """One change of the disk, in force from a time on."""

    at: float
    #: create, write, truncate, fsync (of a file), mkdir, rename, unlink, sync (of a directory).
    kind: str
    #: The directory and the name in it; empty for what concerns a file alone.
    place: tuple[str, str]
    #: The file; for a rename that is replaced by name.
    inode: int
    data: bytes = b""
    target: str = ""


class Content:
    """Files and directories."""

    def __init__(self) -> None:
        self.directories: dict[str, dict[str, int]] = {"/": {}}
        self.files: dict[int, bytes] = {}

    def copy(self) -> Content:
        other = Content()
        other.directories = {path: dict(entries) for path, entries in self.directories.items()}
        other.files = dict(self.files)
        return other

    def apply(self, op: Operation) -> None:
        directory, name = op.place
        entries = self.directories.get(directory)
        match op.kind:
            case "write":
                self.files[op.inode] = self.files.get(op.inode, b"") + op.data
            case "truncate":
                self.files[op.inode] = b""
            case "create":
                self.files.setdefault(op.inode, b"")
                if entries is not None:
                    entries[name] = op.inode
            case "mkdir":
                if entries is not None:
                    entries[name] = -1
                    self.directories.setdefault(_join(directory, name), {})
            case "rename":
                if entries is not None and name in entries:
                    entries[op.target] = entries.pop(name)
            case "unlink":
                if entries is not None:
                    entries.pop(name, None)


class Disk:
    """The disk of a machine; survives its processes."""

    def __init__(self, delay: Callable[[], float], fault: Callable[[str], int] = lambda _: 0) -> None:
        self._delay = delay
        #: Returns the error number with which an operation fails, or 0.
        self._fault = fault
        self._base = Content()
        #: As the processes see it.
        self.content = self._base.copy()
        self._operations: list[Operation] = []
        self._inodes = 0
        self.descriptors: dict[int, tuple[str, int]] = {}
        self._last_descriptor = 100
        #: Directories and the process that has locked each.
        self.locks: dict[str, Process] = {}
        #: Called with the time of every operation.
        self.watch: Callable[[float, str], None] = lambda _at, _kind: None

    def do(self, kind: str, place: tuple[str, str] = ("", ""), inode: int = 0, data: bytes = b"", to: str = "") -> None:
        """Carry an operation out, or raise OSError."""
        process = Process.current
        assert process is not None
        assert process.alive
        process.io_time += self._delay()
        number = self._fault(kind)
        if number:
            if kind == "write" and number == errno.ENOSPC:
                # What fitted is there.
                part = Operation(process.io_time, kind, place, inode, data[: len(data) // 2])
                self._operations.append(part)
                self.content.apply(part)
            raise OSError(number, os.strerror(number))
        operation = Operation(process.io_time, kind, place, inode, data, to)
        self._operations.append(operation)
        self.content.apply(operation)
        self.watch(operation.at, kind)

    def open(self, path: str, write: bool) -> File:
        directory, name = _split(path)
        entries = self.content.directories.get(directory)
        if entries is None or (name not in entries and not write):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if write and name in entries:
            inode = entries[name]
            self.do("truncate", inode=inode)
        elif write:
            self._inodes += 1
            inode = self._inodes
            self.do("create", (directory, name), inode)
        else:
            inode = entries[name]
        return File(self, inode, self.describe(path, inode))

    def describe(self, path: str, inode: int) -> int:
        """Return a new descriptor."""
        self._last_descriptor += 1
        self.descriptors[self._last_descriptor] = path, inode
        return self._last_descriptor

    def process_died(self, at: float) -> None:
        """Take back what the process would have done later; the rest survives, synced or not."""
        self._settle([op for op in self._operations if op.at <= at])

    def power_lost(self, at: float, rng: Random) -> None:
        """Keep what was synced by then, and of the rest whatever it pleases."""
        done = [op for op in self._operations if op.at <= at]
        synced_files = {op.inode: i for i, op in enumerate(done) if op.kind == "fsync"}
        synced_directories = {op.place[0]: i for i, op in enumerate(done) if op.kind == "sync"}
        # A file system that writes its journal in order loses the end of it; another loses anything.
        in_order = rng.random() < 0.5
        journal_end = int(rng.random() * (len(done) + 1))
        kept: list[Operation] = []
        torn: set[int] = set()
        for i, op in enumerate(done):
            if op.kind in ("write", "truncate"):
                if i < synced_files.get(op.inode, -1):
                    kept.append(op)
                elif op.inode not in torn:
                    fate = rng.random()
                    if fate < 0.4:
                        kept.append(op)
                    else:
                        torn.add(op.inode)
                        if fate < 0.7 and op.data:
                            # A share of it: what a file says of its surroundings must not move the chances after it.
                            cut = int(rng.random() * len(op.data))
                            kept.append(op._replace(data=op.data[:cut] + bytes(rng.choice((0, len(op.data) - cut)))))
            elif op.kind in ("fsync", "sync"):
                continue
            elif i < synced_directories.get(op.place[0], -1) or (i < journal_end if in_order else rng.random() < 0.5):
                kept.append(op)
        self._settle(kept)

    def flip(self, inode: int, rng: Random) -> None:
        """Let a bit of a file rot while no process runs."""
        data = bytearray(self._base.files[inode])
        data[int(rng.random() * len(data))] ^= 1 << int(rng.random() * 8)
        self._base.files[inode] = bytes(data)
        self.content = self._base.copy()

    def _settle(self, operations: list[Operation]) -> None:
        for operation in operations:
            self._base.apply(operation)
        self._operations = []
        self.content = self._base.copy()
        self.descriptors.clear()
        self.locks.clear()


class File:
    """An open file."""

    def __init__(self, disk: Disk, inode: int, descriptor: int) -> None:
        self._disk, self._inode, self._descriptor = disk, inode, descriptor
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._disk.descriptors.pop(self._descriptor, None)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes | memoryview) -> int:
        self._disk.do("write", inode=self._inode, data=bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def read(self) -> bytes:
        return self._disk.content.files[self._inode]

    def readinto(self, into: memoryview) -> int:
        data = self._disk.content.files[self._inode][self._position :][: len(into)]
        into[: len(data)] = data
        self._position += len(data)
        return len(data)


class Path(PurePosixPath):
    """A path on the simulated disk."""

    @property
    def disk(self) -> Disk:
        """The disk of the process that runs."""
        return _disk()

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        directory, name = _split(str(self))
        entries = self.disk.content.directories.get(directory)
        if entries is None:
            if not parents:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.parent.mkdir(parents=True, exist_ok=True)
        elif name in entries or not name:
            if not exist_ok:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            return
        self.disk.do("mkdir", (directory, name))

    def exists(self) -> bool:
        directory, name = _split(str(self))
        return not name or name in self.disk.content.directories.get(directory, {})

    def is_dir(self) -> bool:
        return str(self) in self.disk.content.directories and self.exists()

    def iterdir(self) -> Iterator[Self]:
        return iter([self / name for name in self.disk.content.directories[str(self)]])

    def glob(self, pattern: str) -> Iterator[Self]:
        return (path for path in self.iterdir() if path.match(pattern))

    def open(self, mode: str = "r", buffering: int = -1) -> File:  # noqa: ARG002 (pathlib's)
        return self.disk.open(str(self), write="w" in mode)

    def stat(self) -> os.stat_result:
        size = len(self.read_bytes())
        return os.stat_result((0o100600, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def read_bytes(self) -> bytes:
        directory, name = _split(str(self))
        return self.disk.content.files[self.disk.content.directories[directory][name]]

    def rename(self, target: Path) -> Path:
        directory, name = _split(str(self))
        assert _split(str(target))[0] == directory
        self.disk.do("rename", (directory, name), to=target.name)
        return target

    def unlink(self, missing_ok: bool = False) -> None:
        if not self.exists():
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.disk.do("unlink", _split(str(self)))


class Os:
    """`os`, as far as it concerns files."""

    O_RDONLY, O_DIRECTORY = os.O_RDONLY, os.O_DIRECTORY
    O_WRONLY, O_CREAT, O_EXCL, O_APPEND = os.O_WRONLY, os.O_CREAT, os.O_EXCL, os.O_APPEND

    def __init__(self, rng: Random) -> None:
        self.urandom = rng.randbytes

    @property
    def _disk(self) -> Disk:
        return _disk()

    def open(self, path: Path, flags: int, _mode: int = 0o666) -> int:
        if flags == os.O_RDONLY | os.O_DIRECTORY:
            if not path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return self._disk.describe(str(path), -1)
        assert flags == os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, "only new files are opened this way"
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return self._disk.open(str(path), write=True).fileno()

    def writev(self, descriptor: int, buffers: Sequence[bytes | memoryview]) -> int:
        data = b"".join(buffers)
        self._disk.do("write", inode=self._disk.descriptors[descriptor][1], data=data)
        return len(data)

    def fdatasync(self, descriptor: int) -> None:
        self.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        path, _ = self._disk.descriptors.pop(descriptor)
        self._disk.locks.pop(path, None)

    def fsync(self, descriptor: int) -> None:
        path, inode = self._disk.descriptors[descriptor]
        if inode < 0:
            self._disk.do("sync", (path, ""))
        else:
            self._disk.do("fsync", inode=inode)


class Flock:
    """`fcntl`, as far as it concerns locks."""

    LOCK_EX, LOCK_NB = 2, 4

    def flock(self, descriptor: int, flags: int) -> None:
        assert flags == self.LOCK_EX | self.LOCK_NB
        assert Process.current is not None
        disk = _disk()
        path, _ = disk.descriptors[descriptor]
        if path in disk.locks:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        disk.locks[path] = Process.current


def _disk() -> Disk:
    process = Process.current
    assert process is not None
    found: Disk = process.disk
    return found


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"
