"""Starts processes again that have died: a bounded number of times, with growing pauses, and never silently."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from paramserver.client.localprocess import LocalProcess

#: How often one process is started again; what dies more often has a reason that another start does not cure.
MAX_RESTARTS = 5

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0


@dataclass(slots=True)
class _Care:
    """What was done for one process so far."""

    restarts: int = 0
    #: When it is to be started again; None while it runs.
    due: float | None = None


class Supervisor:
    """Looks after local processes; what it does is written to `log` and said on stderr.

    Args:
        log: a file in an existing directory; it is made when there is something to say.
        restarts: how often each process is started again.
    """

    def __init__(self, log: Path, restarts: int = MAX_RESTARTS) -> None:
        self._log = log
        self._restarts = restarts
        self._cares: dict[str, _Care] = {}

    def revive(self, member: LocalProcess) -> bool:
        """Start a dead process again once its pause is over; False if it has died too often."""
        if member.alive:
            return True
        care = self._cares.setdefault(member.name, _Care())
        if care.restarts >= self._restarts:
            return False
        now = time.monotonic()
        if care.due is None:
            care.due = now + min(FIRST_PAUSE_S * 2**care.restarts, LONGEST_PAUSE_S)
            self._say(
                f"{member.how_it_ended()}; it is started again ({care.restarts + 1} of {self._restarts})",
                member.epitaph(),
            )
        if now >= care.due:
            care.restarts, care.due = care.restarts + 1, None
            member.start_again()
        return True

    def _say(self, what: str, details: str) -> None:
        print(f"note: {what}", file=sys.stderr)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n{details}\n")
