"""Training by real processes over real sockets: the right θ, and the same bits whatever happens on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Array, Cluster

ROWS, FEATURES = 103, 3

#: θ of 1.3 million float32 is five chunks; every worker's gradient depends on its shard.
WIDE = """
import numpy as np

class Wide:
    size = 1_300_000

    def init(self, rng, batch):
        return {"a": np.full((13, 50_000), 2, batch.x.dtype), "b": np.full(650_000, -1, batch.x.dtype)}

    def loss_and_grad(self, params, batch):
        middle = batch.x.mean(dtype=np.float64)
        grads = {name: (value - middle).astype(value.dtype) for name, value in params.items()}
        return float(sum(np.square(g, dtype=np.float64).sum() for g in grads.values())), grads
"""

#: Steps take long enough for a test to act in the middle of a run.
SLOW = """
import time
from paramserver.worker.tasks.linear import LinearRegression

class Slow(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.003)
        return super().loss_and_grad(params, batch)
"""


def data(folder: Path) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((ROWS, FEATURES))
    y = x @ [1.5, -2.0, 0.5] + 0.25 + 0.01 * rng.standard_normal(ROWS)
    np.savez(folder / "data.npz", x=x, y=y)
    return x, y


def job(**changes: Any) -> dict[str, Any]:
    """Return a job; `train__steps=3` changes a key of a table."""
    tables: dict[str, Any] = {
        "task": {"use": "linear_regression"},
        "data": {"source": "data.npz", "shards": 4, "batch_size": 8},
        "train": {"mode": "sync", "steps": 150, "dtype": "float64"},
        "optimizer": {"learning_rate": 0.05},
    }
    for path, value in changes.items():
        table, key = path.split("__")
        tables.setdefault(table, {})[key] = value
    return tables


def test_full_batch_sync_over_any_shards_is_gradient_descent_on_the_whole_data(cluster: Cluster) -> None:
    x, y = data(cluster.folder)
    w, b = np.zeros(FEATURES), 0.0
    for _ in range(100):
        residual = x @ w + b - y
        w, b = w - 0.05 * 2 * x.T @ residual / ROWS, b - 0.05 * 2 * residual.mean()
    loss = float(np.mean((x @ w + b - y) ** 2))
    control = cluster.server()
    cluster.workers(control, "w0", "w1")
    for shards in (1, 2, 3, 5):
        last = control.train(job(data__shards=shards, data__batch_size=0, train__steps=101))
        # One more step tells the loss at the θ that 100 steps made.
        assert last.loss == pytest.approx(loss, rel=1e-10)
        control.train(job(data__shards=shards, data__batch_size=0, train__steps=100))
        theta = control.theta()
        np.testing.assert_allclose(theta["w"], w, rtol=1e-10)
        np.testing.assert_allclose(theta["b"], b, rtol=1e-10)


def test_async_reaches_the_loss(cluster: Cluster) -> None:
    x, y = data(cluster.folder)
    design = np.column_stack([x, np.ones(ROWS)])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    control = cluster.server()
    cluster.workers(control, "w0", "w1")
    last = control.train(job(train__mode="async", data__batch_size=0, train__steps=120))
    assert last.version == 4 * 120
    assert list(last.clock) == [120] * 4
    assert sum(last.staleness.values()) == 4 * 120
    np.testing.assert_allclose(control.theta()["w"], solution[:3], atol=5e-3)


def slow_job(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    data(cluster.folder)
    (cluster.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    return job(task__use="slow.py:Slow", server__lease_s=0.6, train__steps=120, **changes)


def undisturbed(cluster: Cluster, tables: dict[str, Any]) -> bytes:
    """Return the bits of the run in which nothing happens, by one worker that then goes."""
    control = cluster.server()
    (worker,) = cluster.workers(control, "alone")
    control.train(tables | {"task": {"use": "linear_regression"}})
    worker.terminate()
    assert worker.wait(10) == 0
    return control.bits()


def test_kill_9_of_one_of_four_workers_leaves_the_same_bits(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    control = cluster.server()
    victim, *_ = cluster.workers(control, "w0", "w1", "w2", "w3")
    control.submit(tables)
    held = {s.worker for s in control.when(lambda status: status.version >= 20).shards}
    assert held == {"w0", "w1", "w2", "w3"}
    victim.kill()
    victim.wait()
    after = control.when(lambda status: all(s.worker not in ("", "w0") for s in status.shards))
    assert after.version < 120, "the kill came too late to prove anything"
    assert control.finish().state == "done"
    assert control.bits() == expected


def test_a_frozen_worker_is_replaced_and_fenced_when_it_wakes(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    tables["train"]["steps"] = 250
    expected = undisturbed(cluster, tables)
    control = cluster.server()
    frozen, _ = cluster.workers(control, "w0", "w1")
    control.submit(tables)
    control.when(lambda status: status.version >= 20)
    os.kill(frozen.pid, signal.SIGSTOP)
    status = control.when(lambda status: all(s.worker == "w1" for s in status.shards))
    assert {w.name: w.state for w in status.workers}["w0"] == "silent"
    assert status.version < 200
    os.kill(frozen.pid, signal.SIGCONT)
    # It gets work again with its first sign of life, and is told that what it had computed came too late.
    control.when(lambda status: {s.worker for s in status.shards} == {"w0", "w1"})
    status = control.when(lambda status: sum(status.rejected.values()) >= 1)
    assert set(status.rejected) <= {"fenced", "duplicate"}
    assert control.finish().state == "done"
    assert control.bits() == expected


def test_a_late_joiner_gets_shards_and_the_bits_stay(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    control = cluster.server()
    cluster.workers(control, "w0")
    control.submit(tables)
    cluster.worker(control, "late")
    status = control.when(lambda status: [s.worker for s in status.shards].count("late") == 2)
    assert status.version < 120
    last = control.finish()
    assert {w.name: w.pushes > 0 for w in last.workers} == {"w0": True, "late": True}
    assert control.bits() == expected


def test_workers_come_back_to_a_server_that_was_killed_and_take_its_next_job(cluster: Cluster) -> None:
    data(cluster.folder)
    control = cluster.server()
    (worker,) = cluster.workers(control, "w0")
    control.submit(job(train__steps=10**6), job_id="same-name")
    control.when(lambda status: status.version > 5)
    control.process.kill()
    control.process.wait()
    again = cluster.server(control.address)
    again.joined("w0")
    # A new server knows nothing of the old one's job, so its name may come again with another text.
    again.submit(job(train__steps=60, train__seed=3), job_id="same-name")
    assert again.finish().state == "done"
    assert worker.poll() is None
    bits = again.bits()
    other = cluster.server()
    cluster.workers(other, "w1")
    other.train(job(train__steps=60, train__seed=3))
    assert other.bits() == bits


def test_parameters_larger_than_any_message_train_in_every_mode(cluster: Cluster) -> None:
    x, _ = data(cluster.folder)
    (cluster.folder / "wide.py").write_text(WIDE, encoding="utf-8")
    control = cluster.server()
    cluster.workers(control, "w0", "w1")
    for mode in ("sync", "async", "ssp"):
        control.train(
            job(
                task__use="wide.py:Wide",
                train__mode=mode,
                train__steps=12,
                train__dtype="float32",
                data__shards=2,
                data__batch_size=0,
                optimizer__learning_rate=0.5 if mode == "sync" else 0.2,
            )
        )
        theta = control.theta()
        assert theta["a"].shape == (13, 50_000)
        middle = x.mean()
        if mode == "sync":
            factor = 0.5**12
            np.testing.assert_allclose(theta["a"], middle + (2 - middle) * factor, rtol=1e-4)
            np.testing.assert_allclose(theta["b"], middle + (-1 - middle) * factor, rtol=1e-4)
        else:
            np.testing.assert_allclose(theta["a"], middle, atol=0.15)
        # What happened to one element happened to all: no chunk was left out, taken twice or swapped.
        assert len(np.unique(theta["a"])) == len(np.unique(theta["b"])) == 1


@pytest.mark.parametrize("transport", ["shm", "stream"])
def test_a_task_that_breaks_its_contract_fails_the_job_with_the_reason(cluster: Cluster, transport: str) -> None:
    """In shared memory it is the server that sees it first."""
    data(cluster.folder)
    (cluster.folder / "bad.py").write_text(
        "import numpy as np\n"
        "class Bad:\n"
        "    def init(self, rng, batch): return {'w': np.zeros(3, batch.x.dtype)}\n"
        "    def loss_and_grad(self, params, batch):\n"
        "        return 1.0, {'w': 0 * params['w'] + (np.nan if params['w'].any() else 1)}\n",
        encoding="utf-8",
    )
    control = cluster.server()
    cluster.worker(control, "w0", "--transport", transport)
    control.joined("w0")
    control.submit(job(task__use="bad.py:Bad", server__max_bad_pushes=1000))
    last = control.finish()
    assert last.state == "failed"
    assert "worker w0" in last.reason
    assert "step 1" in last.reason
    # In the worker's words, which does not go on until the server has had enough.
    assert "gradient 'w' holds nan" in last.reason
    assert last.version == 1
    # Nothing half-done is left: the next job trains.
    control.train(job(train__steps=5))


def test_stop_ends_the_job_and_its_parameters_stay_readable(cluster: Cluster) -> None:
    data(cluster.folder)
    control = cluster.server()
    cluster.workers(control, "w0", "w1")
    control.submit(job(train__steps=10**6))
    control.when(lambda status: status.version > 5)
    version = control.stub.Stop(pb.StopRequest(reason="seen enough"), timeout=10).version
    last = control.finish()
    assert (last.state, last.reason, last.version) == ("stopped", "seen enough", version)
    assert control.theta()["w"].shape == (FEATURES,)


def test_workers_leave_on_sigterm_and_their_shards_move_at_once(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    tables["server"]["lease_s"] = 60.0
    control = cluster.server()
    leaver, _ = cluster.workers(control, "w0", "w1")
    control.submit(tables)
    control.when(lambda status: status.version >= 10)
    leaver.terminate()
    assert leaver.wait(10) == 0
    control.when(lambda status: all(s.worker == "w1" for s in status.shards))
    assert control.finish().state == "done"


def test_a_unix_socket_serves_as_well(cluster: Cluster) -> None:
    data(cluster.folder)
    control = cluster.server(f"unix:{cluster.folder}/socket")
    assert control.address == f"unix:{cluster.folder}/socket"
    cluster.workers(control, "w0")
    control.train(job(train__steps=5))
