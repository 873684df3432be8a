"""The coordinator of several servers: finds the others, brings all to one version, and goes on from there.

Whenever one of them is lost, workers are sent away and everything begins again from here: all partitions go back to the
newest version that each has a snapshot of. So there is one way of recovery, whoever died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence

from paramserver.server import events as ev
from paramserver.server.leading import LeadingRun
from paramserver.server.links import Link
from paramserver.server.place import Place
from paramserver.server.run import Run
from paramserver.server.saver import Saver
from paramserver.server.shell import Shell
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import Saved, StateDirectory
from paramserver.wire.errors import NotReady, ParamserverError, StateError, Unreachable
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class LeadingSaver(Saver):
    """Takes snapshots on all partitions, of one version each; the next is due when all have written the last."""

    _run: LeadingRun

    #: Something worth a snapshot has happened while one was being written.
    _again = False
    #: As it is in the last snapshot that was begun.
    _taken_job: Job | None = None

    def _take(self) -> asyncio.Future[Saved]:
        if self._pending is not None and not self._pending.done():
            self._again = True
            return self._pending
        self._taken = (self._run.engine.version, self._run.engine.phase)
        self._pending = asyncio.ensure_future(self._save_everywhere())
        taken_at = asyncio.get_running_loop().time()
        self._pending.add_done_callback(lambda done: self._note_and_go_on(done, taken_at))
        return self._pending

    def _note_and_go_on(self, done: asyncio.Future[Saved], taken_at: float) -> None:
        self._note(done, taken_at)
        if self._again and done.exception() is None:
            self._again = False
            if self._due() or self._run.job is not self._taken_job:
                self._take()

    async def _save_everywhere(self) -> Saved:
        async def begin() -> tuple[Snapshot, list[asyncio.Future[pb.Report]]]:
            there = await self._run.save_there()
            self._taken = (self._run.engine.version, self._run.engine.phase)
            self._taken_job = self._run.job
            snapshot = self._run.snapshot()
            if self._log is not None:
                self._log.snapshot_begun()
            return snapshot, there

        try:
            snapshot, there = await self._run.between(begin)
            for answer in there:
                report = (await answer).saved
                if report.error:
                    raise StateError(f"another partition: {report.error}")
            # Last, so that what is found here is everywhere: after an end nobody begins anew.
            loop = asyncio.get_running_loop()
            saved = await loop.run_in_executor(self._thread, self._directory.save, snapshot, self._run.common)
        except StateError:
            raise
        except ParamserverError as error:
            raise StateError(f"snapshot of several partitions: {error}") from None
        self._run.common = snapshot.version
        return saved._replace(theta_sha256="")


def newest_common(reaches: Sequence[Sequence[tuple[int, int]]]) -> int | None:
    """Return the newest version that every partition can go back to; None if there is none.

    `reaches` are the first and the last version of what each has without a gap.
    """
    ends = {end for ranges in reaches for pair in ranges for end in pair}
    common = (v for v in ends if all(any(first <= v <= last for first, last in ranges) for ranges in reaches))
    return max(common, default=None)


class Coordinator(Shell):
    """The shell of partition 0; `peers` are the addresses of the others, in order."""

    run: LeadingRun | None

    def __init__(self, peers: Sequence[str], directory: StateDirectory | None = None) -> None:
        self._peers = peers
        self._links: list[Link] = []
        #: True while all partitions are at one version and workers may come.
        self._is_open = False
        self._why_not = "the other partitions have not been reached yet"
        self._phase = ""
        self._working: asyncio.Task[None] | None = None
        #: Ends with the error that ends the work of the run.
        self._trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        super().__init__(directory, Place(0, len(peers) + 1))

    async def lead(self) -> None:
        """Find the other partitions and lead them, again and again, until cancelled."""
        pause_s, said = FIRST_PAUSE_S, ""
        while True:
            began = time.monotonic()
            try:
                await self._lead_once()
            except ParamserverError as error:
                self._why_not = str(error)
            pause_s = FIRST_PAUSE_S if time.monotonic() - began > LONGEST_PAUSE_S else min(2 * pause_s, LONGEST_PAUSE_S)
            if self._why_not != said:
                said = self._why_not
                log.warning("%s; trying to reach all partitions again", said)
            self._announce()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _lead_once(self) -> None:
        """Lead the partitions from where all of them can begin until one is lost."""
        self.cluster = os.urandom(8)
        self._trouble = asyncio.get_running_loop().create_future()
        links = [Link(a, n, self.place.partitions, self._take_report) for n, a in enumerate(self._peers, start=1)]
        self._links = links
        lost: ParamserverError = Unreachable("the server ends")
        try:
            followings = await asyncio.gather(*(link.open(self.cluster, self.probe) for link in links))
            await self._go_on(followings)
            self._is_open = True
            log.info("leads %s", ", ".join(link.name for link in links))
            self._moved()
            await asyncio.wait([*(link.broken for link in links), self._trouble], return_when=asyncio.FIRST_COMPLETED)
            for ended in (*(link.broken for link in links), self._trouble):
                if ended.done():
                    await ended
        except ParamserverError as error:
            lost = Unreachable(str(error))
            raise
        finally:
            self._is_open = False
            if self._working is not None:
                self._working.cancel()
            if self.run is not None:
                self.run.abandon(lost)
            self.end_streams()
            for link in links:
                await link.close()

    async def _go_on(self, followings: Sequence[pb.Following]) -> None:
        """Take the job up again, from the newest version that all partitions can go back to."""
        before = self.run
        if before is None:
            return
        if self._saver is not None:
            await self._saver.drop()
            self._saver = None
        own = self._kept(before)
        reaches = [[(snapshot.version, reach) for snapshot, reach in own]]
        for following in followings:
            is_same = (following.job_id, following.job_json) == (before.job_id, before.submitted.to_json())
            reaches.append(list(zip(following.versions, following.reaches, strict=True)) if is_same else [])
        version = newest_common(reaches)
        # What is found here was everywhere. An end that nobody was told of may have been written down nowhere.
        is_kept = before.engine.phase == "failed" or any(
            snapshot.engine is not None and snapshot.engine.phase != "train" for snapshot, _ in own[:1]
        )
        if version is None and before.engine.ended and is_kept:
            log.error("job %s has ended, and the partitions have no version of it in common", before.job_id)
            before.abandon(NotReady(f"the parameters of job {before.job_id} are gone with a partition"))
            return
        if version is None and before.engine.phase in ("train", "done", "stopped"):
            kept = self._directory is not None and before.job.server.durability != "none"
            if not kept:
                reason = f"{self._why_not}; nothing of the job is kept, so it cannot go on"
                before.engine.handle(ev.Broken(reason), time.monotonic())
                before.abandon(NotReady(f"the parameters of job {before.job_id} are gone with a partition"))
                return
            log.error("job %s begins anew: the partitions have no version of it in common", before.job_id)
        run = self._new_run(before.job_id, before.submitted)
        if version is not None:
            assert self._directory is not None
            snapshot = next(snapshot for snapshot, reach in own if snapshot.version <= version <= reach)
            run.restore(self._directory.at(snapshot, version))
        # A policy that was switched before there was a first θ stays switched.
        beginning = Snapshot(before.job_id, before.submitted, train=before.job.train)
        if version is None:
            run.restore(beginning)
        del own
        if self._directory is not None and before.job.server.durability != "none":
            # Other versions may get the numbers of those after it.
            self._directory.go_on_from(beginning, version)
        await run.begin_there(version)
        self._begin(run)
        if self._log is not None:
            await self._log.written()
        log.info("job %s goes on at version %d", run.job_id, run.engine.version)

    def _kept(self, run: Run) -> list[tuple[Snapshot, int]]:
        """Return the snapshots of a job, the newest first, and up to which version the log leads on from each."""
        if self._directory is None:
            return []
        return [(snapshot, reach) for snapshot, reach in self._directory.reaches() if snapshot.job_id == run.job_id]

    def _take_report(self, link: Link, report: pb.Report) -> None:
        if self.run is not None and link in self._links:
            self.run.take_report(link, report)

    def _new_run(self, job_id: str, job: Job) -> LeadingRun:
        first = 0 if self._directory is None else self._directory.first_epoch
        epoch = first if self.run is None else self.run.engine.epoch
        return LeadingRun(job_id, job, self.sessions, time.monotonic, epoch, self._links, self._moved)

    def _new_saver(self, run: Run, directory: StateDirectory) -> Saver:
        return LeadingSaver(run, directory, self._log)

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        assert isinstance(run, LeadingRun)
        if self._working is not None:
            self._working.cancel()
        self._working = asyncio.create_task(run.work())
        self._working.add_done_callback(self._note_end)

    def _note_end(self, working: asyncio.Task[None]) -> None:
        if not working.cancelled() and (error := working.exception()) is not None and not self._trouble.done():
            self._trouble.set_exception(error)
            # Looked at again by whoever leads, if anybody still does.
            self._trouble.exception()

    def _resume(self, snapshot: Snapshot) -> None:
        run = self._new_run(snapshot.job_id, snapshot.job)
        run.restore(snapshot)
        # Only to be told of; the job goes on, perhaps from an earlier version, when all partitions are there.
        run.abandon(Unreachable(self._why_not))
        self.run = run

    async def submit(self, job_id: str, job: Job) -> None:
        """Start a job, see `Shell.submit`.

        Raises:
            Unreachable: while a partition is away.
        """
        self._check_open()
        await super().submit(job_id, job)

    async def _prepare(self, job_id: str, job: Job) -> None:
        if self.run is not None and not self.run.is_given_up:
            # Whoever asks for θ of the job before would have the others look for it in this one.
            await self.run.make_room()
        await self._new_run(job_id, job).begin_there()
        self._check_open()

    async def settled(self) -> None:
        """Wait until all that was to be kept is on the disks of all partitions, or could not be written.

        Raises:
            Unreachable: if a partition is lost, since all then go back to what all have.
        """
        run = self.run
        if run is not None and not run.is_given_up:
            # The last event may have been handled only in part.
            await run.quiet()
        await super().settled()
        if run is not None and not run.is_given_up:
            run.check()

    def check(self, join: pb.Join) -> None:
        """Refuse a worker that has no place here, or comes while a partition is away."""
        super().check(join)
        self._check_open()

    def _check_open(self) -> None:
        if not self._is_open:
            raise Unreachable(self._why_not)

    @property
    def waits_for(self) -> str:
        """Which partition is away."""
        return "" if self._is_open else self._why_not

    def partitions(self) -> list[pb.PartitionStatus]:
        """Describe all partitions."""
        run = self.run
        parts = run.store.layout.whole.cut(self.place.partitions) if run is not None and run.store is not None else []
        own = pb.PartitionStatus(
            state="ready" if self._is_open else self._why_not,
            version=0 if run is None else run.engine.version,
            bytes_received=sum(session.received for session in self.sessions.values()),
            bytes_sent=sum(session.sent for session in self.sessions.values()),
        )
        found = [own]
        for link in self._links:
            beat = link.beat
            found.append(
                pb.PartitionStatus(
                    partition=link.partition,
                    address=link.address,
                    state="ready" if self._is_open else link.state,
                    version=beat.version,
                    bytes_received=beat.bytes_received,
                    bytes_sent=beat.bytes_sent,
                )
            )
        for status, part in zip(found, parts, strict=False):
            status.start, status.elements = part.start, part.size
        return found

    def arm(self) -> None:
        """Set the timer to the next deadline, which while a tick waits in the queue nobody knows."""
        if self.run is None or not self.run.is_to_tick:
            super().arm()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _moved(self) -> None:
        """Look at what an event has changed."""
        phase = "" if self.run is None else self.run.engine.phase
        if phase != self._phase or self._timer is None:
            self.arm()
        if phase != self._phase:
            self._phase = phase
            self._announce()
        elif self._saver is not None:
            self._saver.look()
