"""How a process that moves tensors treats memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
#: As a threshold, more than there is. The largest number that fits the argument, 2 GiB, is freed by one round of a θ of
#: that size, and would be faulted in again by the next.
_NEVER = -1


def keep_freed_memory() -> None:
    """Keep buffers of messages for the next message instead of handing them back to the kernel.

    glibc unmaps large buffers when they are freed; the next one is then faulted in page by page, which costs more than
    filling it. With another C library this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_TOP_PAD, 64 << 20)
        # The heaps of further arenas are unmapped as soon as they are empty.
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Hand memory that is free back to the kernel, when what filled it will not come again soon."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
