"""When snapshots are taken. Training waits while θ is copied; writing goes on beside it, in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from paramserver.server.run import Run
from paramserver.server.snapshots import Saved, StateDirectory
from paramserver.wire.errors import NotReady, StateError

log = logging.getLogger(__name__)

#: Phases whose beginning is saved at once: the first θ is there, or the last.
_MILESTONES = ("train", "done", "stopped")


class Saver:
    """Takes snapshots of one job: of the first θ, every `snapshot_every_s` seconds, of the last θ and when asked.

    A snapshot that fails (a full disk) does not end training: the log and the status say so, and the next is due as if
    it had worked. Belongs to the event loop. Jobs follow one another only once `settled`.
    """

    def __init__(self, run: Run, directory: StateDirectory) -> None:
        self._run = run
        self._directory = directory
        # One thread: snapshots reach the disk in the order in which they were taken.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._pending: asyncio.Future[Saved] | None = None
        self._asking = asyncio.Lock()
        self._phase = run.engine.phase
        self._job = run.job
        #: Version and phase of the last snapshot that was begun.
        self._taken = (run.engine.version, run.engine.phase)
        self._last: tuple[Saved, float] | None = None
        self._error = ""
        self._timer = self._arm()

    def look(self) -> None:
        """Take a snapshot if the job has come to a milestone or has a new policy."""
        phase, job = self._run.engine.phase, self._run.job
        if (phase != self._phase and phase in _MILESTONES) or job is not self._job:
            self._take()
        self._phase, self._job = phase, job

    async def save(self) -> Saved:
        """Take a snapshot and wait until it is on the disk.

        Raises:
            NotReady: if there are no parameters yet.
            StateError: if it cannot be written.
        """
        if self._run.engine.phase not in _MILESTONES:
            raise NotReady(f"the job is in its {self._run.engine.phase} phase: there is nothing to go on from")
        # One at a time, since each holds a copy of θ.
        async with self._asking:
            await self.settled()
            return await asyncio.shield(self._take())

    async def settled(self) -> None:
        """Wait until every snapshot that was taken is on the disk or has failed."""
        while self._pending is not None and not self._pending.done():
            await asyncio.wait([self._pending])

    async def close(self) -> None:
        """Save what is new and end."""
        self._timer.cancel()
        await self.settled()
        if self._due():
            self._take()
            await self.settled()
        self._thread.shutdown()

    def describe(self) -> str:
        """Say in words what is safe."""
        if self._error:
            return f"the last snapshot failed: {self._error}"
        if self._last is None:
            return "snapshot: none was taken since the server started"
        saved, at = self._last
        return f"snapshot of version {saved.version}, taken {time.monotonic() - at:.0f} s ago"

    def _arm(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._run.job.server.snapshot_every_s, self._on_time)

    def _on_time(self) -> None:
        # Where the disk takes longer than the interval, snapshots become rarer and do not pile up.
        if self._due() and (self._pending is None or self._pending.done()):
            self._take()
        if not self._run.engine.ended:
            self._timer = self._arm()

    def _due(self) -> bool:
        engine = self._run.engine
        return engine.phase in _MILESTONES and self._taken != (engine.version, engine.phase)

    def _take(self) -> asyncio.Future[Saved]:
        taken_at = time.monotonic()
        snapshot = self._run.snapshot()
        self._taken = (self._run.engine.version, self._run.engine.phase)
        self._pending = asyncio.get_running_loop().run_in_executor(self._thread, self._directory.save, snapshot)
        self._pending.add_done_callback(lambda done: self._note(done, taken_at))
        return self._pending

    def _note(self, done: asyncio.Future[Saved], taken_at: float) -> None:
        error = done.exception()
        if isinstance(error, StateError):
            self._error = str(error)
            log.error("%s; training goes on", error)
        elif error is not None:
            raise error
        else:
            self._error, self._last = "", (done.result(), taken_at)
            log.info("saved version %d in %.3f s", done.result().version, time.monotonic() - taken_at)
