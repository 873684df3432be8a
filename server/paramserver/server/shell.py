"""The process's one shared state: the joined workers, the current job and the timer that wakes its engine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import numpy as np

from paramserver.server import events as ev
from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.wire import sharing
from paramserver.wire.errors import Busy, NotReady
from paramserver.wire.job import Job
from paramserver.wire.sharing import PROBE_BYTES, Segment
from paramserver.wire.v1 import paramserver_pb2 as pb


class Shell:
    """Holds what the services share; all of it is touched from the event loop only, so it needs no lock."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.run: Run | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Random bytes in shared memory: whoever sends them back has mapped it.
        self.probe: Segment | None = None
        if sharing.AVAILABLE:
            self.probe = Segment.create(PROBE_BYTES, np.dtype(np.uint8))
            self.probe.values[:] = np.frombuffer(os.urandom(PROBE_BYTES), np.uint8)
        #: Set and replaced when the job starts, ends or is asked to: wakes those who watch.
        self.changed = asyncio.Event()

    def submit(self, job_id: str, job: Job) -> None:
        """Start a job; the same submission again changes nothing.

        Raises:
            Busy: if another job is running.
        """
        if self.run is not None:
            if self.run.job_id == job_id and self.run.submitted == job:
                return
            if not self.run.engine.ended:
                raise Busy(f"job {self.run.job_id} ({self.run.job.task.use}) is running; stop it first")
        epoch = 0 if self.run is None else self.run.engine.epoch
        self.run = Run(job_id, job, self.sessions, time.monotonic, epoch)
        for session in list(self.sessions.values()):
            self.run.welcome(session)
        self.arm()
        self._announce()

    def set_policy(self, changes: Mapping[str, str | int]) -> Run:
        """Have the running job go on under another policy; returns it.

        Raises:
            JobError: if the job would be wrong; nothing is changed then.
            NotReady: if no job is running.
        """
        if self.run is None or self.run.engine.ended:
            raise NotReady("no job is running")
        self.run.set_policy(changes)
        self._announce()
        return self.run

    def stop(self, reason: str) -> int:
        """End the running job and return the version of its parameters.

        Raises:
            NotReady: if no job is running.
        """
        if self.run is None or self.run.engine.ended:
            raise NotReady("no job is running")
        self.run.feed(ev.StopAsked(reason or "a client asked for it"))
        self._announce()
        return self.run.engine.version

    def join(self, session: Session) -> None:
        """Take in a worker; an older stream under its name ends."""
        older = self.sessions.pop(session.name, None)
        if older is not None:
            older.close()
        self.sessions[session.name] = session
        if self.run is not None and not self.run.engine.ended:
            self.run.welcome(session)
            self.arm()

    def leave(self, session: Session, reason: str) -> None:
        """Forget a worker whose stream ended, unless a newer stream has its name."""
        if self.sessions.get(session.name) is not session:
            return
        del self.sessions[session.name]
        if self.run is not None:
            self.run.feed(ev.Left(session.name, reason))
            self._announce()

    def take(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        """Act on a message of a joined worker."""
        if message.HasField("share"):
            session.shares_memory = self.probe is not None and message.share.proof == self.probe.values.tobytes()
            return
        if self.run is None or self.sessions.get(session.name) is not session:
            return
        engine = self.run.engine
        phase = engine.phase
        self.run.take(session, message, payload)
        if engine.phase != phase:
            self.arm()
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
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        if self.run is not None:
            self.run.feed(ev.Tick())
            if self.run.engine.ended:
                self._announce()
        self.arm()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
