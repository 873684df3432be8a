"""The clients' service: submit, status, watch, pull, stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from paramserver.server.shell import Shell
from paramserver.server.status import describe
from paramserver.wire.errors import NotReady, ParamserverError, RequestError, status_code
from paramserver.wire.job import Job
from paramserver.wire.tables import tables_to_proto
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

#: How often a watcher hears of a running job.
WATCH_EVERY_S = 0.2

SERVICE = pb.DESCRIPTOR.services_by_name["Control"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(rpc.ControlServicer):
    """Answers clients from the shell's state."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitReply:
        """Start a job."""
        try:
            if not 1 <= len(request.job_id) <= 256:
                raise RequestError(f"a job_id has 1 to 256 characters, this one {len(request.job_id)}")
            await self._shell.submit(request.job_id, Job.from_json(request.job_json))
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
        return pb.SubmitReply(job_id=request.job_id)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: ARG002
        """Say what the server does."""
        return describe(self._shell)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchReply]:
        """Stream the status and the new points until the job that runs now has ended."""
        run = self._shell.run
        if run is None:
            await context.abort(status_code(NotReady()), "no job was submitted")
            return
        step = request.after_step
        while True:
            ended = run.engine.ended or self._shell.run is not run
            if ended:
                # Whoever is told that the job has ended may rely on it.
                try:
                    await self._shell.settled()
                except ParamserverError as error:
                    await context.abort(status_code(error), str(error))
            changed = self._shell.changed
            points = run.history.after(step)
            if run.log is not None and not run.engine.ended:
                points = [point for point in points if point.version <= run.log.safe]
            if points:
                step = points[-1].step
            yield pb.WatchReply(status=describe(self._shell), points=points)
            if ended and not points:
                return
            if not ended:
                await _wait(changed, WATCH_EVERY_S)

    async def Pull(self, request: pb.PullRequest, context: Context) -> AsyncIterator[pb.PullReply]:  # noqa: ARG002
        """Stream θ of one version."""
        run = self._shell.run
        if run is None or run.store is None or not run.is_initialised:
            reason = "no job was submitted" if run is None else "the parameters are not initialised yet"
            await context.abort(status_code(NotReady()), reason)
            return
        if not run.store.is_whole:
            await context.abort(status_code(NotReady()), f"the parameters are in part changed: {run.engine.reason}")
            return
        layout = run.store.layout.whole
        start = 0
        try:
            captured = await run.capture()
            described = pb.Layout(tensors=layout.to_proto())
            if run.tables is not None:
                described.tables.extend(tables_to_proto(run.tables.tables))
            if run.log is not None:
                await run.log.caught_up()
            async for piece in captured.theta:
                yield pb.PullReply(
                    job_id=run.job_id,
                    layout=described if start == 0 else None,
                    dtype=run.job.train.dtype,
                    version=captured.version,
                    offset=start // layout.dtype.itemsize,
                    payload=bytes(piece),
                )
                start += len(piece)
            for number, table in enumerate(captured.tables):
                async for rows in table:
                    chunk, payload = rows.to_proto(number)
                    yield pb.PullReply(rows=chunk, payload=payload)
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.SetPolicyReply:
        """Change the policy of the running job."""
        changes = {field.name: value for field, value in request.ListFields()}
        try:
            run = await self._shell.set_policy(changes)
            # Whoever got an answer may rely on it, also after a restart.
            await self._shell.settled()
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
            raise
        return pb.SetPolicyReply(version=run.engine.version, job_json=run.job.to_json())

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.StopReply:
        """End the running job."""
        try:
            version = await self._shell.stop(request.reason)
            # Whoever got an answer may rely on it, also after a restart.
            await self._shell.settled()
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
            raise
        return pb.StopReply(version=version)

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> pb.SnapshotReply:  # noqa: ARG002
        """Take a snapshot now."""
        try:
            saved = await self._shell.save()
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
            raise
        return pb.SnapshotReply(version=saved.version, theta_sha256=saved.theta_sha256, file=str(saved.file))

    async def Provenance(self, request: pb.ProvenanceRequest, context: Context) -> pb.ProvenanceReply:
        """Tell what made a version."""
        try:
            update, theta_hash = await self._shell.origin(request.version)
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
            raise
        return pb.ProvenanceReply(
            contributions=[
                pb.AppliedContribution(
                    shard=c.shard,
                    step=c.step,
                    worker=c.worker,
                    samples=c.samples,
                    loss=c.loss,
                    computed_at=c.version,
                )
                for c in update.contributions
            ],
            theta_sha256=theta_hash,
        )


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
