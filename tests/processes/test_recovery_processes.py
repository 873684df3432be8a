"""A server that is killed and started again with its state directory: the same bits, and nobody has to help."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from paramserver.client import Client, Point, RequestError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import DEADLINE_S, Cluster, Control
from processes.test_training_processes import data, job

#: Steps take long enough for a test to act in the middle of a run.
SLOW = """
import time
from paramserver.worker.tasks.linear import LinearRegression

class Slow(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.002)
        return super().loss_and_grad(params, batch)
"""

STEPS = 160


def slow_job(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    data(cluster.folder)
    (cluster.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    defaults = {"train__steps": STEPS, "server__snapshot_every_s": 0.05, "optimizer__name": "rmsprop"}
    return job(task__use="slow.py:Slow", **{**defaults, **changes})


def start(cluster: Cluster, listen: str = "127.0.0.1:0") -> Control:
    return cluster.server(listen, "--state", str(cluster.folder / "state"))


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def undisturbed(cluster: Cluster, tables: dict[str, Any]) -> bytes:
    """Return the bits of the run in which nothing happens, by one worker, from a server that keeps nothing."""
    control = cluster.server()
    (worker,) = cluster.workers(control, "alone")
    control.train(tables)
    bits = control.bits()
    kill(worker)
    kill(control.process)
    return bits


def test_a_server_that_is_killed_again_and_again_ends_with_the_same_bits(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    control = start(cluster)
    cluster.workers(control, "w0", "w1", "w2")
    control.submit(tables, "j")
    versions = []
    for version in (0, 50, 100):
        versions.append(control.when(lambda s, v=version: s.state == "train" and s.version > v).version)
        kill(control.process)
        control = start(cluster, control.address)
    # It went on, not began anew: what was kept is at most a few snapshots behind.
    assert control.status().version > 40
    assert control.finish().state == "done"
    assert control.bits() == expected


def test_servers_and_workers_that_are_killed_at_random_end_with_the_same_bits(cluster: Cluster) -> None:
    tables = slow_job(cluster, server__lease_s=1.0)
    expected = undisturbed(cluster, tables)
    chance = random.Random(5)
    control = start(cluster)
    processes = dict(zip("abc", cluster.workers(control, *"abc"), strict=True))
    control.submit(tables, "j")
    for version in range(15, STEPS, 15):
        control.when(lambda s, v=version: s.version > v)
        victim = chance.choice(["server", *processes])
        if victim == "server":
            kill(control.process)
            control = start(cluster, control.address)
        else:
            kill(processes[victim])
            processes[victim] = cluster.worker(control, victim)
    assert control.finish().state == "done"
    assert control.bits() == expected


def test_async_goes_on_and_counts_every_step_once(cluster: Cluster) -> None:
    tables = slow_job(cluster, train__mode="async")
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(tables, "j")
    for version in (100, 300):
        control.when(lambda s, v=version: s.version > v)
        kill(control.process)
        control = start(cluster, control.address)
    last = control.finish()
    assert last.state == "done"
    assert last.version == 4 * STEPS
    assert list(last.clock) == [STEPS] * 4
    assert sum(last.staleness.values()) == 4 * STEPS


def test_a_switched_policy_outlives_the_server_and_the_job_is_still_the_one_submitted(cluster: Cluster) -> None:
    tables = slow_job(cluster, server__snapshot_every_s=3600.0)
    control = start(cluster)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    control.when(lambda s: s.version > 20)
    control.stub.SetPolicy(pb.SetPolicyRequest(mode="async"), timeout=DEADLINE_S)
    kill(control.process)
    control = start(cluster, control.address)
    status = control.status()
    assert status.version >= 20
    assert json.loads(status.job_json)["train"]["mode"] == "async"
    # The same submission, which a client may repeat after a lost answer.
    control.submit(tables, "j")
    assert control.finish().state == "done"


def test_lease_epochs_only_rise_over_restarts(cluster: Cluster) -> None:
    tables = slow_job(cluster, train__steps=100_000)
    control = start(cluster)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    highest = 0
    for _ in range(3):
        epochs = [s.epoch for s in control.when(lambda s: s.version and all(x.worker for x in s.shards)).shards]
        assert min(epochs) > highest
        highest = max(epochs)
        kill(control.process)
        control = start(cluster, control.address)


def test_a_finished_job_is_still_there_after_a_restart(cluster: Cluster) -> None:
    control = start(cluster)
    cluster.workers(control, "w0")
    data(cluster.folder)
    last = control.train(job())
    theta, version = control.bits(), last.version
    kill(control.process)
    control = start(cluster, control.address)
    status = control.status()
    assert (status.state, status.reason, status.version) == ("done", last.reason, version)
    assert (status.loss, status.samples, list(status.clock)) == (last.loss, last.samples, list(last.clock))
    assert status.seconds == pytest.approx(last.seconds, abs=0.05)
    assert control.bits() == theta
    # And the next job begins from nothing.
    control.train(job(train__steps=3))
    assert control.status().version == 3


def test_a_watcher_sees_every_point_once_and_the_true_end(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(tables, "j")
    points: list[Point] = []
    kills = [40, 100]
    with Client(control.address) as client:
        for update in client.watch():
            points += update.points
            if kills and points and points[-1].step > kills[0]:
                kills.pop(0)
                kill(control.process)
                control = start(cluster, control.address)
        theta, _ = client.pull()
    assert not kills
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert [point.version for point in points] == list(range(1, STEPS + 1))
    assert points[-1].loss == update.status.loss
    snapshot = load_file(newest(cluster))
    assert theta_sha256(theta) == theta_sha256({name: snapshot[f"theta/{name}"] for name in theta})


def newest(cluster: Cluster) -> Path:
    return max((cluster.folder / "state").glob("*.safetensors"))


def test_a_checkpoint_is_on_the_disk_when_the_client_is_told(cluster: Cluster) -> None:
    tables = slow_job(cluster, server__snapshot_every_s=3600.0)
    control = start(cluster)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    control.when(lambda s: s.version > 20)
    with Client(control.address) as client:
        found = client.checkpoint()
        assert client.status().durability.startswith(f"snapshot of version {found.version}")
    kill(control.process)
    snapshot = load_file(found.file)
    theta = {name.removeprefix("theta/"): value for name, value in snapshot.items() if name.startswith("theta/")}
    assert theta_sha256(theta) == found.theta_sha256
    control = start(cluster, control.address)
    assert control.status().version >= found.version > 20


def test_a_server_that_is_told_to_stop_loses_nothing(cluster: Cluster) -> None:
    tables = slow_job(cluster, train__mode="async", server__snapshot_every_s=3600.0)
    control = start(cluster)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    version = control.when(lambda s: s.version > 50).version
    control.process.terminate()
    assert control.process.wait(10) == 0
    assert start(cluster, control.address).status().version >= version


def test_without_a_state_directory_the_server_says_that_nothing_is_kept(cluster: Cluster) -> None:
    control = cluster.server()
    control.submit(slow_job(cluster))
    assert "--state" in control.status().durability
    assert "nothing of this job outlives the server process" in cluster.logs()
    with Client(control.address) as client, pytest.raises(RequestError, match="--state"):
        client.checkpoint()


def test_a_job_of_durability_none_is_not_kept_and_says_so(cluster: Cluster) -> None:
    control = start(cluster)
    control.submit(slow_job(cluster, server__durability="none"))
    assert "as the job asks" in control.status().durability
    kill(control.process)
    assert start(cluster, control.address).status().state == "idle"


def test_a_second_server_on_the_same_directory_is_refused(cluster: Cluster) -> None:
    start(cluster)
    status, said = cluster.run("server", "--listen", "127.0.0.1:0", "--state", str(cluster.folder / "state"))
    assert status == 2
    assert "another server uses it" in said


def test_a_full_disk_does_not_end_training_and_is_told(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    control = start(cluster)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    control.when(lambda s: s.version > 10)
    # No file of the server may grow any more: what a full disk looks like, without filling one.
    resource_limit(control.process.pid, 100)
    status = control.when(lambda s: "failed" in s.durability)
    assert "File too large" in status.durability
    with Client(control.address) as client, pytest.raises(RequestError, match="File too large"):
        client.checkpoint()
    resource_limit(control.process.pid, -1)
    control.when(lambda s: s.durability.startswith("snapshot of version"))
    os.kill(control.process.pid, signal.SIGKILL)
    control.process.wait()
    control = start(cluster, control.address)
    assert control.finish().state == "done"


def resource_limit(pid: int, size: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))
