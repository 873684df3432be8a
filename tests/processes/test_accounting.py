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
from pathlib import Path
from typing import Any

import pytest

from processes.accounting_worker import SHARDS, STEPS
from processes.cluster import Array, Cluster, Control
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

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self._cluster, self._control = cluster, control
        self.processes = {f"w{n}": self._start(f"w{n}") for n in range(WORKERS)}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("accounting_worker.py")
        environment = dict(os.environ)
        if roots := environment.get("PYTHONPATH"):
            environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(root) for root in roots.split(os.pathsep))
        command = [sys.executable, str(script), self._control.address, name, str(self._journal)]
        process = subprocess.Popen(command, env=environment)
        self._cluster.processes.append(process)
        return process

    @property
    def _journal(self) -> Path:
        return self._cluster.folder / "journal.txt"

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
    workers = Accountants(cluster, control)
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
    sent, acked = workers.said()
    theta = control.theta()["sum"]
    assert theta.shape == (SHARDS * STEPS,)
    for shard in range(SHARDS):
        for step in range(STEPS):
            counted = -int(theta[shard * STEPS + step])
            # One attempt, and only one: two would add up to a number that nobody sent.
            assert counted in sent[shard, step], (shard, step)
            assert acked[shard, step] <= {counted}, (shard, step)
    assert sum(map(len, acked.values())) >= SHARDS * STEPS - 2 * SHARDS * KILLS
    # What a client was given stays.
    final = nonzero(theta)
    for earlier in pulled:
        assert earlier.items() <= final.items()
    assert servers
    assert control.status().version == SHARDS * STEPS


def test_the_accounting_can_fail(cluster: Cluster) -> None:
    """Snapshots alone lose what was acknowledged after the last one; the same check says so."""
    job = tables("snapshot")
    job["server"]["snapshot_every_s"] = 3600.0
    control = start(cluster)
    workers = Accountants(cluster, control)
    control.submit(job, "j")
    control.when(lambda s: s.version > 40)
    kill(control.process)
    control = start(cluster, control.address)
    assert control.finish().state == "done"
    workers.end()
    _, acked = workers.said()
    assert any(len(values) > 1 for values in acked.values())
