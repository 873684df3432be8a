"""How a process that moves tensors treats memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep buffers of messages for the next message instead of handing them back to the kernel.

    glibc unmaps large buffers when they are freed; the next one is then faulted in page by page, which costs more than
    filling it. With another C library this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_TOP_PAD, 64 << 20)
        # The heaps of further arenas are unmapped as soon as they are empty.
        mallopt(_M_ARENA_MAX, 1)
