"""Exact accounting in async mode: θ is the sum of exactly the acknowledged contributions, whoever is killed when.

Contributions are integers in float64, so that sums are exact, and every attempt at a step has an integer of its own:
θ itself tells which attempt was counted, and whether it was counted once.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from processes.accounting_worker import SHARDS, STEPS
from processes.cluster import Array, Cluster
from processes.test_partitions import Servers
from processes.test_recovery_processes import kill, start

#: `make accounting` asks for more.
KILLS = int(os.environ.get("ACCOUNTING_KILLS", "8"))
SEEDS = range(int(os.environ.get("ACCOUNTING_SEEDS", "1")))

WORKERS = 2


def tables(durability: str) -> dict[str, Any]:
    return {
        "task": {"use": "none"},
        "data": {"source": "none", "shards": SHARDS},
        "train": {"mode": "async", "reduce": "sum", "steps": STEPS, "dtype": "float64"},
        "optimizer": {"learning_rate": 1.0},
        "server": {"durability": durability, "snapshot_every_s": 0.5, "lease_s": 1.0},
    }


class Accountants:
    """The worker processes, and what they wrote down."""

    def __init__(self, cluster: Cluster, addresses: str, script: str = "accounting_worker.py") -> None:
        self._cluster, self._addresses, self._script = cluster, addresses, script
        self.processes = {f"w{n}": self._start(f"w{n}") for n in range(WORKERS)}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name(self._script)
        environment = dict(os.environ)
        roots = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), str(script.parent.parent)]
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, roots))
        command = [sys.executable, str(script), self._addresses, name, str(self._journal)]
        process = subprocess.Popen(command, env=environment)
        self._cluster.processes.append(process)
        return process

    @property
    def _journal(self) -> Path:
        return self._cluster.folder / "journal.txt"

    def check(self, theta: Array) -> None:
        """Hold θ against what was sent and acknowledged."""
        sent, acked = self.said()
        assert theta.shape == (SHARDS * STEPS,)
        for shard in range(SHARDS):
            for step in range(STEPS):
                counted = -int(theta[shard * STEPS + step])
                # One attempt, and only one: two would add up to a number that nobody sent.
                assert counted in sent[shard, step], (shard, step)
                assert acked[shard, step] <= {counted}, (shard, step)

    def replace(self, name: str) -> None:
        """Kill a worker and start another under its name."""
        kill(self.processes[name])
        self.processes[name] = self._start(name)

    def end(self) -> None:
        """End all of them; one that came back after the end of the job would wait for the next."""
        for process in self.processes.values():
            kill(process)

    def said(self) -> tuple[dict[tuple[int, int], set[int]], dict[tuple[int, int], set[int]]]:
        """Return by shard and step what was sent and what was acknowledged."""
        sent: dict[tuple[int, int], set[int]] = defaultdict(set)
        acked: dict[tuple[int, int], set[int]] = defaultdict(set)
        for line in self._journal.read_text().splitlines():
            what, *numbers = line.split()
            shard, step, value = map(int, numbers)
            (sent if what == "sent" else acked)[shard, step].add(value)
        return sent, acked


def nonzero(theta: Array) -> dict[int, float]:
    return {int(i): float(theta[i]) for i in theta.nonzero()[0]}


@pytest.mark.parametrize("seed", SEEDS)
def test_theta_is_the_sum_of_exactly_what_was_acknowledged(cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    control = start(cluster)
    workers = Accountants(cluster, control.address)
    control.submit(tables("log"), "j")
    pulled: list[dict[int, float]] = []
    servers = 0
    for at in sorted(chance.sample(range(2, SHARDS * STEPS - 20), KILLS)):
        control.when(lambda s, v=at: s.version > v)
        pulled.append(nonzero(control.theta()["sum"]))
        victim = chance.choice(["server", "server", *workers.processes])
        if victim == "server":
            kill(control.process)
            control = start(cluster, control.address)
            servers += 1
        else:
            workers.replace(victim)
    assert control.finish().state == "done"
    workers.end()
    theta = control.theta()["sum"]
    workers.check(theta)
    _, acked = workers.said()
    assert sum(map(len, acked.values())) >= SHARDS * STEPS - 2 * SHARDS * KILLS
    # What a client was given stays.
    final = nonzero(theta)
    for earlier in pulled:
        assert earlier.items() <= final.items()
    assert servers
    assert control.status().version == SHARDS * STEPS


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_so_it_is_over_several_servers_and_by_the_worker_library(cluster: Cluster, seed: int, count: int) -> None:
    chance = random.Random(3 * seed + count)
    servers = Servers(cluster, count, keep=True)
    coordinator = servers.coordinator
    workers = Accountants(cluster, servers.addresses, "accounting_loop.py")
    job = tables("log")
    job["task"]["use"], job["data"]["source"] = "accounting_loop.py:Sums", "accounting_loop.py:rows"
    job["server"]["partitions"] = count
    coordinator.submit(job, "j")
    # Before that nothing was promised, and the job might begin anew.
    coordinator.when(lambda s: "snapshot of version" in s.durability)
    pulled: list[dict[int, float]] = []
    victims: list[int | str] = [*range(count), *workers.processes, 0, count - 1]
    chance.shuffle(victims)
    for at, victim in zip(sorted(chance.sample(range(20, SHARDS * STEPS - 40), len(victims))), victims, strict=True):
        coordinator = servers.coordinator
        coordinator.when(lambda s, v=at: s.version > v)
        with suppress(grpc.RpcError):
            pulled.append(nonzero(coordinator.theta()["sum"]))
        if isinstance(victim, int):
            servers.kill(victim)
        else:
            workers.replace(victim)
    last = servers.coordinator.finish_at_last()
    assert (last.state, last.version) == ("done", SHARDS * STEPS), last.reason
    workers.end()
    theta = servers.coordinator.theta()["sum"]
    workers.check(theta)
    _, acked = workers.said()
    assert sum(map(len, acked.values())) >= SHARDS * STEPS / 8
    # What a client was given stays.
    assert pulled
    final = nonzero(theta)
    for earlier in pulled:
        assert earlier.items() <= final.items()
    assert "replayed" in cluster.logs()
    assert "begins anew" not in cluster.logs()


def test_the_accounting_can_fail(cluster: Cluster) -> None:
    """Snapshots alone lose what was acknowledged after the last one; the same check says so."""
    job = tables("snapshot")
    job["server"]["snapshot_every_s"] = 3600.0
    control = start(cluster)
    workers = Accountants(cluster, control.address)
    control.submit(job, "j")
    control.when(lambda s: s.version > 40)
    kill(control.process)
    control = start(cluster, control.address)
    assert control.finish().state == "done"
    workers.end()
    _, acked = workers.said()
    assert any(len(values) > 1 for values in acked.values())
