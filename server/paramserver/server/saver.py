"""When snapshots are taken. Training waits while θ is copied; writing goes on beside it, in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from paramserver.server.log import Log
from paramserver.server.provenance import Notes
from paramserver.server.run import Run
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import Saved, StateDirectory
from paramserver.wire.errors import NotReady, StateError

log = logging.getLogger(__name__)

#: How long a disk that could not be written is left alone where training waits for it.
RETRY_S = 1.0

#: Phases whose beginning is saved at once: the first θ is there, or the last.
_MILESTONES = ("train", "done", "stopped")


class Saver:
    """Takes snapshots of one job: of the first θ, every `snapshot_every_s` seconds, of the last θ and when asked.

    A snapshot that fails (a full disk) does not end training: the log and the status say so, and the next is due as if
    it had worked. Belongs to the event loop. Jobs follow one another only once `settled`. A `log`, which begins anew
    with every snapshot, may ask for one too.
    """

    def __init__(self, run: Run, directory: StateDirectory, log: Log | None = None) -> None:
        self._run = run
        self._log = log
        if log is not None:
            log.snapshot_wanted = self._want
        self._wanted: asyncio.TimerHandle | None = None
        #: It has asked while one was being written, which perhaps began before there was reason to.
        self._wants_another = False
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
        if run.provenance is not None:
            run.provenance.full = self._write_notes
            self._write_notes()

    def look(self) -> None:
        """Take a snapshot if the job has come to a milestone or has a new policy."""
        phase, job = self._run.engine.phase, self._run.job
        if job is not self._job and self._run.provenance is not None:
            self._run.provenance.switched(self._run.engine.version, job.train)
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

    async def noted(self) -> None:
        """Wait until it is written down where the versions so far come from."""
        self._write_notes()
        await asyncio.wrap_future(self._thread.submit(lambda: None))

    async def settled(self) -> None:
        """Wait until every snapshot that was taken is on the disk or has failed."""
        while self._pending is not None and not self._pending.done():
            await asyncio.wait([self._pending])

    async def drop(self) -> None:
        """End without saving what is new, once what is being written is on the disk."""
        self._timer.cancel()
        if self._log is not None:
            self._log.snapshot_wanted = lambda: None
        await self.settled()
        await self._end()

    async def close(self) -> None:
        """Save what is new and end."""
        self._timer.cancel()
        await self.settled()
        if self._due():
            self._take()
            await self.settled()
        await self._end()

    async def _end(self) -> None:
        if self._wanted is not None:
            self._wanted.cancel()
        self._thread.shutdown()
        if self._run.provenance is not None:
            self._run.provenance.close()
        if self._log is not None:
            await self._log.close()

    def describe(self) -> str:
        """Say in words what is safe."""
        if self._log is not None and self._log.error:
            return f"{self._log.error}; training waits"
        if self._error:
            return f"the last snapshot failed: {self._error}"
        if self._last is None:
            return "snapshot: none was taken since the server started"
        saved, at = self._last
        logged = "" if self._log is None else f"log of every contribution up to version {self._log.safe}, "
        return f"{logged}snapshot of version {saved.version}, taken {time.monotonic() - at:.0f} s ago"

    def _arm(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._run.job.server.snapshot_every_s, self._on_time)

    def _on_time(self) -> None:
        # Where the disk takes longer than the interval, snapshots become rarer and do not pile up.
        if self._due() and (self._pending is None or self._pending.done()):
            self._take()
        if not self._run.engine.ended:
            self._timer = self._arm()

    def _want(self) -> None:
        if self._wanted is None:
            delay_s = RETRY_S if self._log is not None and self._log.error else 0.0
            self._wanted = asyncio.get_running_loop().call_later(delay_s, self._take_wanted)

    def _take_wanted(self) -> None:
        self._wanted = None
        if self._pending is None or self._pending.done():
            self._take()
        else:
            self._wants_another = True

    def _due(self) -> bool:
        engine = self._run.engine
        return engine.phase in _MILESTONES and self._taken != (engine.version, engine.phase)

    def _take(self) -> asyncio.Future[Saved]:
        taken_at = time.monotonic()
        snapshot = self._run.snapshot()
        if self._log is not None:
            self._log.snapshot_begun()
        self._taken = (self._run.engine.version, self._run.engine.phase)
        self._write_notes()
        self._pending = asyncio.get_running_loop().run_in_executor(self._thread, self._save, snapshot)
        self._pending.add_done_callback(lambda done: self._note(done, taken_at))
        return self._pending

    def _write_notes(self) -> None:
        """Have the thread write where the versions so far come from."""
        if self._run.provenance is not None:
            self._thread.submit(self._run.provenance.write, self._run.provenance.take())

    def _save(self, snapshot: Snapshot) -> Saved:
        provenance = self._run.provenance
        saved = self._directory.save(snapshot)
        if provenance is not None and saved.theta_sha256:
            provenance.write(Notes([], [(saved.version, saved.theta_sha256)], []))
        return saved

    def _note(self, done: asyncio.Future[Saved], taken_at: float) -> None:
        error = done.exception()
        if isinstance(error, StateError):
            self._error = str(error)
            if self._log is not None:
                self._log.snapshot_failed(self._error)
            waits = self._log is not None and self._log.error
            log.error("%s; training %s", error, "waits for the disk" if waits else "goes on")
        elif error is not None:
            raise error
        else:
            self._error, self._last = "", (done.result(), taken_at)
            if self._log is not None:
                self._log.snapshot_saved(done.result().version)
            log.info("saved version %d in %.3f s", done.result().version, time.monotonic() - taken_at)
        if self._wants_another:
            self._wants_another = False
            self._want()
