"""Trains job after job while workers are killed, and looks whether the server's memory and descriptors stay flat.

`python -m benchmarks.soak --seconds 3600`, or `--kills 200` to end after so many `kill -9`. Jobs take turns in mode,
workers in transport. After every job the server is measured; a line through the second three quarters of the
measurements tells growth from noise. Exit status 0: PASS.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.growth import allowed_mb, settled, slope
from paramserver.client import Client, Job
from paramserver.client.launch import START_S, LocalCluster
from paramserver.wire.fingerprint import theta_sha256

#: θ of 3 MB is two chunks over the stream, and a slot per shard in shared memory.
TASK = """
import numpy as np

class Wide:
    def init(self, rng, batch):
        return {"a": np.ones(750_000, np.float32)}

    def loss_and_grad(self, params, batch):
        return 1.0, {"a": params["a"] * np.float32(batch.y.mean())}
"""

MODES = ("sync", "async", "ssp")
WORKERS, STEPS = 4, 150


class Sample(NamedTuple):
    """The server after a job."""

    seconds: float
    #: Without what it shares, which `segments` counts.
    memory_mb: float
    descriptors: int
    threads: int
    #: Mapped segments of shared memory.
    segments: int


def measure(pid: int, seconds: float) -> Sample:
    """Look at a process through /proc."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
    segments = (proc / "maps").read_text().count("/memfd:paramserver")
    descriptors = len(os.listdir(proc / "fd"))
    return Sample(seconds, int(status["RssAnon"].split()[0]) / 1024, descriptors, int(status["Threads"]), segments)


def shared_names() -> set[str]:
    """Return what stands in /dev/shm, but for semaphores of `multiprocessing`, which none of these processes has."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def judge(samples: list[Sample]) -> list[str]:
    """Return what grew; empty if nothing did. Say what was found."""
    counted = settled(samples)
    if len(counted) < 8:
        return [f"only {len(samples)} measurements; run for longer"]
    seconds, *columns = np.array(counted, float).T
    span = seconds[-1] - seconds[0]
    grew = []
    for name, values in zip(Sample._fields[1:], columns, strict=True):
        growth = slope(seconds, values) * span
        allowed = allowed_mb(values) if name == "memory_mb" else 1.0
        print(
            f"{name:<12} mean {np.mean(values):8.1f}, {np.min(values):.1f} to {np.max(values):.1f}, fitted growth "
            f"{growth:+.2f} over {span:.0f} s ({growth / span * 3600:+.2f} per hour), allowed {allowed:.1f}"
        )
        if growth > allowed:
            grew.append(f"{name} grew by {growth:.1f}")
    return grew


class Soak:
    """One cluster, its killer and what was measured."""

    def __init__(self, cluster: LocalCluster, folder: Path, seed: int, pause_s: float) -> None:
        self._cluster, self._folder = cluster, folder
        self._chance, self._pause_s = random.Random(seed), pause_s
        self._began = self._next_kill = time.monotonic()
        #: Job and version at the last kill.
        self._progress = (0, 0)
        self.kills = 0
        self.samples: list[Sample] = []
        self.hashes: set[str] = set()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def train(self, client: Client, number: int) -> None:
        """Run one job to its end, killing workers on the way, and measure the server."""
        mode = MODES[number % len(MODES)]
        job = Job.from_dict(
            {
                "task": {"use": "wide.py:Wide"},
                "data": {"source": "builtin:linear", "shards": 4, "batch_size": 8},
                "train": {"mode": mode, "steps": STEPS},
                "optimizer": {"learning_rate": 0.01},
                "server": {"durability": "none"} if number % 2 else {"snapshot_every_s": 0.5},
            }
        )
        client.submit(job, uuid.uuid4().hex[:12])
        state = ""
        for update in client.watch():
            state = update.status.state
            self._cluster.check()
            self._strike((number, update.status.version))
        if state != "done":
            raise SystemExit(f"FAIL: job {number} is {state}: {update.status.reason}")
        theta, version = client.pull()
        if version != STEPS * (1 if mode == "sync" else 4):
            raise SystemExit(f"FAIL: {mode} made {version} updates")
        if mode == "sync":
            self.hashes.add(theta_sha256(theta))
        self.samples.append(measure(self._cluster.pids()["server"], self.seconds))

    def _strike(self, progress: tuple[int, int]) -> None:
        # On a busy machine the dead could be killed again before they had done anything.
        if progress == self._progress:
            return
        workers = [(name, pid) for name, pid in sorted(self._cluster.pids().items()) if name != "server"]
        if time.monotonic() >= self._next_kill and workers:
            self._next_kill, self._progress = time.monotonic() + self._pause_s, progress
            os.kill(self._chance.choice(workers)[1], signal.SIGKILL)
            self.kills += 1


def main() -> int:
    """Soak and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--kills", type=int, help="end after so many kills")
    parser.add_argument("--pause", type=float, default=1.0, metavar="S", help="between two kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shm_before = shared_names()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wide.py").write_text(TASK, encoding="utf-8")
        (folder / "logs").mkdir()
        # What the supervisor says of every restart is in its log.
        sys.stderr = (folder / "said.log").open("w")
        with (
            LocalCluster(WORKERS, folder / "logs", folder, folder / "state", 10**6, "mixed") as cluster,
            Client(cluster.address, START_S, cluster.check) as client,
        ):
            cluster.wait_for_workers(client)
            server = cluster.pids()["server"]
            soak = Soak(cluster, folder, arguments.seed, arguments.pause)
            number, told = 0, 0.0
            while soak.seconds < arguments.seconds and (arguments.kills is None or soak.kills < arguments.kills):
                soak.train(client, number)
                number += 1
                if soak.seconds >= told:
                    told = soak.seconds + arguments.seconds / 20
                    _, memory_mb, *rest = soak.samples[-1]
                    print(
                        f"{soak.seconds:6.0f} s: {number} jobs, {soak.kills} kills, {memory_mb:.1f} MB, "
                        "{} descriptors, {} threads, {} segments".format(*rest),
                        flush=True,
                    )
            if cluster.pids()["server"] != server:
                raise SystemExit("FAIL: the server died")
    left = sorted(shared_names() - shm_before)
    print(f"{number} jobs, {soak.kills} kill -9 of workers, one server; new in /dev/shm: {left or 'nothing'}")
    grew = judge(soak.samples)
    if len(soak.hashes) > 1:
        grew.append(f"sync jobs ended with {len(soak.hashes)} different θ")
    if left:
        grew.append("something is left in /dev/shm")
    print(f"FAIL: {'; '.join(grew)}" if grew else "PASS: flat memory and descriptors, the same bits in every sync job")
    return 1 if grew else 0


if __name__ == "__main__":
    sys.exit(main())
