"""A worker written from the .proto and docs/wire-format.md alone does real jobs, alone and beside our own workers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "protos/paramserver/wire/v1/paramserver.proto"
DEADLINE_S = 60.0
SOURCES = [str(ROOT / part) for part in ("protos", "server", "worker")]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles the .proto")
    out = tmp_path_factory.mktemp("stubs")
    # In a process of its own: its descriptors must not meet ours, and its protoc writes to stderr as it likes.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"--python_out={out}"]
    subprocess.run([*command, f"--grpc_python_out={out}", PROTO.name], check=True, timeout=DEADLINE_S)
    return out


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 rows, so that neither shards nor batches come out even."""
    path = tmp_path_factory.mktemp("data") / "table.csv"
    rng = np.random.default_rng(7)
    x = rng.normal(size=(203, 2)) * [1.0, 3.0] + [0.5, -2.0]
    y = x @ [2.0, -1.0] + 1.0 + 0.1 * rng.normal(size=203)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "y"])
        writer.writerows([*map(repr, map(float, row)), repr(float(label))] for row, label in zip(x, y, strict=True))
    return path


class Cluster:
    """A real server, the workers that were started for it, and a client's stub."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self._start("server", ["-m", "paramserver.server", "--listen", f"unix:{folder}/socket"], "listening on")
        self.address = f"unix:{folder}/socket"
        self._channel = grpc.insecure_channel(self.address)
        self.control = rpc.ControlStub(self._channel)

    def ours(self, name: str) -> None:
        arguments = ["-m", "paramserver.worker", "--server", self.address, "--name", name]
        self._start(name, arguments, "joined")

    def foreign(self, name: str, stubs: Path, table: Path) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("foreign_worker.py")
        # -I: neither PYTHONPATH nor the working directory shows it our packages.
        return self._start(name, ["-I", str(script), str(stubs), self.address, name, str(table)], "joined")

    def _start(self, name: str, arguments: list[str], ready: str) -> subprocess.Popen[str]:
        log = self._folder / f"{name}.log"
        process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PYTHONPATH": ":".join(SOURCES), "PATH": "/usr/bin:/bin"},
        )
        self._processes.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if ready in line:
                return process
        log.write_text("".join(lines), encoding="utf-8")
        raise AssertionError(f"{name} ended before it was ready:\n{''.join(lines)}")

    def train(self, job: dict[str, dict[str, object]]) -> tuple[dict[str, np.ndarray], pb.StatusReply]:
        """Submit a job, wait for its end and return θ and the last status."""
        self.control.Submit(pb.SubmitRequest(job_id=uuid.uuid4().hex, job_json=json.dumps(job)), timeout=DEADLINE_S)
        for reply in self.control.Watch(pb.WatchRequest(), timeout=DEADLINE_S):
            status = reply.status
        assert status.state == "done", status.reason
        replies = list(self.control.Pull(pb.PullRequest(), timeout=DEADLINE_S))
        flat = np.frombuffer(b"".join(reply.payload for reply in replies), np.dtype(replies[0].dtype).newbyteorder("<"))
        theta, start = {}, 0
        for tensor in replies[0].layout.tensors:
            stop = start + int(np.prod(tensor.shape, dtype=int))
            theta[tensor.name] = flat[start:stop].reshape(tensor.shape)
            start = stop
        assert start == flat.size
        return theta, status

    def close(self) -> None:
        self._channel.close()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


def linear_job(table: Path, **train: object) -> dict[str, dict[str, object]]:
    return {
        "task": {"use": "linear_regression"},
        "data": {"source": str(table), "label": "y", "shards": 3, "batch_size": 16, "standardize": True},
        "train": {"dtype": "float64", "seed": 5, **train},
        "optimizer": {"learning_rate": 0.05},
    }


def least_squares(table: Path) -> np.ndarray:
    """The solution on standardised features."""
    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    x, y = rows[:, :-1], rows[:, -1]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]


def flat(theta: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([theta["w"], theta["b"]])


def test_alone_it_reaches_the_least_squares_solution(cluster: Cluster, stubs: Path, table: Path) -> None:
    worker = cluster.foreign("foreign", stubs, table)
    job = linear_job(table, steps=200)
    job["data"]["batch_size"] = 0
    job["optimizer"]["learning_rate"] = 0.3
    theta, _ = cluster.train(job)
    np.testing.assert_allclose(flat(theta), least_squares(table), rtol=1e-9)
    # Its last act is to check that it imported nothing of ours.
    assert worker.communicate(timeout=DEADLINE_S)[0] == "done\n"
    assert worker.returncode == 0


def test_it_draws_the_batches_that_our_workers_draw(cluster: Cluster, stubs: Path, table: Path) -> None:
    job = linear_job(table, steps=13)
    cluster.ours("ours")
    ours, _ = cluster.train(job)
    cluster.foreign("foreign", stubs, table)
    beside, status = cluster.train(job)
    assert {worker.name for worker in status.workers if worker.pushes} == {"ours", "foreign"}
    np.testing.assert_allclose(flat(beside), flat(ours), rtol=1e-11)


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_beside_ours_it_trains_without_rounds(cluster: Cluster, stubs: Path, table: Path, mode: str) -> None:
    cluster.ours("ours")
    cluster.foreign("foreign", stubs, table)
    theta, status = cluster.train(linear_job(table, mode=mode, epochs=20))
    assert all(worker.pushes for worker in status.workers)
    np.testing.assert_allclose(flat(theta), least_squares(table), atol=0.05)


def test_a_vector_of_many_chunks_goes_both_ways(cluster: Cluster, stubs: Path, table: Path) -> None:
    cluster.foreign("foreign", stubs, table)
    size = 300_001
    theta, _ = cluster.train(
        {
            "task": {"use": "constant", "options": {"size": size}},
            "data": {"source": "the worker's own", "shards": 2, "batch_size": 0},
            "train": {"steps": 3, "dtype": "float32"},
            "optimizer": {"learning_rate": 0.5},
        }
    )
    mean = np.loadtxt(table, delimiter=",", skiprows=1)[:, -1].mean()
    assert theta["left"].shape == (2, size // 4)
    assert theta["left"].size + theta["right"].size == size
    for values in theta.values():
        np.testing.assert_allclose(values, mean * (1 - 0.5**3), rtol=1e-5)
