"""θ cut over several servers: the bits of a single one, whoever is killed when."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from processes.cluster import Cluster, Control
from processes.test_training_processes import WIDE, data, job


class Servers:
    """K servers that share θ; every one can be killed and started again where it was."""

    def __init__(self, cluster: Cluster, count: int, keep: bool = False) -> None:
        self.cluster = cluster
        self.count = count
        self.keep = keep
        self.controls: list[Control] = [None] * count  # type: ignore[list-item]
        for partition in reversed(range(count)):
            self.start(partition)
        self.coordinator.when_ready(count)

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


@pytest.mark.parametrize("transport", ["auto", "stream"])
def test_the_same_bits_over_one_two_and_three_servers(cluster: Cluster, transport: str) -> None:
    data(cluster.folder)
    (cluster.folder / "wide.py").write_text(WIDE, encoding="utf-8")
    tables = job(task__use="wide.py:Wide", train__steps=6, train__dtype="float32", optimizer__name="adam")
    found = []
    for count in (1, 2, 3):
        servers = Servers(cluster, count)
        servers.workers("a", "b", transport=transport)
        last = servers.coordinator.train(partitioned(tables, count))
        assert last.version == 6
        found.append(servers.coordinator.bits())
        for control in servers.controls:
            control.process.terminate()
            control.process.wait()
    assert found[0] == found[1]
    assert found[0] == found[2]


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


@pytest.mark.parametrize("victims", [(1,), (0,), (2, 0, 1)], ids=str)
def test_servers_that_are_killed_end_with_the_same_bits(cluster: Cluster, victims: tuple[int, ...]) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    servers = Servers(cluster, 3, keep=True)
    servers.workers("a", "b")
    servers.coordinator.submit(partitioned(tables, 3))
    for number, victim in enumerate(victims, start=1):
        version = number * STEPS // (len(victims) + 1)
        servers.coordinator.when(lambda s, v=version: s.version >= v)
        servers.kill(victim)
    last = servers.coordinator.finish_at_last()
    assert (last.state, last.version) == ("done", STEPS), last.reason
    assert servers.coordinator.bits() == expected
    assert cluster.logs().count("goes on at version 0") == 0


def test_workers_that_are_killed_between_two_pushes_are_replaced_with_the_same_bits(cluster: Cluster) -> None:
    tables = slow_job(cluster)
    expected = undisturbed(cluster, tables)
    servers = Servers(cluster, 2)
    workers = dict(zip("abc", servers.workers(*"abc"), strict=True))
    servers.coordinator.submit(partitioned(tables, 2))
    for number, victim in enumerate("abcab", start=1):
        version = 20 * number
        servers.coordinator.when(lambda s, v=version: s.version >= v)
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = servers.worker(victim)
    assert servers.coordinator.finish().state == "done"
    assert servers.coordinator.bits() == expected
