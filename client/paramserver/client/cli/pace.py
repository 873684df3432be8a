"""How fast a job goes at the moment."""

from __future__ import annotations

from collections import deque

from paramserver.client.cli.summary import step
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Seconds of training that the rate is taken over.
_WINDOW_S = 5.0


class Pace:
    """Steps per second over the last seconds, by the server's own clock."""

    def __init__(self) -> None:
        #: (seconds of training, step), both rising.
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, status: pb.StatusReply) -> None:
        """Take the newest status."""
        mark = status.seconds, step(status)
        if self._marks and mark < self._marks[-1]:
            self._marks.clear()
        self._marks.append(mark)
        while len(self._marks) > 2 and self._marks[1][0] < mark[0] - _WINDOW_S:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float:
        """The rate; 0 before there is one."""
        if not self._marks:
            return 0.0
        (start_s, first), (end_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0
