"""Memory is watched as the system counts it, and a server is stopped before memory runs out."""

from __future__ import annotations

import math
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from paramserver.client.bench.memory import MemoryWatch, memory_mb, proportional_mb
from paramserver.wire.errors import JobFailed

MEGABYTES = 64


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has touched memory and shares it with a child, until its input ends."""
    code = (
        f"import mmap, os, sys; m = mmap.mmap(-1, {MEGABYTES} << 20); m.write(bytes(len(m)))\n"
        "r, w = os.pipe(); child = os.fork()\n"
        "if child == 0: os.close(w); sum(m[::4096]); os.write(1, b'ready'); os.read(r, 1); os._exit(0)\n"
        "sys.stdin.read(); os.close(w); os.waitpid(child, 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.read(5)
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_shared_pages_count_whole_and_in_parts(holder: subprocess.Popen[bytes]) -> None:
    resident, part = memory_mb(holder.pid, "VmRSS"), proportional_mb(holder.pid)
    assert resident > MEGABYTES
    assert resident - part >= MEGABYTES / 2 - 1


def test_the_servers_and_all_together_are_told_apart(holder: subprocess.Popen[bytes]) -> None:
    watch = MemoryWatch(0.001, together=True)
    with watch.over({"server": holder.pid, "worker-0": os.getpid()}):
        mapped = mmap.mmap(-1, MEGABYTES << 20)
        mapped.write(bytes(len(mapped)))
    last = watch.samples[-1]
    assert MEGABYTES < last.server_mb < last.together_mb + MEGABYTES
    assert last.together_mb > proportional_mb(holder.pid) + MEGABYTES - 1
    assert 0 < watch.available_mb < math.inf


def test_a_server_is_stopped_before_memory_runs_out(holder: subprocess.Popen[bytes]) -> None:
    watch = MemoryWatch(0.001, least_mb=math.inf)
    with pytest.raises(JobFailed, match="memory ran short"), watch.over({"server": holder.pid, "worker": os.getpid()}):
        assert holder.wait() == -signal.SIGKILL
