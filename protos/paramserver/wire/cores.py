"""Which of the machine's cores runs a process right now."""

from __future__ import annotations

import ctypes

_core_of_thread = getattr(ctypes.CDLL(None), "sched_getcpu", None)


def own_core() -> int:
    """Return the number of the core that runs this thread, from 1; 0 if the system does not say."""
    return 0 if _core_of_thread is None else int(_core_of_thread()) + 1
