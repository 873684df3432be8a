"""The loss history of a job, in columns, so that a million steps cost tens of megabytes and not hundreds."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping
from typing import Self

import numpy as np

from paramserver.server.events import Progress
from paramserver.wire.layout import Array
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

    @classmethod
    def of(cls, columns: Mapping[str, Array]) -> Self:
        """Return the history that `columns` described.

        Raises:
            KeyError: if a column is missing.
        """
        history = cls()
        for name, column in history._columns().items():
            column.frombytes(columns[name].astype(column.typecode).tobytes())
        return history

    def columns(self, until: int | None = None) -> dict[str, Array]:
        """Return a copy of every column, up to the step `until`: uint64 or float64, one element per point."""
        count = len(self._steps) if until is None else bisect.bisect_right(self._steps, until)
        return {name: np.array(column[:count], dtype=column.typecode) for name, column in self._columns().items()}

    def forget_after(self, step: int) -> None:
        """Drop the points of the steps after `step`."""
        count = bisect.bisect_right(self._steps, step)
        for column in self._columns().values():
            del column[count:]

    def _columns(self) -> dict[str, array[int] | array[float]]:
        return {
            "step": self._steps,
            "version": self._versions,
            "samples": self._samples,
            "loss": self._losses,
            "seconds": self._seconds,
        }

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
