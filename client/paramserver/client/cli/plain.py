"""Progress as lines of text, for logs and pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from paramserver.client.cli.pace import Pace
from paramserver.client.cli.summary import mean_staleness, step
from paramserver.client.connection.client import Update
from paramserver.wire.v1 import paramserver_pb2 as pb

#: A line comes with every tenth of the way, but no sooner and no later after the last one than this.
_TENTH = 0.1
_SOONEST_S = 1.0
_LATEST_S = 10.0
#: A wait that is longer than this is worth a word.
_NOTABLE_WAIT_S = 2.0


class PlainLines:
    """Writes a line now and then.

    Args:
        out: where to; stderr by default.
        clock: returns seconds.
    """

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out or sys.stderr
        self._clock = clock
        self._pace = Pace()
        self._state = ""
        self._last_s = float("-inf")
        self._last_step = 0

    def show(self, update: Update) -> None:
        """Take an update, and write a line if it is time for one."""
        status = update.status
        self._pace.note(status)
        if status.state != self._state:
            self._state = status.state
            self._write(status)
            return
        pause_s = self._clock() - self._last_s
        advance = (step(status) - self._last_step) / max(status.total_steps, 1)
        if pause_s >= _LATEST_S or (pause_s >= _SOONEST_S and advance >= _TENTH):
            self._write(status)

    def _write(self, status: pb.StatusReply) -> None:
        self._last_s, self._last_step = self._clock(), step(status)
        print(line(status, self._pace.steps_per_s), file=self._out, flush=True)
        for wait in status.waiting_for:
            if wait.since_s >= _NOTABLE_WAIT_S:
                print(f"  waiting {wait.since_s:.1f} s: {wait.reason}", file=self._out, flush=True)


def line(status: pb.StatusReply, steps_per_s: float) -> str:
    """Return the status in one line."""
    parts = [f"{status.state:<10} step {step(status)}/{status.total_steps or '?'}"]
    if status.HasField("loss"):
        parts.append(f"loss {status.loss:.6g}")
    if steps_per_s:
        parts.append(f"{steps_per_s:.3g} steps/s")
    if status.staleness:
        parts.append(f"staleness {mean_staleness(status):.2g}")
    parts.append(f"{sum(worker.state == 'ready' for worker in status.workers)} workers")
    return "  ".join(parts)
