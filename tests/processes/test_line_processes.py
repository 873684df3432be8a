"""A worker that goes another way by hand, against a real server: how that begins, and every way in which it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

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


class LineWorker(RawWorker):
    """Goes over as soon as it is welcome: to pipes of its own, or to a connection with its ticket."""

    def __init__(self, control: Control, way: str) -> None:
        super().__init__(control, "raw", pb.Join())
        self.send(join=pb.Join(protocol=1, worker="raw"))
        self.welcome = self.expect("welcome").welcome
        self._pair: PipePair | None = None
        self.connection: socket.socket | None = None
        if way == "connection":
            self.connection = socket.create_connection(("127.0.0.1", self.welcome.port), timeout=10)
            self.connection.sendall(self.welcome.ticket)
            self.moved = self.move(pb.Move(connection=True))
        else:
            self._pair = PipePair()
            self.share()
            opens = way == "pipes"
            up, down = (self._pair.up, self._pair.down) if opens else (0xFFFF, 0xFFFE)
            self.moved = self.move(pb.Move(pipes=pb.Pipes(pid=os.getpid(), up=up, down=down)))

    def share(self) -> None:
        probe = self.welcome.probe
        with open(f"/proc/{probe.pid}/fd/{probe.descriptor}", "rb") as file:
            proof = file.read(HEADER_BYTES + PROBE_BYTES)[HEADER_BYTES:]
        self.send(share=pb.Share(proof=proof))

    def move(self, move: pb.Move) -> bool:
        self.send(move=move)
        return self.until("moved").moved.done

    def write(self, data: bytes) -> None:
        framed = len(data).to_bytes(4, "little") + data
        if self.connection is not None:
            self.connection.sendall(framed)
        else:
            assert self._pair is not None
            os.write(self._pair._writing, framed)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self._pair is not None:
            self._pair.close()
        super().close()


def beside(control: Control, port: int) -> int:
    """Return how many pipes and connections beside gRPC's the server holds open."""
    folder, found = f"/proc/{control.process.pid}/fd", set()
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"{folder}/{name}"))
    lines = [line.split() for line in Path(f"/proc/{control.process.pid}/net/tcp").read_text().splitlines()[1:]]
    own = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] != "0A"}
    return sum("pipe:" in each or each in own for each in found)


@pytest.fixture(params=["pipes", "connection"])
def worker(control: Control, request: pytest.FixtureRequest) -> Iterator[LineWorker]:
    """A worker that has gone over; when it is gone, so is what the server opened for it."""
    worker = LineWorker(control, request.param)
    assert worker.moved
    port = worker.welcome.port
    assert beside(control, port)
    yield worker
    worker.close()
    until(lambda: not control.status().workers, "the worker to be gone")
    until(lambda: not beside(control, port), "the descriptors to be closed")


def test_a_leave_that_comes_beside_the_stream_ends_the_stream_well(worker: LineWorker) -> None:
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
def test_what_is_wrong_with_a_message_beside_the_stream_is_said_on_the_stream(
    control: Control, worker: LineWorker, data: bytes, said: str
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


def test_who_is_in_the_middle_of_a_message_is_heard(control: Control) -> None:
    worker = LineWorker(control, "connection")
    assert worker.connection is not None
    control.submit({"task": {"use": "somebody:Elses"}, "data": {"source": "nowhere"}})
    worker.write(pb.WorkerMessage(pull=pb.PullWork(job_id=control.status().job_id)).SerializeToString())

    def silent_s() -> float:
        [raw] = control.status().workers
        return raw.silent_s

    until(lambda: silent_s() > 0.5, "the worker to be silent for a while")
    worker.connection.sendall((1 << 23).to_bytes(4, "little") + bytes(3 << 20))
    until(lambda: silent_s() < 0.4, "the server to hear that a message is on its way")
    control.stub.Stop(pb.StopRequest(), timeout=10)
    worker.close()
    until(lambda: not control.status().workers, "the worker to be gone")


def test_a_message_on_the_stream_ends_the_stream(worker: LineWorker) -> None:
    worker.send(heartbeat=pb.Heartbeat())
    code, details = worker.status_code()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "gone another way" in details


def test_a_server_that_cannot_open_the_pipes_shares_nothing_and_goes_on(control: Control) -> None:
    worker = LineWorker(control, "no pipes")
    assert not worker.moved
    worker.send(leave=pb.Leave())
    assert worker.status_code()[0] is grpc.StatusCode.OK
    worker.close()


def test_a_connection_without_a_ticket_that_was_given_out_is_turned_away(control: Control) -> None:
    worker = LineWorker(control, "connection")
    for ticket in (b"x" * 16, worker.welcome.ticket, b"short"):
        with socket.create_connection(("127.0.0.1", worker.welcome.port), timeout=10) as stranger:
            stranger.sendall(ticket)
            assert stranger.recv(1) == b""
    worker.write(pb.WorkerMessage(leave=pb.Leave()).SerializeToString())
    assert worker.status_code()[0] is grpc.StatusCode.OK
    worker.close()


def test_a_worker_that_has_not_connected_goes_on_with_the_stream(control: Control) -> None:
    worker = RawWorker(control, "raw", pb.Join())
    worker.send(join=pb.Join(protocol=1, worker="raw"))
    worker.send(move=pb.Move(connection=True))
    assert not worker.until("moved").moved.done
    worker.send(leave=pb.Leave())
    assert worker.status_code()[0] is grpc.StatusCode.OK
    worker.close()


def test_a_connection_that_breaks_ends_the_stream_so_that_the_worker_comes_back(control: Control) -> None:
    worker = LineWorker(control, "connection")
    assert worker.connection is not None
    worker.connection.close()
    code, details = worker.status_code()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the connection beside the stream broke" in details
    worker.close()


def test_a_data_port_that_is_taken_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = cluster.run("server", "--listen", "127.0.0.1:0", "--data-port", str(port))
    assert status == 2
    assert f"cannot listen for tensors on 127.0.0.1:{port}: Address already in use" in said
    cluster.end()
