"""Waiting awake: who sleeps has to be woken, which costs both sides tens of microseconds if they are on two cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: For so long one stays awake.
AWAKE_S = 0.001

#: A look, and a turn for others who want the core, take two microseconds. If they took so long, there was somebody.
OTHERS_S = 2e-5

#: Luck to begin with, at most, and for what was found; what was not costs 1, so that one in four has to be found, …
FIRST_LUCK, MOST_LUCK, GAIN = 8, 32, 3

#: … or so much if others had the core: whoever shares it with the one that he waits for is better off asleep. …
SHARED = 2

#: … Without any, one sleeps at once for so long, and has a little then.
PAUSE_S = 0.02
NEXT_LUCK = 2


class Awake:
    """Stays awake for what may come soon, while nobody else wants the core, and for as long as it mostly comes.

    It does for `awake_s`; a turn for others of `others_s` says that there are some.
    """

    def __init__(self, awake_s: float = AWAKE_S, others_s: float = OTHERS_S) -> None:
        self._awake_s, self._others_s = awake_s, others_s
        self._luck = FIRST_LUCK
        #: When it is tried again, on the monotonic clock.
        self._not_before = 0.0

    def finds(self, look: Callable[[], object]) -> bool:
        """Look until there is something; False when it is time to sleep."""
        now = time.monotonic()
        if now < self._not_before:
            return False
        end = now + self._awake_s
        while not look():
            os.sched_yield()
            before, now = now, time.monotonic()
            if now - before > self._others_s:
                self._lose(SHARED, now)
                return False
            if now > end:
                self._lose(1, now)
                return False
        self._luck = min(MOST_LUCK, self._luck + GAIN)
        return True

    def _lose(self, luck: int, now: float) -> None:
        self._luck -= luck
        if self._luck <= 0:
            self._luck, self._not_before = NEXT_LUCK, now + PAUSE_S
