"""A worker that goes over to pipes by hand, against a real server: how that begins, and every way in which it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import pytest

from paramserver.wire import sharing
from paramserver.wire.pipes import PipePair
from paramserver.wire.sharing import HEADER_BYTES, PROBE_BYTES
from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Cluster, Control, until
from processes.raw_worker import RawWorker

pytestmark = pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no memory to share")


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    cluster = Cluster(tmp_path_factory.mktemp("pipes"))
    yield cluster.server()
    cluster.end()


class PipeWorker(RawWorker):
    """Shares memory as soon as it is welcome, and offers pipes: its own, or descriptors that are none."""

    def __init__(self, control: Control, opens: bool = True) -> None:
        super().__init__(control, "raw", pb.Join())
        self.send(join=pb.Join(protocol=1, worker="raw"))
        welcome = self.expect("welcome").welcome
        assert welcome.takes_pipes
        with open(f"/proc/{welcome.probe.pid}/fd/{welcome.probe.descriptor}", "rb") as probe:
            proof = probe.read(HEADER_BYTES + PROBE_BYTES)[HEADER_BYTES:]
        self._pair = PipePair()
        up, down = (self._pair.up, self._pair.down) if opens else (0xFFFF, 0xFFFE)
        pipes = pb.Pipes(pid=os.getpid(), up=up, down=down)
        self.send(share=pb.Share(proof=proof, pipes=pipes))
        self.moved = self.until("shared").shared.pipes

    def write(self, data: bytes) -> None:
        os.write(self._pair._writing, len(data).to_bytes(4, "little") + data)

    def close(self) -> None:
        self._pair.close()
        super().close()


@pytest.fixture
def worker(control: Control) -> Iterator[PipeWorker]:
    """A worker that has gone over; when it is gone, so is what the server opened for it."""
    before = set(os.listdir(f"/proc/{control.process.pid}/fd"))
    worker = PipeWorker(control)
    assert worker.moved
    yield worker
    worker.close()
    until(lambda: not control.status().workers, "the worker to be gone")
    opened = set(os.listdir(f"/proc/{control.process.pid}/fd")) - before
    pipes = [name for name in opened if "pipe:" in os.readlink(f"/proc/{control.process.pid}/fd/{name}")]
    assert not pipes


def test_a_leave_that_comes_through_the_pipe_ends_the_stream_well(worker: PipeWorker) -> None:
    worker.write(pb.WorkerMessage(heartbeat=pb.Heartbeat()).SerializeToString())
    worker.write(pb.WorkerMessage(leave=pb.Leave(reason="enough")).SerializeToString())
    assert worker.status_code()[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xff\xff\xff", "is not a WorkerMessage"),
        (pb.WorkerMessage(slot=pb.Slot(shard=0)).SerializeToString(), "without sharing memory"),
    ],
)
def test_what_is_wrong_with_a_message_in_the_pipe_is_said_on_the_stream(
    control: Control, worker: PipeWorker, data: bytes, said: str
) -> None:
    job = {"task": {"use": "somebody:Elses"}, "data": {"source": "nowhere"}}
    control.submit(job)
    pull = pb.PullWork(job_id=control.status().job_id)
    worker.write(pb.WorkerMessage(pull=pull).SerializeToString())
    worker.write(data)
    code, details = worker.status_code()
    control.stub.Stop(pb.StopRequest(), timeout=10)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert said in details


def test_a_message_beside_the_pipe_ends_the_stream(worker: PipeWorker) -> None:
    worker.send(heartbeat=pb.Heartbeat())
    code, details = worker.status_code()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "gone over to pipes" in details


def test_a_server_that_cannot_open_the_pipes_shares_nothing_and_goes_on(control: Control) -> None:
    worker = PipeWorker(control, opens=False)
    assert not worker.moved
    worker.send(leave=pb.Leave())
    assert worker.status_code()[0] is grpc.StatusCode.OK
    worker.close()
