"""The process's one shared state: the joined workers, the current job and the timer that wakes its engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable, Mapping

from paramserver.server import events as ev
from paramserver.server.log import Log
from paramserver.server.place import ALONE, Place
from paramserver.server.provenance import Provenance, origin_of, remove
from paramserver.server.replay import remove_segments
from paramserver.server.run import Run
from paramserver.server.saver import Saver
from paramserver.server.session import Session
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import Saved, StateDirectory
from paramserver.wire import sharing
from paramserver.wire.errors import Busy, NotReady, RequestError, StateError
from paramserver.wire.job import Job
from paramserver.wire.memory import give_back
from paramserver.wire.v1 import paramserver_pb2 as pb

log = logging.getLogger(__name__)

#: A timer that is so late tells that this process stood still (stopped, or busy with one long update) and has yet to
#: read what came meanwhile, …
LATE_S = 0.2
#: … for which it then has this time, before it judges who was silent.
CATCH_UP_S = 0.1


class Shell:
    """Holds what the services share; all of it is touched from the event loop only, so it needs no lock.

    With a state directory the job that was found there goes on at once.
    """

    def __init__(self, directory: StateDirectory | None = None, place: Place = ALONE) -> None:
        self.place = place
        #: Names the connection of several servers, see `Welcome`.
        self.cluster = b""
        self.sessions: dict[str, Session] = {}
        self.run: Run | None = None
        self._directory = directory
        #: Held from the look at the job before to the start of the next.
        self._submitting = asyncio.Lock()
        #: None if nothing of the job is kept.
        self._saver: Saver | None = None
        #: None if contributions are not logged.
        self._log: Log | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Random bytes in shared memory: whoever sends them back has mapped it.
        self.probe = sharing.make_probe()
        #: Set and replaced when the job starts, ends or is asked to: wakes those who watch.
        self.changed = asyncio.Event()
        snapshot = directory.take_newest() if directory is not None else None
        if snapshot is not None:
            self._resume(snapshot)

    async def submit(self, job_id: str, job: Job) -> None:
        """Start a job; the same submission again changes nothing. A job that is to be kept is on the disk by then.

        Raises:
            Busy: if another job is running.
            StateError: if the job cannot be kept as it asks for.
        """
        if job.server.partitions != self.place.partitions:
            raise RequestError(
                f"server.partitions = {job.server.partitions}, but this is {self.place}: "
                f"allowed here is {self.place.partitions}"
            )
        async with self._submitting:
            if self.run is not None:
                if self.run.job_id == job_id and self.run.submitted == job:
                    return
                if not self.run.engine.ended:
                    raise Busy(f"job {self.run.job_id} ({self.run.job.task.use}) is running; stop it first")
            # The end of the job before must not be written over this one's beginning.
            await self.close()
            await self._prepare(job_id, job)
            replaces = self.run is not None
            self._start(job_id, job)
            if replaces:
                # The parts of a job refer to each other; the memory of the one before shall not wait for the collector.
                gc.collect()
                give_back()

    async def _prepare(self, job_id: str, job: Job) -> None:
        """Do what has to be done before a job starts."""

    def _start(self, job_id: str, job: Job) -> None:
        if self._directory is not None:
            # No job is running, so that nobody is kept waiting by the disk.
            if job.server.durability == "none":
                self._directory.clear()
                remove_segments(self._directory.path)
                remove(self._directory.path)
            else:
                self._directory.save(Snapshot(job_id, job))
        run = self._new_run(job_id, job)
        self._begin(run)
        # From now on the shards wait for workers.
        run.feed(ev.Tick())
        for session in list(self.sessions.values()):
            run.welcome(session)
        self.arm()
        self._announce()

    async def set_policy(self, changes: Mapping[str, str | int]) -> Run:
        """Have the running job go on under another policy; returns it.

        Raises:
            JobError: if the job would be wrong; nothing is changed then.
            NotReady: if no job is running.
        """
        if self.run is None or self.run.engine.ended:
            raise NotReady("no job is running")
        run = self.run
        run.set_policy(changes)
        await run.quiet()
        self._announce()
        return run

    @property
    def durability(self) -> str:
        """What outlives this process, in words."""
        if self._saver is not None:
            return self._saver.describe()
        if self.run is None:
            return ""
        why = "as the job asks for" if self._directory is not None else "the server has no state directory (--state)"
        return f"none: nothing of this job outlives the server process; {why}"

    async def save(self) -> Saved:
        """Take a snapshot of the job now.

        Raises:
            NotReady: if there are no parameters.
            StateError: if the server keeps no snapshots of the job, or cannot write one.
        """
        if self.run is None:
            raise NotReady("no job was submitted")
        if self._saver is None:
            raise StateError(f"durability is {self.durability}")
        return await self._saver.save()

    async def caught_up(self) -> None:
        """Wait until all that is counted now outlives this process, if the job asks for that much.

        Raises:
            StateError: if the log cannot be written.
        """
        if self._log is not None:
            await self._log.caught_up()

    async def origin(self, version: int) -> tuple[ev.Apply, str]:
        """Return which contributions made a version, and the hash of its θ; empty if that was not written down.

        Raises:
            NotReady: if no job was submitted.
            RequestError: if it is not known.
        """
        if self.run is None:
            raise NotReady("no job was submitted")
        if self._saver is None or self._directory is None or self.run.provenance is None:
            raise RequestError("nothing is known of this job's versions: the server does not write down what made them")
        await self.caught_up()
        await self._saver.noted()
        return await asyncio.get_running_loop().run_in_executor(None, origin_of, self._directory.path, version)

    async def settled(self) -> None:
        """Wait until all that was to be kept is on the disk, or has failed."""
        if self._saver is not None:
            await self._saver.settled()

    async def close(self) -> None:
        """Save what is new, before the process ends."""
        saver, self._saver = self._saver, None
        if saver is not None:
            await saver.close()

    def _new_run(self, job_id: str, job: Job) -> Run:
        first = 0 if self._directory is None else self._directory.first_epoch
        epoch = first if self.run is None else self.run.engine.epoch
        return Run(job_id, job, self.sessions, time.monotonic, epoch)

    def _begin(self, run: Run) -> None:
        self.run = run
        durability, directory = run.job.server.durability, self._directory
        self._saver = run.log = self._log = None
        if durability != "none" and directory is not None:
            remove_segments(directory.path, but_of=directory.tag(run.job_id, run.submitted))
            if durability == "log":
                run.log = self._log = Log(run, directory, self.place.partitions - 1)
            # A job that takes versions back has no use for where they came from, and hashes need all of θ.
            if not run.job.wire.keeps_back and self.place.partitions == 1:
                version = run.engine.version
                run.provenance = Provenance(directory.path, run.job_id, run.submitted, version, run.job.train)
                for update in directory.replayed:
                    run.provenance.applied(update)
            directory.replayed = []
            self._saver = self._new_saver(run, directory)
        if self._saver is None:
            log.warning("durability is %s", self.durability)

    def _new_saver(self, run: Run, directory: StateDirectory) -> Saver:
        return Saver(run, directory, self._log)

    def _resume(self, snapshot: Snapshot) -> None:
        run = self._new_run(snapshot.job_id, snapshot.job)
        run.restore(snapshot)
        self._begin(run)
        self.arm()
        log.info("job %s is in its %s phase at version %d", run.job_id, run.engine.phase, run.engine.version)

    async def stop(self, reason: str) -> int:
        """End the running job and return the version of its parameters.

        Raises:
            NotReady: if no job is running.
        """
        if self.run is None or self.run.engine.ended:
            raise NotReady("no job is running")
        run = self.run
        run.feed(ev.StopAsked(reason or "a client asked for it"))
        await run.quiet()
        self._announce()
        return run.engine.version

    def check(self, join: pb.Join) -> None:
        """Refuse a worker that has no place here.

        Raises:
            ProtocolError: if it takes this server for another.
        """
        self.place.check(join)

    @property
    def waits_for(self) -> str:
        """What the server itself waits for, in words; mostly nothing."""
        return ""

    def partitions(self) -> list[pb.PartitionStatus]:
        """Describe the servers that share θ, if there are several."""
        return []

    def join(self, session: Session) -> None:
        """Take in a worker; an older stream of the same process ends.

        Raises:
            Busy: if another process has the name and is alive.
        """
        older = self.sessions.get(session.name)
        if older is not None:
            if not older.is_of_same_process(session) and self._is_alive(session.name):
                raise Busy(
                    f"worker name {session.name!r} is taken by process {older.join.pid} on host {older.join.host!r}, "
                    "which is alive; give every worker a name of its own"
                )
            del self.sessions[session.name]
            older.close()
        self.sessions[session.name] = session
        if self.run is not None and not self.run.engine.ended:
            self.run.welcome(session)
            self.arm()

    def _is_alive(self, name: str) -> bool:
        """Say whether a connected worker is not known to be silent; without a job nobody listens for that."""
        worker = None if self.run is None else self.run.engine.workers.get(name)
        return worker is None or worker.alive

    def leave(self, session: Session, reason: str) -> None:
        """Forget a worker whose stream ended, unless a newer stream has its name."""
        if self.sessions.get(session.name) is not session:
            return
        del self.sessions[session.name]
        if self.run is not None:
            self.run.feed(ev.Left(session.name, reason))
            self._announce()

    def end_streams(self) -> None:
        """Let every worker's stream end; the workers then look for the server to come back."""
        for session in self.sessions.values():
            session.close()

    def take(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        """Act on a message of a joined worker."""
        if message.HasField("share"):
            session.shares_memory = self.probe is not None and message.share.proof == self.probe.values.tobytes()
            return
        self._tell(session, lambda run: run.take(session, message, payload))

    def hear(self, session: Session) -> None:
        """Take note that a message of a joined worker is on its way."""
        self._tell(session, lambda run: run.hear(session))

    def _tell(self, session: Session, act: Callable[[Run], None]) -> None:
        """Let the run, if there is one, act on what a joined worker did."""
        if self.run is None or self.sessions.get(session.name) is not session:
            return
        engine = self.run.engine
        phase = engine.phase
        act(self.run)
        # When every worker was silent there was no deadline left; the first that wakes up brings one.
        if engine.phase != phase or self._timer is None:
            self.arm()
        if engine.phase != phase:
            self._announce()

    def arm(self) -> None:
        """Set the timer to the engine's next deadline; deadlines that move away are seen when it fires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.run is None:
            return
        deadline = self.run.engine.next_deadline()
        if deadline < float("inf"):
            delay = max(0.0, deadline - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, self._tick, loop.time() + delay)

    def _tick(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() > due + LATE_S:
            self._timer = loop.call_later(CATCH_UP_S, self._tick, math.inf)
            return
        if self.run is not None:
            self.run.feed(ev.Tick())
            if self.run.engine.ended:
                self._announce()
        self.arm()

    def _announce(self) -> None:
        if self._saver is not None:
            self._saver.look()
        self.changed.set()
        self.changed = asyncio.Event()
