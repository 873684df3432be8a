"""A control service whose answers a test decides, on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

Answer = Callable[[Any, grpc.ServicerContext], Any]


class ScriptedControl(rpc.ControlServicer):
    """Answers the n-th call of a method with the n-th function of its script; the last one stays."""

    def __init__(self) -> None:
        self.script: dict[str, list[Answer]] = {}
        self.requests: list[Any] = []
        #: Set when the test is over, so that no answer hangs for ever.
        self.over = threading.Event()

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        answers = self.script[method]
        return (answers.pop(0) if len(answers) > 1 else answers[0])(request, context)

    def Submit(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer("Submit", request, context)

    def Status(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer("Status", request, context)

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self.answer("Watch", request, context)

    def Pull(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self.answer("Pull", request, context)

    def Stop(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer("Stop", request, context)


@pytest.fixture
def control() -> Iterator[tuple[ScriptedControl, str]]:
    """Yield the service and its address."""
    service = ScriptedControl()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    rpc.add_ControlServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    service.over.set()
    server.stop(0).wait()


@pytest.fixture
def job() -> Job:
    return Job.from_dict({"task": {"use": "linear_regression"}, "data": {"source": "builtin:linear"}})


@pytest.fixture
def status(job: Job) -> pb.StatusReply:
    """The status of a job in the middle, with one worker that is late."""
    return pb.StatusReply(
        job_id="j1",
        job_json=job.to_json(),
        state="train",
        version=7,
        clock=[7, 8, 7, 8],
        total_steps=20,
        workers=[
            pb.WorkerStatus(name="w0", host="h", pid=11, shards=[1, 3], pushes=16, state="ready"),
            pb.WorkerStatus(name="w1", host="h", pid=12, shards=[0, 2], pushes=14, lag=1, silent_s=2.5, state="ready"),
        ],
        shards=[pb.ShardStatus(shard=n, clock=7 + n % 2, worker=f"w{1 - n % 2}", epoch=1, rows=250) for n in range(4)],
        waiting_for=[pb.Wait(shard=0, worker="w1", since_s=2.5, reason="shard 0 is awaited from w1")],
        staleness={0: 30, 2: 10},
        rejected={"FENCED": 2},
        table_rows={"emb": 1_234_567},
        bytes_received=480,
        bytes_sent=960,
        loss=0.25,
        seconds=3.5,
        samples=7000,
    )
