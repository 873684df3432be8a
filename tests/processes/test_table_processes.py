"""Tables between real processes: killed and started again, over both transports, pulled and exported."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from paramserver.client import Client, Job, JobError, train
from paramserver.wire.fingerprint import theta_sha256
from paramserver.worker import Worker
from paramserver.worker.tasks.sparse import FactorizationMachine
from processes.cluster import Cluster, Control

#: Steps take long enough for a test to act in the middle of a run.
SLOW = """
import time
from paramserver.worker.tasks.sparse import FactorizationMachine

class Slow(FactorizationMachine):
    def loss_and_grad(self, params, batch):
        time.sleep(0.002)
        return super().loss_and_grad(params, batch)
"""

STEPS = 90


def make_job(folder: Path, **server: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    for name, rows in (("train", 400), ("test", 100)):
        x = rng.integers(1, 60, (rows, 4))
        lines = [
            f"{int(sum(own) % 3 == 0)} " + " ".join(f"{index}:1" for index in sorted(own)) + "\n" for own in map(set, x)
        ]
        (folder / f"{name}.svm").write_text("".join(lines))
    (folder / "slow.py").write_text(SLOW)
    return {
        "task": {"use": "slow.py:Slow", "options": {"rank": 3}},
        "data": {"source": "train.svm", "test": "test.svm", "shards": 4, "batch_size": 16},
        "train": {"steps": STEPS},
        "optimizer": {"name": "adam", "learning_rate": 0.02},
        "server": {"snapshot_every_s": 0.05, "lease_s": 1.0, "table_max_rows": 56, **server},
    }


def theta(control: Control) -> dict[str, Any]:
    with Client(control.address) as client:
        return client.pull()[0]


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_kill_anything_and_get_the_same_rows_over_either_transport(cluster: Cluster) -> None:
    job = make_job(cluster.folder)
    calm = cluster.server()
    cluster.worker(calm, "alone", "--transport", "stream")
    calm.train(job)
    expected = theta(calm)
    # The bound has bitten, so that what is forgotten is part of the promise.
    assert 49 <= expected["v.keys"].size <= 56
    chance = random.Random(1)
    control = cluster.server("127.0.0.1:0", "--state", str(cluster.folder / "state"))
    processes = dict(zip("abc", cluster.workers(control, *"abc"), strict=True))
    control.submit(job, "j")
    for version in range(10, STEPS - 10, 20):
        control.when(lambda s, v=version: s.version > v)
        victim = chance.choice(["server", *processes])
        if victim == "server":
            kill(control.process)
            control = cluster.server(control.address, "--state", str(cluster.folder / "state"))
        else:
            kill(processes[victim])
            processes[victim] = cluster.worker(control, victim)
    last = control.finish()
    assert (last.state, last.version) == ("done", STEPS)
    assert dict(last.table_rows) == {"w": expected["w.keys"].size, "v": expected["v.keys"].size}
    found = theta(control)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name
    with Client(control.address) as client:
        assert client.checkpoint().theta_sha256 == theta_sha256(expected)
        assert set(client.evaluate(cluster.folder)) == {"test_accuracy"}


def test_tables_are_exported_as_keys_and_rows_and_a_loop_of_ones_own_makes_the_same(cluster: Cluster) -> None:
    job = make_job(cluster.folder, table_max_rows=0)
    job["train"]["steps"] = 20
    control = cluster.server()
    worker = cluster.worker(control, "w")
    control.train(job)
    out = cluster.folder / "theta.safetensors"
    command = [sys.executable, "-m", "paramserver.client.cli", "export"]
    environment = {"PYTHONPATH": ":".join(str(Path(path).resolve()) for path in sys.path if path)}
    done = subprocess.run(
        [*command, "--server", control.address, "--out", str(out), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    tensors = load_file(out)
    assert {name: (values.dtype.name, values.shape[1:]) for name, values in tensors.items()} == {
        "b": ("float32", ()),
        "w.keys": ("int64", ()),
        "w.rows": ("float32", (1,)),
        "v.keys": ("int64", ()),
        "v.rows": ("float32", (3,)),
    }
    assert len(tensors["v.keys"]) == len(tensors["v.rows"]) > 50
    assert (np.diff(tensors["v.keys"]) > 0).all()
    assert json.loads(done.stdout)["theta_sha256"] == theta_sha256(tensors)
    kill(worker)
    model = FactorizationMachine(rank=3)
    with Worker(control.address, base=cluster.folder) as own:
        control.submit(job)
        for step in own.steps():
            loss, gradient = model.loss_and_grad(step.theta, step.batch)
            step.push(gradient, loss=loss, samples=step.batch.n)
    assert theta_sha256(theta(control)) == theta_sha256(tensors)


def test_what_tables_cannot_have_is_refused_before_anything_starts(tmp_path: Path) -> None:
    tables = make_job(tmp_path)
    tables["train"]["local_steps"] = 2
    with pytest.raises(JobError, match=r"train.local_steps = 2 .* cannot be had with a task that has tables"):
        train(Job.from_dict(tables), run=tmp_path / "run", base=tmp_path)
    assert not (tmp_path / "run").exists()
