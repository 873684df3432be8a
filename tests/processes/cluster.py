"""Real server and worker processes for tests, and a client made of nothing but the generated stubs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

#: Nothing in these tests takes this long unless it hangs.
DEADLINE_S = 40.0

Array = np.ndarray[Any, Any]


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for a condition of another process to become true, and return it."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"still waiting for {what} after {deadline_s:g} s"
        pause.wait(0.01)
    return found


class Cluster:
    """The processes of one test, and what they leave behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.addresses: list[str] = []
        self.controls: list[Control] = []

    def start(self, part: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m paramserver.PART`, its output in a file."""
        environment = dict(os.environ)
        if roots := environment.get("PYTHONPATH"):
            environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(root) for root in roots.split(os.pathsep))
        command = [sys.executable, "-m", f"paramserver.{part}", *arguments]
        with (self.folder / f"{len(self.processes)}-{part}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def server(self, listen: str = "127.0.0.1:0", *arguments: str) -> Control:
        """Start a server and return a client of it once it listens."""
        address_file = self.folder / f"address-{len(self.processes)}"
        process = self.start("server", "--listen", listen, "--address-file", str(address_file), *arguments)
        until(lambda: address_file.exists() or process.poll() is not None, "the server's address")
        assert process.poll() is None, self.logs()
        address = address_file.read_text(encoding="utf-8")
        self.addresses.append(address)
        control = Control(address, process)
        self.controls.append(control)
        return control

    def worker(self, control: Control, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker; it has joined when the server's status names it."""
        return self.start("worker", "--server", control.address, "--name", name, "--base", str(self.folder), *arguments)

    def workers(self, control: Control, *names: str) -> list[subprocess.Popen[bytes]]:
        """Start workers and wait until all of them have joined."""
        started = [self.worker(control, name) for name in names]
        control.joined(*names)
        return started

    def run(self, part: str, *arguments: str) -> tuple[int, str]:
        """Run a process to its end; return its exit status and what it said."""
        log = self.folder / f"{len(self.processes)}-{part}.log"
        process = self.start(part, *arguments)
        return process.wait(DEADLINE_S), log.read_text(encoding="utf-8")

    def logs(self) -> str:
        """Return what all processes said."""
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """Stop everything, and check that it went quietly and left nothing."""
        for control in self.controls:
            control.close()
        running = [process for process in self.processes if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        late = []
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                late.append(process.args)
                process.kill()
                process.wait()
        assert not late, f"did not end on SIGTERM: {late}\n{self.logs()}"
        for address in self.addresses:
            assert not listens(address), f"{address} is still listened on"
        assert "Traceback" not in self.logs(), self.logs()


def listens(address: str) -> bool:
    """Say whether anybody accepts connections at host:port."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).exists()
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, int(port))) == 0


class Control:
    """A client of one server."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.process = process
        self.channel = grpc.insecure_channel(address)
        self.stub = rpc.ControlStub(self.channel)  # type: ignore[no-untyped-call]
        #: The version of θ as it was last returned.
        self.pulled = 0

    def close(self) -> None:
        self.channel.close()

    def submit(self, job: dict[str, Any], job_id: str = "") -> None:
        request = pb.SubmitRequest(job_id=job_id or uuid.uuid4().hex, job_json=json.dumps(job))
        self.stub.Submit(request, timeout=DEADLINE_S)

    def status(self) -> pb.StatusReply:
        return self.stub.Status(pb.StatusRequest(), timeout=DEADLINE_S)

    def running(self) -> bool:
        return self.status().state in ("survey", "initialise", "train")

    def joined(self, *names: str) -> None:
        until(lambda: set(names) <= {w.name for w in self.status().workers}, f"{names} to join")

    def watch(self) -> Iterator[pb.StatusReply]:
        for reply in self.stub.Watch(pb.WatchRequest(), timeout=DEADLINE_S):
            yield reply.status

    def when(self, condition: Callable[[pb.StatusReply], bool]) -> pb.StatusReply:
        """Return the first status for which the condition holds; the job must still be running."""

        def holds() -> pb.StatusReply | None:
            status = self.status()
            assert self.running() or condition(status), f"{status.state}: {status.reason}"
            return status if condition(status) else None

        found: pb.StatusReply = until(holds, "a status")
        return found

    def finish(self) -> pb.StatusReply:
        """Wait for the end of the job and return its last status."""
        *_, last = self.watch()
        return last

    def train(self, job: dict[str, Any]) -> pb.StatusReply:
        """Run a job that is expected to succeed."""
        self.submit(job)
        last = self.finish()
        assert last.state == "done", last.reason
        return last

    def theta(self) -> dict[str, Array]:
        """Return the parameters as the server holds them now."""
        replies = list(self.stub.Pull(pb.PullRequest(), timeout=DEADLINE_S))
        self.pulled = replies[0].version
        flat = np.frombuffer(b"".join(reply.payload for reply in replies), replies[0].dtype)
        tensors, start = {}, 0
        for tensor in replies[0].layout.tensors:
            size = int(np.prod(tensor.shape, dtype=np.int64))
            tensors[tensor.name] = flat[start : start + size].reshape(tuple(tensor.shape))
            start += size
        assert start == flat.size
        return tensors

    def bits(self) -> bytes:
        """Return the parameters as bytes, to be compared whole."""
        return b"".join(tensor.tobytes() for tensor in self.theta().values())
