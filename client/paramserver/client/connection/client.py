"""The client of a running server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import numpy as np

from paramserver.client.connection.address import check_address
from paramserver.client.connection.calls import CHANNEL_OPTIONS, Patience, persist, replies
from paramserver.client.connection.tables import PulledTables
from paramserver.client.evaluate import evaluate, open_test
from paramserver.wire.errors import JobFailed, NotReady, ProtocolError, RequestError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, read_values
from paramserver.wire.tables import tables_from_proto
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1.paramserver_pb2_grpc import ControlStub

#: States that a job does not leave.
ENDED = frozenset({"done", "failed", "stopped"})


class Point(NamedTuple):
    """The job when every shard had made `step` steps.

    `version` counts updates of θ, `seconds` run since training began, `loss` is the sample-weighted mean over the
    shards, `samples` counts the examples of all applied contributions.
    """

    step: int
    version: int
    seconds: float
    loss: float
    samples: int


class Update(NamedTuple):
    """What a watcher learns at once: the status, and the points of the history that are new."""

    status: pb.StatusReply
    points: list[Point]


class AppliedContribution(NamedTuple):
    """A contribution of an update of θ."""

    shard: int
    step: int
    worker: str
    samples: int
    #: Mean over the samples.
    loss: float
    #: The version of θ that the gradient was computed at.
    computed_at: int


class Origin(NamedTuple):
    """Where a version of θ comes from."""

    version: int
    contributions: list[AppliedContribution]
    #: Empty if it is not known.
    theta_sha256: str


class Checkpoint(NamedTuple):
    """A snapshot that the server has written: the version and hash of its θ, and the file on the server's machine.

    Of several servers the hash is empty, since nobody has seen the whole of θ, and the file is the coordinator's.
    """

    version: int
    theta_sha256: str
    file: str


class Client:
    """A connection to the server at `address`, which is `host:port` or `unix:PATH`.

    Every call waits at most `timeout_s` seconds for a server that does not answer, and outlasts one that goes away
    and comes back within that time. While it does not answer, `check` is called again and again; it raises to end the
    wait. To be closed, or used as a context manager.

    Raises:
        RequestError: if the address is malformed.
        Unreachable: from every call, if no server answers in time.
    """

    def __init__(self, address: str, timeout_s: float = 10.0, check: Callable[[], None] | None = None) -> None:
        self.address = check_address(address)
        self._check = check
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._control: Any = ControlStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end."""
        self._channel.close()

    def submit(self, job: Job, job_id: str | None = None) -> str:
        """Start a job and return its id; submitting twice under one id starts it once.

        Raises:
            RequestError: if the server does not take the job.
            Busy: if it runs another one.
        """
        request = pb.SubmitRequest(job_id=job_id or uuid.uuid4().hex[:12], job_json=job.to_json())
        return str(self._call(self._control.Submit, request).job_id)

    def status(self) -> pb.StatusReply:
        """Return the state of the server and its job, which is empty (no `job_id`) before the first."""
        reply: pb.StatusReply = self._call(self._control.Status, pb.StatusRequest())
        return reply

    def watch(self, check: Callable[[], None] | None = None, absent_s: float | None = None) -> Iterator[Update]:
        """Yield the progress of the current job until it has ended; the last update tells how. Once the job has ended,
        further updates may come that bring the rest of a long history.

        Every point of the history comes once, in order, also when the server goes away and comes back.

        Args:
            check: called after every update and whenever the server does not answer; raises to end the watch.
            absent_s: seconds that a server which has answered may then be silent; `timeout_s` if left out.

        Raises:
            NotReady: if no job was submitted.
            JobFailed: if the server came back without the job.
        """
        check = check or self._check
        patience = Patience(self.address, self._timeout_s, check)
        job_id, step = "", 0
        while True:
            heard = ended = False
            try:
                call = self._control.Watch(pb.WatchRequest(after_step=step))
                for reply in replies(call, patience.left_s if not job_id else patience.timeout_s):
                    patience.reset(absent_s)
                    heard = True
                    job_id = job_id or reply.status.job_id
                    if reply.status.job_id != job_id:
                        raise JobFailed(f"the server at {self.address} came back without job {job_id}")
                    points = [_point(point) for point in reply.points if point.step > step]
                    step = points[-1].step if points else step
                    ended = reply.status.state in ENDED
                    yield Update(reply.status, points)
                    if check is not None and not ended:
                        check()
                if ended:
                    return
                patience.rest()
            except grpc.RpcError as failure:
                if heard:
                    # Silence has used the patience up, but only a new stream shows whether the server is there.
                    patience.reset()
                try:
                    patience.endure(failure)
                except NotReady:
                    if not job_id:
                        raise
                    raise JobFailed(f"the server at {self.address} came back without job {job_id}") from None

    def pull(self) -> tuple[dict[str, Array], int]:
        """Return the parameters by name, and their version.

        A table `t` stands there as `t.keys`, int64, rising, shape (n,), and `t.rows`, shape (n, dim).

        Raises:
            NotReady: if they are not initialised yet.
            ProtocolError: if what comes is not whole.
        """
        patience = Patience(self.address, self._timeout_s, self._check)
        return persist(lambda _: self._pull_once(patience), patience)

    def evaluate(self, base: str | Path | None = None) -> dict[str, float]:
        """Return the metrics of the current parameters on the job's test data, each named `test_…`.

        Args:
            base: where relative paths of the job start; the working directory if left out.

        Raises:
            RequestError: if the job names no test data, or the data or the task is not found here.
            NotReady: if there are no parameters yet.
        """
        status = self.status()
        if not status.job_id:
            raise NotReady(f"the server at {self.address} has no job")
        job = Job.from_json(status.job_json)
        if not job.data.test:
            raise RequestError("the job names no test data: 'data.test' is empty")
        theta, _ = self.pull()
        root = Path(base or ".").resolve()
        return evaluate(job, theta, open_test(job, self.status(), root), root)

    def set_policy(
        self,
        mode: str | None = None,
        *,
        quorum: int | None = None,
        staleness: int | None = None,
        max_delay: int | None = None,
    ) -> Job:
        """Have the running job go on under another policy, and return the job as it is then.

        What is left out stays as it is. θ does not change; what is being computed is computed again.

        Raises:
            RequestError: if a bound is wrong; nothing is changed then.
            NotReady: if no job is running.
        """
        for name, value in (("quorum", quorum), ("staleness", staleness), ("max_delay", max_delay)):
            if value is not None and not 0 <= value < 2**63:
                raise RequestError(f"{name} = {value}: allowed are 0 and above")
        request = pb.SetPolicyRequest(mode=mode, quorum=quorum, staleness=staleness, max_delay=max_delay)
        return Job.from_json(self._call(self._control.SetPolicy, request).job_json)

    def checkpoint(self) -> Checkpoint:
        """Have the server write a snapshot of its job now, and return once that is on its disk.

        Raises:
            NotReady: if there are no parameters yet.
            RequestError: if the server keeps none for the job, or cannot write it.
        """
        reply = self._call(self._control.Snapshot, pb.SnapshotRequest())
        return Checkpoint(reply.version, reply.theta_sha256, reply.file)

    def origin(self, version: int) -> Origin:
        """Return which contributions made a version of θ.

        Raises:
            NotReady: if no job was submitted.
            RequestError: if it is not known.
        """
        reply = self._call(self._control.Provenance, pb.ProvenanceRequest(version=version))
        made = [
            AppliedContribution(c.shard, c.step, c.worker, c.samples, c.loss, c.computed_at)
            for c in reply.contributions
        ]
        return Origin(version, made, reply.theta_sha256)

    def stop(self, reason: str = "stopped by a client") -> int:
        """End the running job and return the version of its parameters, which stay readable.

        Raises:
            NotReady: if no job is running.
        """
        return int(self._call(self._control.Stop, pb.StopRequest(reason=reason)).version)

    def _call(self, method: Any, request: Any) -> Any:
        return persist(
            lambda left_s: method(request, timeout=left_s),
            Patience(self.address, self._timeout_s, self._check),
        )

    def _pull_once(self, patience: Patience) -> tuple[dict[str, Array], int]:
        layout, version, flat, filled = None, 0, np.empty(0), 0
        tables: PulledTables | None = None
        for reply in replies(self._control.Pull(pb.PullRequest()), patience.left_s):
            patience.reset()
            if layout is None:
                if reply.dtype not in ("float32", "float64"):
                    raise ProtocolError(f"parameters have dtype {reply.dtype!r}, allowed are float32 and float64")
                layout, version = Layout.from_proto(reply.layout.tensors, reply.dtype), reply.version
                flat = np.empty(layout.size, layout.dtype)
                described = tables_from_proto(reply.layout.tables, (tensor.name for tensor in layout.tensors))
                tables = PulledTables(described, layout.dtype)
            if reply.HasField("rows"):
                assert tables is not None
                tables.take(reply.rows, memoryview(reply.payload))
                continue
            if reply.offset != filled:
                raise ProtocolError(f"a chunk of the parameters starts at {reply.offset}, expected {filled}")
            values = read_values(memoryview(reply.payload), layout.dtype, filled, layout.size)
            flat[filled : filled + values.size] = values
            filled += values.size
        if layout is None or filled != layout.size:
            raise ProtocolError(f"the parameters end after {filled} of {layout.size if layout else 'unknown'} values")
        assert tables is not None
        return layout.views(flat) | tables.tensors(), version


def _point(point: pb.Point) -> Point:
    return Point(point.step, point.version, point.seconds, point.loss, point.samples)
