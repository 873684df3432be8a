"""Every policy and way of going together by real processes, over both transports."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Array, Cluster, Control, until

ROWS, SHARDS = 96, 4
SOLUTION = (2.0, -1.0)

#: Steps take long enough for a test to act in the middle of a run.
SLOW = """
import time
from paramserver.worker.tasks.linear import LinearRegression

class Slow(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.003)
        return super().loss_and_grad(params, batch)
"""


def job(folder: Path, train: dict[str, Any], task: str = "linear_regression", **tables: Any) -> dict[str, Any]:
    x = np.linspace(-1, 1, ROWS).reshape(SHARDS, -1).T.ravel()
    np.savez(folder / "data.npz", x=x[:, None], y=SOLUTION[0] * x + SOLUTION[1])
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    return {
        "task": {"use": task},
        "data": {"source": "data.npz", "shards": SHARDS, "batch_size": 12},
        "train": {"steps": 150, "dtype": "float64", **train},
        "optimizer": {"learning_rate": 0.2},
        **tables,
    }


def assert_solved(theta: dict[str, Array], atol: float = 1e-3) -> None:
    np.testing.assert_allclose((theta["w"].item(), theta["b"].item()), SOLUTION, atol=atol)


def start_workers(cluster: Cluster, control: Control, count: int) -> list[Any]:
    """Start workers of which every second shares memory with the server."""
    transports = ("auto", "stream")
    processes = [cluster.worker(control, f"w{n}", "--transport", transports[n % 2]) for n in range(count)]
    control.joined(*(f"w{number}" for number in range(count)))
    return processes


def test_a_quorum_goes_on_without_a_frozen_worker_and_the_late_one_finds_its_way_back(cluster: Cluster) -> None:
    control = cluster.server()
    workers = start_workers(cluster, control, SHARDS)
    control.submit(job(cluster.folder, {"quorum": 3, "steps": 300}, "slow.py:Slow", server={"lease_s": 60.0}))
    control.when(lambda status: status.version >= 10)
    workers[1].send_signal(signal.SIGSTOP)
    frozen_at = control.status().version
    control.when(lambda status: status.version >= frozen_at + 30)
    workers[1].send_signal(signal.SIGCONT)
    last = control.finish()
    assert last.state == "done", last.reason
    assert (last.version, list(last.clock)) == (300, [300] * SHARDS)
    assert last.rejected["superseded"] > 0
    assert set(last.rejected) == {"superseded"}
    assert sum(last.staleness.values()) == 3 * 300
    assert_solved(control.theta())


def test_what_bounds_and_softens_delays_reaches_the_solution(cluster: Cluster) -> None:
    train = {"mode": "ssp", "staleness": 2, "max_delay": 5, "staleness_scaling": True, "delay_compensation": 0.1}
    control = cluster.server()
    start_workers(cluster, control, 2)
    last = control.train(job(cluster.folder, train))
    assert last.version == SHARDS * 150
    assert set(last.rejected) <= {"stale"}
    assert max(last.staleness) <= 5
    assert_solved(control.theta())


def test_the_policy_of_a_running_job_is_set_from_the_command_line(cluster: Cluster) -> None:
    control = cluster.server()
    start_workers(cluster, control, 2)
    control.submit(job(cluster.folder, {"steps": 100_000}, "slow.py:Slow"))
    for expected in (
        {"mode": "async", "quorum": 0, "staleness": 3, "max_delay": 9},
        {"mode": "ssp", "quorum": 0, "staleness": 2, "max_delay": 9},
        {"mode": "sync", "quorum": 3, "staleness": 2, "max_delay": 9},
        {"mode": "sync", "quorum": 0, "staleness": 2, "max_delay": 9},
    ):
        before = control.status()
        keys = [part for key, value in expected.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        status, said = cluster.run("client.cli", "set", "--server", control.address, *keys, "--json")
        assert (status, json.loads(said)) == (0, expected)
        running = control.status()
        assert json.loads(running.job_json)["train"] | expected == json.loads(running.job_json)["train"]
        slowest = min(before.clock)
        control.when(lambda status, slowest=slowest: min(status.clock) >= slowest + 20)  # type: ignore[misc]
    status, said = cluster.run("client.cli", "set", "--server", control.address, "--quorum", "9")
    assert status == 2
    assert "train.quorum = 9 is above data.shards = 4" in said
    assert_solved(control.theta(), atol=0.1)
    control.stub.Stop(pb.StopRequest(), timeout=10)
    assert set(control.status().rejected) <= {"stale", "superseded"}
    until(lambda: control.status().state == "stopped", "the end")
    status, said = cluster.run("client.cli", "set", "--server", control.address, "--mode", "async")
    assert (status, "no job is running" in said) == (2, True)
