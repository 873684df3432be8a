"""Runs one job from submission to result, on processes of this machine or on a server that runs already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paramserver.client.connection.client import Client, Point, Update
from paramserver.client.evaluate import evaluate, open_test
from paramserver.client.fingerprint import theta_sha256
from paramserver.client.launch import LocalCluster
from paramserver.client.rundirectory import RunDirectory
from paramserver.wire.errors import (
    DataError,
    JobError,
    JobFailed,
    NotReady,
    ParamserverError,
    RequestError,
    TaskError,
)
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.batches import Batch
from paramserver.worker.tasks import load_task

#: Called with every update of a run.
Progress = Callable[[Update], None]

#: A worker names the kind of its failure, so that a wrong request is told from a run that went wrong.
_REQUEST_ERRORS: dict[str, type[RequestError]] = {kind.__name__: kind for kind in (JobError, DataError, TaskError)}
_KIND = re.compile(rf"\b({'|'.join(_REQUEST_ERRORS)}): ")


@dataclass(frozen=True)
class Result:
    """What a run has come to."""

    #: `done`, or `stopped` if somebody stopped the job before its end.
    status: str
    #: One sentence on why the job ended.
    reason: str
    #: The parameters by name.
    theta: dict[str, NDArray[Any]]
    #: One point for each step that all shards made.
    history: list[Point]
    #: The task's metrics on the test data, each named `test_…`; empty if the job names none.
    metrics: dict[str, float]
    #: Steps that every shard made.
    steps: int
    #: Seconds of training, without start-up and evaluation.
    seconds: float
    #: See `paramserver.client.fingerprint`.
    theta_sha256: str
    #: The run directory.
    run: Path

    @property
    def loss(self) -> float | None:
        """The training loss at the end; None if not even one step was made."""
        return self.history[-1].loss if self.history else None

    def summary(self) -> dict[str, Any]:
        """Return everything but parameters and history, as `result.json` and `paramserver train --json` have it."""
        return {
            "status": self.status,
            "reason": self.reason,
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": self.loss,
            "metrics": self.metrics,
            "theta_sha256": self.theta_sha256,
            "run": str(self.run),
        }


def train(
    job: Job,
    workers: int = 2,
    servers: int = 1,
    server: str | None = None,
    run: str | Path | None = None,
    base: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train a job and return what it learnt; nothing that was started is left running.

    Args:
        job: what to train.
        workers: worker processes to start on this machine; without effect if `server` is given.
        servers: server processes to start; 1 for now.
        server: address of a running server, whose workers then do the job.
        run: directory for everything about the run, empty or new; by default `runs/<timestamp>-<task>`.
        base: where relative paths of the job start, for local workers and for the test data; by default the
            working directory.
        progress: called with every update.

    Raises:
        RequestError: if the job, its data or its task are wrong; no run directory is left then.
        JobFailed: if the job ran and failed; the run directory tells how far it came.
        Busy: if the running server has another job.
        Unreachable: if the running server does not answer.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, allowed are 1 and more")
    if servers != 1:
        raise RequestError(f"servers is {servers}, allowed is 1")
    root = Path(base or ".").resolve()
    if job.data.test or not server:
        load_task(job.task.use, job.task.options, root)
    directory = RunDirectory(job, run)
    try:
        with ExitStack() as stack:
            cluster = None
            if server is None:
                cluster = stack.enter_context(LocalCluster(workers, directory.logs, root))
            client = stack.enter_context(Client(server or cluster.address))  # type: ignore[union-attr]
            training = _Training(job, client, directory, root)
            return training.run(progress, cluster.check if cluster else None)
    except (RequestError, ParamserverError) as error:
        if not isinstance(error, JobFailed):
            directory.discard()
        raise


class _Training:
    """One job on one server."""

    def __init__(self, job: Job, client: Client, directory: RunDirectory, base: Path) -> None:
        self._job = job
        self._client = client
        self._directory = directory
        self._base = base
        self._history: list[Point] = []
        self._test: Batch | None = None

    def run(self, progress: Progress | None, check: Callable[[], None] | None) -> Result:
        self._client.submit(self._job)
        with self._stopped_on_error():
            try:
                status = self._follow(progress, check)
            except JobFailed as failure:
                self._record_failure(str(failure), pb.StatusReply())
                raise
        if status.state == "failed":
            kind = _KIND.search(status.reason)
            if kind:
                raise _REQUEST_ERRORS[kind[1]](status.reason.replace(kind[0], "", 1))
            self._record_failure(status.reason, status)
            raise JobFailed(status.reason)
        return self._conclude(status)

    def _follow(self, progress: Progress | None, check: Callable[[], None] | None) -> pb.StatusReply:
        status = pb.StatusReply()
        for update in self._client.watch(check):
            status = update.status
            self._history += update.points
            self._directory.append(update.points)
            if progress is not None:
                progress(update)
            # As early as can be: test data that do not fit should not come to light after hours of training.
            if self._test is None and self._job.data.test and status.HasField("census"):
                self._test = open_test(self._job, status, self._base)
        return status

    def _conclude(self, status: pb.StatusReply) -> Result:
        try:
            theta, _ = self._client.pull()
        except NotReady:
            theta = {}
        metrics = {}
        if theta and self._test is not None:
            metrics = evaluate(self._job, theta, self._test, self._base)
        result = Result(
            status=status.state,
            reason=status.reason,
            theta=theta,
            history=self._history,
            metrics=metrics,
            steps=min(status.clock, default=0),
            seconds=status.seconds,
            theta_sha256=theta_sha256(theta) if theta else "",
            run=self._directory.path,
        )
        self._directory.finish(self._job, self._history, theta, result.summary())
        return result

    def _record_failure(self, reason: str, status: pb.StatusReply) -> None:
        last = self._history[-1] if self._history else None
        summary = {
            "status": "failed",
            "reason": reason,
            "steps": min(status.clock, default=last.step if last else 0),
            "seconds": status.seconds or (last.seconds if last else 0.0),
            "loss": last.loss if last else None,
            "metrics": {},
            "theta_sha256": "",
            "run": str(self._directory.path),
        }
        self._directory.finish(self._job, self._history, {}, summary)

    @contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # What this client has submitted must not go on without it; the first error is the one to report.
            with suppress(ParamserverError):
                self._client.stop(f"the client gave up: {type(error).__name__}: {error}".rstrip(": "))
            raise
