"""Runs one job from submission to result, on processes of this machine or on a server that runs already."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paramserver.client.connection.client import Client, Point, Update
from paramserver.client.evaluate import evaluate, open_test
from paramserver.client.launch import START_S, LocalCluster, check_counts, check_transport
from paramserver.client.rundirectory import Origin, RunDirectory
from paramserver.client.supervisor import MAX_RESTARTS
from paramserver.wire.errors import (
    Busy,
    DataError,
    JobError,
    JobFailed,
    NotReady,
    ParamserverError,
    RequestError,
    TaskError,
    Unreachable,
)
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.job import Job
from paramserver.wire.tables import check_job
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.batches import Batch
from paramserver.worker.tasks import declared_tables, load_task

#: A server that has taken a job may be away for so long, which is as long as workers look for it: on a busy machine
#: reading a snapshot and compiling take their time.
ABSENT_S = 60.0

#: Called with every update of a run.
Progress = Callable[[Update], None]

#: A worker names the kind of its failure, so that a wrong request is told from a run that went wrong.
_REQUEST_ERRORS: dict[str, type[RequestError]] = {kind.__name__: kind for kind in (JobError, DataError, TaskError)}
_KIND = re.compile(rf"\b({'|'.join(_REQUEST_ERRORS)}): ")


@dataclass(frozen=True)
class Result:
    """What a run has come to."""

    #: `done`, or `stopped` if somebody ended the job early; in a record also `failed` and `interrupted`.
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
    #: See `paramserver.wire.fingerprint`.
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
    servers: int | None = None,
    server: str | None = None,
    run: str | Path | None = None,
    base: str | Path | None = None,
    progress: Progress | None = None,
    restarts: int = MAX_RESTARTS,
    started: Callable[[LocalCluster], None] | None = None,
    transport: str = "auto",
    proxy_seed: int | None = None,
) -> Result:
    """Train a job and return what it learnt; nothing that was started is left running.

    Args:
        job: what to train.
        workers: worker processes to start on this machine; without effect if `server` is given.
        servers: server processes to start, which share the parameters; `server.partitions` of the job if left out. With
            `server` set, it is how many servers that job is for.
        server: address of a running server, whose workers then do the job.
        run: directory for everything about the run, empty or new; by default `runs/<timestamp>-<task>`.
        base: where relative paths of the job start, for local workers and for the test data; by default the
            working directory.
        progress: called with every update.
        restarts: how often each process on this machine is started again if it dies; the server only if the job is
            one that its state directory keeps.
        started: called with the processes on this machine once they run.
        transport: of the workers on this machine, see `LocalCluster`; without effect if `server` is given.
        proxy_seed: see `LocalCluster`.

    Raises:
        RequestError: if the job, its data or its task are wrong; no run directory is left then.
        JobFailed: if the job ran and failed; the run directory tells how far it came.
        Busy: if the running server has another job.
        Unreachable: if the running server does not answer.
    """
    check_counts(workers, 1 if servers is None else servers)
    check_transport(transport)
    if servers is not None and servers != job.server.partitions:
        tables = job.model_dump()
        tables["server"]["partitions"] = servers
        job = Job.from_dict(tables)
    root = Path(base or ".").resolve()
    if job.data.test or not server:
        task = load_task(job.task.use, job.task.options, root)
        if declared_tables(task):
            check_job(job)
    directory = RunDirectory(job, run)
    job_id = uuid.uuid4().hex[:12]
    training = _Training(job, job_id, directory, root)
    with _recorded(training, directory.discard):
        if server is not None:
            with Client(server) as client:
                return training.on_server(client, progress)
        directory.note(Origin(job_id, str(root), workers))
        return training.here(workers, restarts, progress, started, transport, proxy_seed)


def resume(
    run: str | Path,
    workers: int | None = None,
    progress: Progress | None = None,
    restarts: int = MAX_RESTARTS,
    transport: str = "auto",
) -> Result:
    """Go on with a run that was started on this machine, from its last snapshot, and return what it learnt.

    A run that had reached its end gives its result once more. One that kept nothing begins anew.

    Args:
        run: the run directory.
        workers: worker processes to start; as many as before if left out.
        progress: called with every update, which tell the whole history.
        restarts: as in `train`.
        transport: as in `train`.

    Raises:
        RequestError: if the directory holds no run of this machine, or what it holds is broken.
        JobFailed: if the job failed.
    """
    directory, job, origin = RunDirectory.reopen(run)
    count = origin.workers if workers is None else workers
    check_counts(count)
    check_transport(transport)
    root = Path(origin.base)
    load_task(job.task.use, job.task.options, root)
    training = _Training(job, origin.job_id, directory, root)
    with _recorded(training, lambda: None):
        return training.here(count, restarts, progress, transport=transport)


@contextmanager
def _recorded(training: _Training, discard: Callable[[], None]) -> Iterator[None]:
    """Write down how a run ended that did not reach its end, or `discard` one that never began."""
    try:
        yield
    except KeyboardInterrupt:
        training.record("interrupted", "interrupted by the user")
        raise
    except ParamserverError as error:
        if training.begun or isinstance(error, JobFailed):
            training.record("failed", str(error))
        else:
            discard()
        raise
    except BaseException as error:
        training.record("failed", f"{type(error).__name__}: {error}")
        raise


class _Training:
    """One job on one server, and its record in the run directory."""

    def __init__(self, job: Job, job_id: str, directory: RunDirectory, base: Path) -> None:
        self._job = job
        self._job_id = job_id
        self._directory = directory
        self._base = base
        self._history: list[Point] = []
        self._test: Batch | None = None

    @property
    def begun(self) -> bool:
        """Whether a step was made."""
        return bool(self._history)

    def here(
        self,
        workers: int,
        restarts: int,
        progress: Progress | None,
        started: Callable[[LocalCluster], None] | None = None,
        transport: str = "auto",
        proxy_seed: int | None = None,
    ) -> Result:
        """Run on processes of this machine, which are started again when they die."""
        state = self._directory.state if self._job.server.durability != "none" else None
        with (
            LocalCluster(
                workers,
                self._directory.logs,
                self._base,
                state,
                restarts,
                transport,
                proxy_seed,
                servers=self._job.server.partitions,
            ) as cluster,
            Client(cluster.address, START_S, cluster.check) as client,
        ):
            if started is not None:
                started(cluster)
            return self.run(client, progress)

    def on_server(self, client: Client, progress: Progress | None) -> Result:
        """Run on a server that outlives this client: what was submitted must not go on without it."""
        try:
            return self.run(client, progress)
        except (JobFailed, Unreachable, Busy):
            raise
        except BaseException as error:
            # The first error is the one to report, whether or not the server can still be told.
            with suppress(ParamserverError):
                client.stop(f"the client gave up: {type(error).__name__} {error}".rstrip())
            raise

    def run(self, client: Client, progress: Progress | None) -> Result:
        """Submit the job, follow it to its end and conclude."""
        client.submit(self._job, self._job_id)
        self._directory.begin_history()
        status = self._follow(client, progress)
        if status.state == "failed":
            kind = _KIND.search(status.reason)
            if kind:
                raise _REQUEST_ERRORS[kind[1]](status.reason.replace(kind[0], "", 1))
            raise JobFailed(status.reason)
        try:
            theta, _ = client.pull()
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

    def record(self, status: str, reason: str) -> None:
        """Write down how far a run came that did not reach its end."""
        last = self._history[-1] if self._history else Point(0, 0, 0.0, 0.0, 0)
        result = Result(
            status=status,
            reason=reason,
            theta={},
            history=self._history,
            metrics={},
            steps=last.step,
            seconds=last.seconds,
            theta_sha256="",
            run=self._directory.path,
        )
        self._directory.finish(self._job, self._history, {}, result.summary())

    def _follow(self, client: Client, progress: Progress | None) -> pb.StatusReply:
        status = pb.StatusReply()
        for update in client.watch(absent_s=ABSENT_S):
            status = update.status
            self._history += update.points
            self._directory.append(update.points)
            if progress is not None:
                progress(update)
            # As early as can be: test data that do not fit should not come to light after hours of training.
            if self._test is None and self._job.data.test and status.HasField("census"):
                self._test = open_test(self._job, status, self._base)
        return status
