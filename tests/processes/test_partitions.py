"""θ cut over several servers: the bits of a single one, whoever is killed when."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

from paramserver.client import Client
from paramserver.wire.errors import ParamserverError, RequestError
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Array, Cluster, Control, until
from processes.raw_worker import RawWorker
from processes.test_training_processes import data, job


class Servers:
    """K servers that share θ; every one can be killed and started again where it was."""

    def __init__(self, cluster: Cluster, count: int, keep: bool = False) -> None:
        self.cluster = cluster
        self.count = count
        self.keep = keep
        self.controls: list[Control] = [None] * count  # type: ignore[list-item]
        for partition in reversed(range(count)):
            self.start(partition)
        self.coordinator.when_open()

    @property
    def coordinator(self) -> Control:
        return self.controls[0]

    @property
    def addresses(self) -> str:
        return ",".join(control.address for control in self.controls)

    def start(self, partition: int) -> None:
        arguments = []
        if self.count > 1:
            arguments += ["--partition", f"{partition}/{self.count}"]
            if partition == 0:
                arguments += ["--peers", ",".join(control.address for control in self.controls[1:])]
        if self.keep:
            arguments += ["--state", str(self.cluster.folder / f"state-{partition}")]
        listen = self.controls[partition].address if self.controls[partition] else "127.0.0.1:0"
        self.controls[partition] = self.cluster.server(listen, *arguments)

    def kill(self, partition: int) -> None:
        """Kill a server, and start it again."""
        process = self.controls[partition].process
        process.kill()
        process.wait()
        self.start(partition)

    def workers(self, *names: str, transport: str = "auto") -> list[subprocess.Popen[bytes]]:
        started = [self.worker(name, transport) for name in names]
        self.coordinator.joined(*names)
        return started

    def worker(self, name: str, transport: str = "auto") -> subprocess.Popen[bytes]:
        return self.cluster.start(
            "worker",
            *("--server", self.addresses, "--name", name, "--base", str(self.cluster.folder)),
            *("--transport", transport),
        )


def partitioned(tables: dict[str, Any], count: int) -> dict[str, Any]:
    return {**tables, "server": {**tables.get("server", {}), "partitions": count}}


#: Steps take long enough for a test to act in the middle of a run; θ is 10 elements in two tensors.
SLOW = """
import time
import numpy as np
from paramserver.worker.tasks.linear import LinearRegression

class Slow(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.002)
        return super().loss_and_grad(params, batch)
"""

STEPS = 120


def slow_job(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    data(cluster.folder)
    (cluster.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    defaults = {"train__steps": STEPS, "server__snapshot_every_s": 0.05, "server__lease_s": 1.0}
    return job(task__use="slow.py:Slow", optimizer__name="rmsprop", **{**defaults, **changes})


def undisturbed(cluster: Cluster, tables: dict[str, Any]) -> bytes:
    """Return the bits of one server and one worker to which nothing happens."""
    control = cluster.server()
    (worker,) = cluster.workers(control, "alone")
    control.train(tables)
    bits = control.bits()
    for process in (worker, control.process):
        process.terminate()
        process.wait()
    return bits


def has_snapshot(coordinator: Control) -> bool:
    """Take a snapshot on all servers, if all are there."""
    try:
        with Client(coordinator.address) as client:
            return client.checkpoint().version > 0
    except RequestError:
        return False


def test_servers_and_workers_that_are_killed_end_with_the_same_bits(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    servers = Servers(cluster, 3, keep=True)
    workers = dict(zip("ab", servers.workers(*"ab"), strict=True))
    servers.coordinator.submit(partitioned(tables, 3))
    victims: tuple[int | str, ...] = (2, "a", 0, "b", 1)
    for number, victim in enumerate(victims, start=1):
        version = number * STEPS // (len(victims) + 1)
        servers.coordinator.when(lambda s, v=version: s.version >= v)
        if isinstance(victim, int):
            until(lambda: has_snapshot(servers.coordinator), "a snapshot on all servers")
            servers.kill(victim)
        else:
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = servers.worker(victim)
    last = servers.coordinator.finish_at_last()
    assert (last.state, last.version) == ("done", STEPS), last.reason
    assert servers.coordinator.bits() == expected
    assert cluster.logs().count("goes on at version 0") == 0


def test_a_quorum_a_switched_policy_and_a_stop_reach_all_servers(cluster: Cluster) -> None:
    tables = slow_job(cluster, train__quorum=3, train__steps=10_000)
    servers = Servers(cluster, 2, keep=True)
    servers.workers("a", "b", "c")
    coordinator = servers.coordinator
    coordinator.submit(partitioned(tables, 2))
    coordinator.when(lambda s: s.version >= 20)
    with Client(coordinator.address) as client:
        for mode in ("async", "ssp", "sync"):
            version = client.status().version
            assert client.set_policy(mode, quorum=0).train.mode == mode
            coordinator.when(lambda s, v=version: s.version >= v + 50)
        found = client.checkpoint()
        assert found.version >= version
        theta, version = client.pull()
        assert version >= found.version
        assert {name: value.shape for name, value in theta.items()} == {"w": (3,), "b": (1,)}
        stopped = client.stop()
        assert client.status().state == "stopped"
        after, version = client.pull()
        assert version == stopped
        until(lambda: [p.version for p in client.status().partitions] == [stopped, stopped], "the second server")
        # What was said to be saved is there after both have been killed.
        servers.kill(0)
        servers.kill(1)
        again, version = until(lambda: quietly(client.pull), "θ after the restart")
    assert version == stopped
    assert all(np.array_equal(after[name], again[name]) for name in after)


def quietly(pull: Any) -> Any:
    try:
        return pull()
    except ParamserverError:
        return None


def test_messages_between_servers_and_to_workers_go_beside_grpc(cluster: Cluster) -> None:
    servers = Servers(cluster, 2)
    servers.workers("streaming", transport="stream")
    servers.workers("old", transport="grpc")
    said = cluster.logs()
    assert f"orders to partition 1 at {servers.controls[1].address} go through port" in said
    for control in servers.controls:
        assert said.count(f"messages for {control.address} go through port") == 1


def test_a_job_of_which_nothing_is_kept_fails_with_a_server(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    servers = Servers(cluster, 2)
    servers.workers("a")
    servers.coordinator.submit(partitioned(tables, 2))
    servers.coordinator.when(lambda s: s.version >= 10)
    servers.kill(1)
    last = servers.coordinator.finish_at_last()
    assert last.state == "failed"
    assert f"no server answers at {servers.controls[1].address}" in last.reason
    assert "nothing of the job is kept" in last.reason
    servers.coordinator.when_open()
    assert servers.coordinator.train(partitioned({**tables, "train": {"steps": 3}}, 2)).version == 3


def test_whoever_takes_a_server_for_another_is_told(cluster: Cluster) -> None:
    data(cluster.folder)
    servers = Servers(cluster, 2)
    first, second = servers.controls
    for server, expected in (
        (first.address, "this is partition 0 of 2, the worker takes it for a server that holds all of θ"),
        (second.address, "this is partition 1 of 2, the worker takes it for a server that holds all of θ"),
        (f"{second.address},{first.address}", "this is partition 0 of 2, the worker takes it for partition 1 of 2"),
        (f"{first.address},{second.address},{second.address}", "the worker takes it for partition 1 of 3"),
    ):
        status, said = cluster.run("worker", "--server", server, "--name", "lost")
        assert status == 1
        assert expected in said
    with Client(second.address) as client, pytest.raises(RequestError, match="name the coordinator, partition 0"):
        client.submit(Job.from_dict(job()))
    with (
        Client(first.address) as client,
        pytest.raises(RequestError, match=r"server\.partitions = 1, but this is part"),
    ):
        client.submit(Job.from_dict(job()))
    alone = cluster.server()
    with Client(alone.address) as client, pytest.raises(RequestError, match="allowed here is 1"):
        client.submit(Job.from_dict(partitioned(job(), 2)))
    wrong = cluster.server("127.0.0.1:0", "--partition", "0/3", "--peers", f"{second.address},{second.address}")
    until(lambda: "the coordinator takes it for partition" in wrong.status().reason, "the complaint")
    status, said = cluster.run("server", "--partition", "2/2")
    assert (status, "'2/2' is not I/K" in said) == (2, True)
    status, said = cluster.run("server", "--partition", "0/2")
    assert (status, "--peers: 0 addresses" in said) == (2, True)


def begun_by_hand(cluster: Cluster, name: str) -> tuple[Servers, ByHand, pb.Work]:
    """Return two servers, a worker that has brought both the first θ, (1, 2, 3, 4), and its first gradient's work."""
    servers = Servers(cluster, 2)
    tables = partitioned(job(data__shards=1, data__batch_size=0, train__steps=2, train__dtype="float64"), 2)
    worker = ByHand(servers, name)
    servers.coordinator.submit(tables)
    return servers, worker, worker.begin(np.array([1.0, 2.0, 3.0, 4.0]))


def test_a_worker_that_died_between_two_pushes_has_not_contributed(cluster: Cluster) -> None:
    """By hand: one server has a contribution and the other has not, then another worker brings it to both."""
    servers, dying, work = begun_by_hand(cluster, "dying")
    dying.push(1, work, np.array([30.0, 40.0]))
    servers.coordinator.when(lambda s: s.partitions[1].bytes_received > 0)
    dying.close()
    servers.coordinator.when(lambda s: not s.workers)
    heir = ByHand(servers, "heir")
    heir.main.pull()
    work, values = heir.main.work()
    assert np.frombuffer(values).tolist() == [1.0, 2.0]
    assert heir.fetch(work).tolist() == [3.0, 4.0]
    heir.push(0, work, np.array([10.0, 20.0]))
    assert servers.coordinator.status().version == 0
    heir.push(1, work, np.array([30.0, 40.0]))
    servers.coordinator.when(lambda s: s.version == 1)
    heir.main.pull()
    work, values = heir.main.work()
    theta = np.concatenate([np.frombuffer(values), heir.fetch(work)])
    # Ten samples, and a learning rate of 0.05.
    assert theta.tolist() == pytest.approx([0.95, 1.9, 2.85, 3.8], rel=1e-15)
    heir.close()


def test_a_push_may_ask_for_the_next_version_and_nothing_else_happens_if_there_is_none(cluster: Cluster) -> None:
    _, worker, work = begun_by_hand(cluster, "w")
    assert work.in_step
    assert worker.fetch(work, number=1).tolist() == [3.0, 4.0]
    (a,) = work.assignments
    push = {"shard": 0, "epoch": a.epoch, "step": a.step, "samples": 10}
    values = np.array([30.0, 40.0]).tobytes()
    worker.other.send(values, push=pb.Push(**push, version=2**64 - 1, number=2))
    assert f"computed at version {2**64 - 1}" in worker.main.until("refusal").refusal.reason
    worker.main.pull()
    work, _ = worker.main.work()
    (a,) = work.assignments
    push["epoch"] = a.epoch
    worker.other.send(values, push=pb.Push(**push, version=0, number=3))
    worker.push(0, work, np.array([10.0, 20.0]))
    found, values = worker.other.work()
    assert (found.version, found.number) == (1, 3)
    assert np.frombuffer(values).tolist() == pytest.approx([2.85, 3.8], rel=1e-15)
    worker.close()


class ByHand:
    """A worker of two servers, driven message by message."""

    def __init__(self, servers: Servers, name: str) -> None:
        self.other = RawWorker(servers.controls[1], name, pb.Join())
        self.other.send(join=pb.Join(protocol=1, worker=name, partition=1, partitions=2))
        welcome = self.other.expect("welcome").welcome
        self.main = RawWorker(servers.coordinator, name, pb.Join())
        self.main.send(join=pb.Join(protocol=1, worker=name, partitions=2))
        assert self.main.expect("welcome").welcome.cluster == welcome.cluster != b""

    def begin(self, theta: Array) -> pb.Work:
        self.main.pull()
        (survey,) = self.main.work()[0].assignments
        self.main.send(survey=pb.Survey(shard=0, epoch=survey.epoch, rows=10, features=3))
        self.main.pull()
        (initial,) = self.main.work()[0].assignments
        tensors = [pb.Tensor(name="w", shape=[4])]
        for worker, values in ((self.other, theta[2:]), (self.main, theta[:2])):
            message = pb.Initial(shard=0, epoch=initial.epoch, tensors=tensors)
            worker.send(values.tobytes(), initial=message)
        self.main.pull()
        return self.main.work()[0]

    def fetch(self, work: pb.Work, number: int = 0) -> Array:
        self.other.send(pull=pb.PullWork(version=work.version, shards=[0], number=number))
        found, values = self.other.work()
        assert (found.version, list(found.assignments)) == (work.version, [])
        return np.frombuffer(values)

    def push(self, partition: int, work: pb.Work, values: Array) -> None:
        (self.main, self.other)[partition].push(work, 0, values)

    def close(self) -> None:
        self.main.close()
        self.other.close()
