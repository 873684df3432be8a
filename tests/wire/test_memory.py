"""What is freed is kept for the next message, however much it is, until it is given back on purpose."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: Says how far the heap reaches with three large blocks, without them, and after giving back, in MiB; touches nothing.
PROGRAM = """
import ctypes
from paramserver.wire.memory import give_back, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_long]
keep_freed_memory()
before = libc.sbrk(0)
blocks = [libc.malloc(900 << 20) for _ in range(3)]
reached = [libc.sbrk(0)]
for block in blocks:
    libc.free(block)
reached.append(libc.sbrk(0))
give_back()
reached.append(libc.sbrk(0))
print(*((end - before) >> 20 for end in reached))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library that is tuned")
def test_more_than_two_gigabytes_are_kept_until_they_are_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    full, freed, given_back = map(int, said.split())
    assert full >= 2700
    assert freed == full
    assert given_back < 200
