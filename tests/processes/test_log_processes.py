"""A server that logs what it counts: nothing that was acknowledged is lost or counted twice, whoever is killed."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.client import Client, RequestError
from paramserver.wire.errors import ParamserverError
from paramserver.wire.job import Job
from paramserver.worker import Worker
from paramserver.worker.worker import Step
from processes.cluster import DEADLINE_S, Cluster, Control, until
from processes.test_partitions import Servers
from processes.test_recovery_processes import STEPS, kill, resource_limit, slow_job, start


def logged_job(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """Return a job whose only snapshots are those that it cannot do without."""
    defaults = {"train__mode": "async", "server__durability": "log", "server__snapshot_every_s": 3600.0}
    return slow_job(cluster, **{**defaults, **changes})


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_a_killed_server_goes_on_where_it_was_seen_last(cluster: Cluster, mode: str) -> None:
    tables = logged_job(cluster, train__mode=mode)
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(tables, "j")
    for version in (100, 300):
        control.when(lambda s, v=version: s.version > v)
        acknowledged = seen(control)
        kill(control.process)
        control = start(cluster, control.address)
        assert control.status().version >= acknowledged
    last = control.finish()
    assert last.state == "done"
    assert last.version == 4 * STEPS
    assert list(last.clock) == [STEPS] * 4
    assert sum(last.staleness.values()) == 4 * STEPS
    assert "replayed" in cluster.logs()


def test_several_servers_go_on_where_they_were_seen_last_under_any_policy(cluster: Cluster) -> None:
    """Rounds are not logged, nor what counts between a switch and the snapshot that follows it."""
    tables = logged_job(cluster, train__steps=1_000_000)
    tables["server"]["partitions"] = 2
    servers = Servers(cluster, 2, keep=True)
    servers.workers("w0", "w1")
    servers.coordinator.submit(tables, "j")
    version = 0
    for mode, victim in (("sync", 1), ("ssp", 0), ("async", 1), ("sync", 0), ("async", 0)):
        servers.coordinator.when(lambda s, v=version: s.version > v + 15)
        acknowledged = seen(servers.coordinator)
        with Client(servers.coordinator.address) as client:
            assert client.set_policy(mode, staleness=2).train.mode == mode
        servers.coordinator.when(lambda s, v=acknowledged: s.version > v + 15)
        if mode != "sync":
            # Rounds would be computed again.
            acknowledged = seen(servers.coordinator)
        servers.kill(victim)
        servers.coordinator.when_open()
        status = servers.coordinator.status()
        version = status.version
        assert version >= acknowledged
        assert Job.from_json(status.job_json).train.mode == mode
    with Client(servers.coordinator.address) as client:
        client.stop("that will do")
    assert seen(servers.coordinator) == servers.coordinator.status().version
    assert "begins anew" not in cluster.logs()


def seen(control: Control) -> int:
    """Return the version of θ that a client is given."""
    control.theta()
    return control.pulled


def test_a_full_disk_stops_training_and_free_space_lets_it_go_on(cluster: Cluster) -> None:
    tables = logged_job(cluster)
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(tables, "j")
    control.when(lambda s: s.version > 10)
    # No file of the server may grow any more: what a full disk looks like, without filling one.
    resource_limit(control.process.pid, 100)
    status = control.when(lambda s: "training waits" in s.durability)
    assert "File too large" in status.durability
    with pytest.raises(grpc.RpcError, match="is not safe"):
        control.theta()
    stood = control.status().version
    resource_limit(control.process.pid, -1)
    control.when(lambda s: s.version > stood + 4 and "training waits" not in s.durability)
    # The status may be ahead of the disk, what a client is given is not.
    acknowledged = seen(control)
    assert acknowledged > stood
    kill(control.process)
    control = start(cluster, control.address)
    assert control.status().version >= acknowledged
    last = control.finish()
    assert (last.state, last.version) == ("done", 4 * STEPS)


def test_a_full_disk_of_one_server_stops_all_and_free_space_lets_them_go_on(cluster: Cluster) -> None:
    tables = logged_job(cluster, train__steps=1_000_000)
    tables["server"]["partitions"] = 2
    servers = Servers(cluster, 2, keep=True)
    servers.workers("w0", "w1")
    coordinator = servers.coordinator
    coordinator.submit(tables, "j")
    coordinator.when(lambda s: s.version > 10)
    other = servers.controls[1].process.pid
    resource_limit(other, 100)
    status = coordinator.when(lambda s: "training waits" in s.durability)
    assert "File too large" in status.durability
    with pytest.raises(grpc.RpcError, match="is not safe"):
        coordinator.theta()
    resource_limit(other, -1)
    coordinator.when(lambda s: "training waits" not in s.durability)
    acknowledged = seen(coordinator)
    servers.kill(1)
    coordinator.when_open()
    assert coordinator.status().version >= acknowledged
    coordinator.when(lambda s: s.version > acknowledged + 4)
    assert "begins anew" not in cluster.logs()


def mountable() -> bool:
    """Whether this process may make a mount namespace of its own."""
    return shutil.which("unshare") is not None and not subprocess.call(
        ["unshare", "--mount", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.skipif(not mountable(), reason="no mount namespaces here")
def test_a_disk_that_is_really_full_and_really_read_only(cluster: Cluster) -> None:
    """In a mount namespace of the server's own: a small tmpfs, filled up, and one that cannot be written to."""
    state = cluster.folder / "state"
    state.mkdir()
    tables = logged_job(cluster, train__steps=100_000)
    control = in_namespace(cluster, f"mount -t tmpfs -o size=400k none {state}", state)
    cluster.workers(control, "w0")
    control.submit(tables, "j")
    status = control.when(lambda s: "No space left" in s.durability)
    assert "training waits" in status.durability
    assert control.status().state == "train"
    control.process.terminate()
    assert control.process.wait(DEADLINE_S) == 0
    status_code, said = refused(cluster, f"mount -t tmpfs -o ro none {state}", state)
    assert status_code == 2
    assert "Read-only file system" in said


def in_namespace(cluster: Cluster, mount: str, state: Path) -> Control:
    address_file = cluster.folder / "address-in-namespace"
    process = namespaced(cluster, mount, "--address-file", str(address_file), "--state", str(state))
    until(address_file.exists, "the server's address")
    control = Control(address_file.read_text(encoding="utf-8"), process)
    cluster.controls.append(control)
    cluster.addresses.append(control.address)
    return control


def refused(cluster: Cluster, mount: str, state: Path) -> tuple[int, str]:
    process = namespaced(cluster, mount, "--state", str(state))
    status = process.wait(DEADLINE_S)
    return status, (cluster.folder / "namespaced-server.log").read_text(encoding="utf-8")


def namespaced(cluster: Cluster, mount: str, *arguments: str) -> subprocess.Popen[bytes]:
    roots = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, roots.split(":"))))}
    server = shlex.join([sys.executable, "-m", "paramserver.server", "--listen", "127.0.0.1:0", *arguments])
    command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {server}"]
    with (cluster.folder / "namespaced-server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=cluster.folder, env=environment, stdout=log, stderr=log)
    cluster.processes.append(process)
    return process


def test_a_worker_with_a_loop_of_its_own_is_counted_once_over_restarts(cluster: Cluster) -> None:
    """Every push through the client library carries a number of its own; θ tells which of them were counted."""
    steps, shards = 40, 2
    (cluster.folder / "waits.py").write_text(NOTHING, encoding="utf-8")
    tables = {
        "task": {"use": "waits.py:Nothing", "options": {"size": steps * shards}},
        "data": {"source": "waits.py:rows", "shards": shards, "batch_size": 1},
        "train": {"mode": "async", "reduce": "sum", "steps": steps, "dtype": "float64"},
        "optimizer": {"learning_rate": 1.0},
        "server": {"durability": "log", "snapshot_every_s": 0.3},
    }
    control = start(cluster)
    control.submit(tables, "j")
    chance = random.Random(3)
    kills = [10, 25, 50]
    #: By shard and step: what was pushed, in order, and what was acknowledged.
    pushed: dict[tuple[int, int], list[float]] = {}
    acknowledged: dict[tuple[int, int], float] = {}
    with Worker(control.address, base=str(cluster.folder)) as worker:
        for step in worker.steps():
            name = step.shard, step.number
            value = float(chance.randrange(1, 2**40))
            gradient = np.zeros(steps * shards)
            gradient[step.shard * steps + step.number] = value
            pushed.setdefault(name, []).append(value)
            step.push({"sum": gradient}, loss=1.0, samples=1)
            # Sometimes it goes on at once, and is ahead of the disk.
            if chance.random() < 0.5 and step.wait(DEADLINE_S):
                acknowledged[name] = value
            if kills and sum(map(len, pushed.values())) > kills[0]:
                kills.pop(0)
                kill(control.process)
                control = start(cluster, control.address)
    assert not kills
    assert control.finish().state == "done"
    theta = control.theta()["sum"]
    for shard in range(shards):
        for number in range(steps):
            # One attempt counts, and the one that was acknowledged; a step is handed out again only if the server knows
            # nothing of the push before.
            counted = -theta[shard * steps + number]
            assert counted in pushed[shard, number]
            assert acknowledged.get((shard, number), counted) == counted
            assert len(pushed[shard, number]) <= 1 + 3
    assert len(acknowledged) > steps * shards / 4


def test_in_rounds_a_push_is_acknowledged_with_its_round(cluster: Cluster) -> None:
    (cluster.folder / "waits.py").write_text(NOTHING, encoding="utf-8")
    tables = {
        "task": {"use": "waits.py:Nothing", "options": {"size": 4}},
        "data": {"source": "waits.py:rows", "shards": 2, "batch_size": 1},
        "train": {"steps": 2, "dtype": "float64"},
        "optimizer": {"learning_rate": 1.0},
        "server": {"durability": "log"},
    }
    control = start(cluster)
    control.submit(tables, "j")
    done: list[Step] = []
    with Worker(control.address, base=str(cluster.folder)) as worker:
        for step in worker.steps():
            with pytest.raises(ParamserverError, match="have yet to be pushed"):
                step.wait(0.0)
            step.push({"sum": np.zeros(4)}, loss=1.0, samples=1)
            if step.shard == 0:
                with pytest.raises(ParamserverError, match="1 of them have yet to be pushed"):
                    step.wait(0.0)
            else:
                assert all(earlier.wait(DEADLINE_S) for earlier in done)
                assert step.wait(DEADLINE_S)
            done.append(step)
    assert [(step.shard, step.number) for step in done] == [(0, 0), (1, 0), (0, 1), (1, 1)]


NOTHING = """
import numpy as np

class Nothing:
    def __init__(self, size):
        self.size = size

    def init(self, rng, batch):
        return {"sum": np.zeros(self.size)}

    def loss_and_grad(self, params, batch):
        raise AssertionError("the loop computes")

def rows():
    return np.zeros((8, 1)), np.zeros(8)
"""


def test_a_running_server_tells_what_made_its_versions(cluster: Cluster) -> None:
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(logged_job(cluster, server__hash_every=5), "j")
    version = control.when(lambda s: s.version > 20).version
    with Client(control.address) as client:
        origin = client.origin(version)
        (contribution,) = origin.contributions
        assert contribution.worker in ("w0", "w1")
        assert 0 <= contribution.computed_at < version
        assert len(client.origin(15).theta_sha256) == 64
        kill(control.process)
        control = start(cluster, control.address)
        # The log brings it back too.
        assert client.origin(version) == origin
        with pytest.raises(RequestError, match="known are versions 1 to"):
            client.origin(10**6)
