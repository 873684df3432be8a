"""A server's status as plain data."""

from __future__ import annotations

import json
from typing import Any

from paramserver.wire.v1 import paramserver_pb2 as pb


def summary(status: pb.StatusReply) -> dict[str, Any]:
    """Return what `paramserver status --json` prints.

    `job` (its id, or None), `state`, `reason`, `mode`, `version`, `step` (the slowest shard's), `steps` (to make),
    `loss`, `seconds`, `samples`, `clock` (next step of each shard), `workers`, `left` (workers that went), `shards`,
    `waiting_for`, `staleness` (contributions applied, by versions between pull and push), `rejected` (pushes, by
    reason), `bytes`, `tables` (rows of each table) and, of several servers, `partitions` (the coordinator first; else
    empty).
    """
    return {
        "job": status.job_id or None,
        "state": status.state,
        "reason": status.reason,
        "mode": mode(status) or None,
        "version": status.version,
        "step": step(status),
        "steps": status.total_steps,
        "loss": status.loss if status.HasField("loss") else None,
        "seconds": status.seconds,
        "samples": status.samples,
        "clock": list(status.clock),
        "workers": [
            {
                "name": worker.name,
                "host": worker.host,
                "pid": worker.pid,
                "state": worker.state,
                "shards": list(worker.shards),
                "lag": worker.lag,
                "silent_s": worker.silent_s,
                "waits": worker.waits or None,
                **_counts(worker),
            }
            for worker in status.workers
        ],
        "left": [{"name": worker.name, **_counts(worker)} for worker in status.left],
        "shards": [
            {
                "shard": shard.shard,
                "clock": shard.clock,
                "worker": shard.worker or None,
                "epoch": shard.epoch,
                "rows": shard.rows,
            }
            for shard in status.shards
        ],
        "waiting_for": [
            {
                "shard": wait.shard,
                "worker": wait.worker or None,
                "since_s": wait.since_s,
                "heard_s": wait.heard_s if wait.HasField("heard_s") else None,
                "then": wait.then,
                "due_s": wait.due_s if wait.HasField("due_s") else None,
                "reason": wait.reason,
            }
            for wait in status.waiting_for
        ],
        "staleness": {str(delay): count for delay, count in sorted(status.staleness.items())},
        "rejected": dict(sorted(status.rejected.items())),
        "bytes": {"received": status.bytes_received, "sent": status.bytes_sent},
        "tables": dict(sorted(status.table_rows.items())),
        "partitions": [
            {
                "partition": partition.partition,
                "address": partition.address or None,
                "state": partition.state,
                "version": partition.version,
                "start": partition.start,
                "elements": partition.elements,
                "bytes": {"received": partition.bytes_received, "sent": partition.bytes_sent},
            }
            for partition in status.partitions
        ],
    }


def _counts(worker: pb.WorkerStatus) -> dict[str, Any]:
    reasons = dict(sorted(worker.reasons.items()))
    return {"pushes": worker.pushes, "rejected": worker.rejected, "reasons": reasons}


def step(status: pb.StatusReply) -> int:
    """Return how many steps all shards have made."""
    return min(status.clock, default=0)


def mode(status: pb.StatusReply) -> str:
    """Return the job's mode, or an empty string without a job."""
    return str(json.loads(status.job_json)["train"]["mode"]) if status.job_json else ""


def task(status: pb.StatusReply) -> str:
    """Return the job's task, or an empty string without a job."""
    return str(json.loads(status.job_json)["task"]["use"]) if status.job_json else ""


def mean_staleness(status: pb.StatusReply) -> float:
    """Return the mean staleness of the contributions applied so far; 0 before the first."""
    count = sum(status.staleness.values())
    return sum(delay * n for delay, n in status.staleness.items()) / count if count else 0.0
