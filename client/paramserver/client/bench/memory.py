"""Watches how much memory processes of this machine take."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from paramserver.wire.errors import JobFailed


class Sample(NamedTuple):
    """One look."""

    #: Since the first.
    seconds: float
    #: Resident memory of all servers, shared pages included, in MB.
    server_mb: float
    #: Of all processes, pages that several share counted once, in MB; 0 unless asked for.
    together_mb: float


class MemoryWatch:
    """Looks at processes every so often, from a thread of its own.

    Args:
        every_s: from one look to the next.
        together: also add up all processes, which takes a while where they are large.
        least_mb: once the machine has less memory than this to give, the servers are killed, before the system kills
            what it likes.
    """

    def __init__(self, every_s: float, together: bool = False, least_mb: float = 0.0) -> None:
        self._every_s, self._together, self._least_mb = every_s, together, least_mb
        self.samples: list[Sample] = []
        #: The least that the machine had to give at any look, in MB.
        self.available_mb = math.inf

    @contextlib.contextmanager
    def over(self, pids: Mapping[str, int]) -> Iterator[None]:
        """Watch processes by name, those whose names begin with `server` as servers, while the context lasts.

        Raises:
            JobFailed: at the end, if memory ran short.
        """
        began, ended = time.monotonic(), threading.Event()

        def look_again() -> None:
            while self._look(pids, began) and not ended.wait(self._every_s):
                pass

        thread = threading.Thread(target=look_again, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._look(pids, began)
            if self.available_mb < self._least_mb:
                left = f"{self.available_mb:.0f} MB were left, {self._least_mb:.0f} are to stay free"
                raise JobFailed(f"the servers were killed since memory ran short: {left}")

    def _look(self, pids: Mapping[str, int], began: float) -> bool:
        """Look once, and return whether there is more to see."""
        servers = [pid for name, pid in pids.items() if name.startswith("server")]
        self.available_mb = min(self.available_mb, available_mb())
        # Whoever runs the processes finds out why one has ended.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if self.available_mb < self._least_mb:
                for pid in servers:
                    os.kill(pid, signal.SIGKILL)
                return False
            together = sum(proportional_mb(pid) for pid in pids.values()) if self._together else 0.0
            server = sum(memory_mb(pid, "VmRSS") for pid in servers)
            self.samples.append(Sample(time.monotonic() - began, server, together))
            return True
        return False


def memory_mb(pid: int, which: str) -> float:
    """Return a process's memory in MB: `VmRSS`, what is resident now, or `VmHWM`, what was at most."""
    return _entry_mb(Path(f"/proc/{pid}/status"), which)


def proportional_mb(pid: int) -> float:
    """Return a process's resident memory in MB, of a page that n processes share one n-th."""
    return _entry_mb(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def available_mb() -> float:
    """Return the memory in MB that this machine could give to a process."""
    return _entry_mb(Path("/proc/meminfo"), "MemAvailable")


def _entry_mb(file: Path, name: str) -> float:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
