"""What a server says of itself and its job."""

from __future__ import annotations

import dataclasses
import math
import time

from paramserver.server.leases import WorkerState
from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.shell import Shell
from paramserver.wire.v1 import paramserver_pb2 as pb


def describe(shell: Shell) -> pb.StatusReply:
    """Return the state of the server, its job and its workers."""
    run = shell.run
    if run is None:
        workers = [_idle_worker(session) for session in shell.sessions.values()]
        return pb.StatusReply(
            state="idle",
            reason=shell.waits_for or "no job was submitted",
            workers=workers,
            partitions=shell.partitions(),
        )
    engine = run.engine
    now = time.monotonic()
    waits = engine.waits(now)
    until = engine.ended_at if engine.ended else now
    reply = pb.StatusReply(
        job_id=run.job_id,
        job_json=run.job.to_json(),
        state=engine.phase,
        reason=engine.reason or shell.waits_for,
        version=engine.version,
        clock=engine.clocks,
        total_steps=engine.total_steps,
        workers=_workers(run, shell, now),
        shards=[
            pb.ShardStatus(shard=i, clock=clock, worker=shard.holder or "", epoch=shard.epoch, rows=shard.rows)
            for i, (clock, shard) in enumerate(zip(engine.clocks, engine.shards, strict=True))
        ],
        left=[_left(name, worker) for name, worker in engine.left.items()],
        waiting_for=[pb.Wait(**dataclasses.asdict(wait)) for wait in waits],
        rejected=engine.rejected(),
        staleness=engine.staleness,
        bytes_received=sum(session.received for session in shell.sessions.values()),
        bytes_sent=sum(session.sent for session in shell.sessions.values()),
        seconds=0.0 if math.isnan(engine.train_started) else until - engine.train_started,
        samples=engine.samples,
        census=run.census,
        durability=shell.durability,
        partitions=shell.partitions(),
        table_rows=run.table_rows,
        moments=b"" if run.moments is None else run.moments.to_flat().tobytes(),
    )
    if not math.isnan(engine.loss):
        reply.loss = engine.loss
    return reply


def _workers(run: Run, shell: Shell, now: float) -> list[pb.WorkerStatus]:
    engine = run.engine
    furthest = max(engine.clocks)
    found = []
    for name, worker in engine.workers.items():
        session = shell.sessions.get(name)
        if session is None:
            continue
        found.append(
            pb.WorkerStatus(
                name=name,
                host=session.join.host,
                pid=session.join.pid,
                shards=sorted(worker.shards),
                silent_s=now - worker.last_seen,
                pushes=worker.pushes,
                rejected=worker.rejected.total(),
                lag=max((furthest - engine.clocks[s] for s in worker.shards), default=0),
                state=_state(worker),
                reasons=worker.rejected,
                waits=engine.why_it_waits(name),
            )
        )
    idle = [_idle_worker(s) for name, s in shell.sessions.items() if name not in engine.workers]
    return found + idle


def _state(worker: WorkerState) -> str:
    if worker.failure:
        return f"failed: {worker.failure}"
    if worker.stuck:
        return "stuck"
    return "ready" if worker.alive else "silent"


def _left(name: str, worker: WorkerState) -> pb.WorkerStatus:
    rejected, reasons = worker.rejected.total(), worker.rejected
    return pb.WorkerStatus(name=name, pushes=worker.pushes, rejected=rejected, reasons=reasons, state="left")


def _idle_worker(session: Session) -> pb.WorkerStatus:
    return pb.WorkerStatus(name=session.name, host=session.join.host, pid=session.join.pid, state="ready")
