"""Owns data shards: reads them, computes gradients of a task and pushes them to the server."""

from paramserver.wire.tables import Table
from paramserver.worker.worker import Step, Worker

__all__ = ["Step", "Table", "Worker"]
