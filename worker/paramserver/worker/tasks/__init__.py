"""Tasks: the built-in models, the user's own, and the contract that both keep."""

from paramserver.worker.tasks.contract import (
    Task,
    initial_parameters,
    loss_and_gradient,
    metrics,
    takes_out,
    takes_scale,
)
from paramserver.worker.tasks.loading import load_task
from paramserver.worker.tasks.tables import declared_tables, with_rows

__all__ = [
    "Task",
    "declared_tables",
    "initial_parameters",
    "load_task",
    "loss_and_gradient",
    "metrics",
    "takes_out",
    "takes_scale",
    "with_rows",
]
