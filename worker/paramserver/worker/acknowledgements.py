"""What became of pushes, for somebody in another thread who waits for it."""

from __future__ import annotations

from concurrent.futures import Future


class Acknowledgements:
    """The pushes of one stream whose outcome is not known yet; belongs to the event loop, but for the futures."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], Future[bool]] = {}

    def expect(self, shard: int, step: int) -> Future[bool]:
        """Return what will say whether the push of a step was acknowledged; an earlier one of that name was not."""
        self.settle(shard, step, False)
        future = self._open[shard, step] = Future()
        return future

    def settle(self, shard: int, step: int, acknowledged: bool) -> None:
        """Take note of what the server says of a push."""
        future = self._open.pop((shard, step), None)
        if future is not None:
            future.set_result(acknowledged)

    def give_up(self) -> None:
        """Nothing more will be said of what was pushed."""
        for shard, step in list(self._open):
            self.settle(shard, step, False)
