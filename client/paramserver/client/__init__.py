"""Drives training: describes jobs, launches processes, watches them and evaluates what they learnt."""

from paramserver.client.connection.client import Checkpoint, Client, Point, Update
from paramserver.client.training import Result, resume, train
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
from paramserver.wire.job import Job

__all__ = [
    "Busy",
    "Checkpoint",
    "Client",
    "DataError",
    "Job",
    "JobError",
    "JobFailed",
    "NotReady",
    "ParamserverError",
    "Point",
    "RequestError",
    "Result",
    "TaskError",
    "Unreachable",
    "Update",
    "resume",
    "train",
]
