"""The loss history of a job, in columns, so that a million steps cost tens of megabytes and not hundreds."""

from __future__ import annotations

import bisect
from array import array

from paramserver.server.events import Progress
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Points in one reply, so that no message grows with the length of a run.
POINTS_PER_REPLY = 10_000


class History:
    """One point per step that all shards have made."""

    def __init__(self) -> None:
        self._steps = array("Q")
        self._versions = array("Q")
        self._samples = array("Q")
        self._losses = array("d")
        self._seconds = array("d")

    def record(self, progress: Progress) -> None:
        """Add the point of a step later than all before it."""
        self._steps.append(progress.step)
        self._versions.append(progress.version)
        self._samples.append(progress.samples)
        self._losses.append(progress.loss)
        self._seconds.append(progress.elapsed_s)

    def after(self, step: int) -> list[pb.Point]:
        """Return the points of the steps after `step`, at most `POINTS_PER_REPLY`."""
        start = bisect.bisect_right(self._steps, step)
        return [
            pb.Point(
                step=self._steps[i],
                version=self._versions[i],
                samples=self._samples[i],
                loss=self._losses[i],
                seconds=self._seconds[i],
            )
            for i in range(start, min(start + POINTS_PER_REPLY, len(self._steps)))
        ]
