"""Trains a job twice, the second time under `kill -9`, frozen processes and faulty messages, and compares the bits."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramserver.client.connection.client import Update
from paramserver.client.launch import LocalCluster
from paramserver.client.proxy import LOSE, REPEAT
from paramserver.client.training import Progress, Result, train
from paramserver.wire.errors import RequestError
from paramserver.wire.job import Job

log = logging.getLogger(__name__)

#: A frozen process goes on after at most this long.
LONGEST_FREEZE_S = 0.5

#: The last kill is due after this share of the steps, since there must be time for what is due when nobody is alive.
LAST_KILL = 0.7

#: Snapshots are taken at least this often, so that most recoveries are from the middle of the run.
SNAPSHOT_EVERY_S = 0.25

#: Told of every act as it happens.
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What came of the two runs."""

    passed: bool
    #: What decided it, in one sentence.
    reason: str
    seed: int
    #: Number of `kill -9` by process name.
    kills: dict[str, int]
    freezes: int
    #: Messages between workers and server that were lost, with their stream, or came twice.
    lost: int
    repeated: int
    theta_sha256: str
    #: Of the run in which nothing happened; empty where the bits depend on the order of arrival (async, ssp).
    undisturbed_sha256: str

    def summary(self) -> dict[str, Any]:
        """Return what `paramserver chaos --json` prints."""
        return asdict(self)


class Chaos:
    """Does harm at `kills` steps that the seed chooses; what it hits is chosen by the seed too.

    Every kill takes one process, the server or a worker; every other one is followed by the freezing of another, and
    those between by a message that is lost or comes twice.
    """

    def __init__(self, seed: int, kills: int, total_steps: int, narrate: Narrate) -> None:
        self._chance = random.Random(seed)
        last = max(1, int(LAST_KILL * total_steps))
        #: Steps at which harm is due, the last one first.
        self._due = sorted((self._chance.randint(1, last) for _ in range(kills)), reverse=True)
        self._narrate = narrate
        self._thawing: list[threading.Timer] = []
        self.kills: dict[str, int] = {}
        self.freezes = self.lost = self.repeated = 0

    def strike(self, step: int, pids: dict[str, int], proxy: int | None = None) -> None:
        """Do what is due by now to the processes that run, and through the proxy to their messages."""
        alive = dict(pids)
        while self._due and step >= self._due[-1] and alive:
            self._due.pop()
            victim = self._choose(sorted(alive))
            self._send(signal.SIGKILL, alive.pop(victim), victim)
            self.kills[victim] = self.kills.get(victim, 0) + 1
            self._narrate(f"step {step}: kill -9 {victim}")
            if alive and sum(self.kills.values()) % 2:
                self._freeze(step, alive)
            elif proxy is not None:
                self._disturb(step, proxy)

    def end(self) -> None:
        """Wait until nobody is frozen any more."""
        for thaw in self._thawing:
            thaw.join()

    def _choose(self, names: list[str]) -> str:
        workers = [name for name in names if name.startswith("worker")]
        servers = [name for name in names if name not in workers]
        # The server is half of the system, however many workers there are, and so are several.
        if servers and (not workers or self._chance.random() < 0.5):
            return servers[0] if len(servers) == 1 else self._chance.choice(servers)
        return self._chance.choice(workers)

    def _freeze(self, step: int, pids: dict[str, int]) -> None:
        name, seconds = self._chance.choice(sorted(pids)), self._chance.uniform(0, LONGEST_FREEZE_S)
        self._narrate(f"step {step}: freeze {name} for {seconds:.2f} s")
        self._send(signal.SIGSTOP, pids[name], name)
        thaw = threading.Timer(seconds, self._send, (signal.SIGCONT, pids[name], name))
        thaw.start()
        self._thawing.append(thaw)
        self.freezes += 1

    def _disturb(self, step: int, proxy: int) -> None:
        if self._chance.random() < 0.5:
            self.lost += 1
            self._narrate(f"step {step}: lose a push or an answer")
            self._send(LOSE, proxy, "proxy")
        else:
            self.repeated += 1
            self._narrate(f"step {step}: send a push or an answer twice")
            self._send(REPEAT, proxy, "proxy")

    @staticmethod
    def _send(number: signal.Signals, pid: int, name: str) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            log.info("%s (process %d) was gone before %s", name, pid, number.name)


def torment(
    job: Job,
    kills: int,
    seed: int,
    run: Path,
    workers: int = 2,
    base: str | Path | None = None,
    progress: Progress | None = None,
    narrate: Narrate = lambda _: None,
    transport: str = "mixed",
) -> Verdict:
    """Train a job undisturbed and then under `kills` random `kill -9`, freezes and faulty messages, and judge.

    In sync mode it passes if θ has the same bits. In async and ssp mode, where the order of arrival shows in the bits,
    it passes if every step of every shard, and every example of it, is counted once.

    Args:
        job: what to train; it has to be one that its server keeps.
        kills: how many processes are killed.
        seed: chooses when and whom.
        run: a directory for both runs, empty or new.
        workers: worker processes.
        base: where relative paths of the job start.
        progress: called with every update of either run.
        narrate: called with every act.
        transport: of the workers, see `LocalCluster`.

    Raises:
        RequestError: if the job keeps nothing, or as `train` does.
        JobFailed: if a run failed.
    """
    if job.server.durability == "none":
        raise RequestError("the job has durability = 'none': it cannot outlive its server; use 'snapshot'")
    if kills < 1:
        raise RequestError(f"kills is {kills}, allowed are 1 and more")
    calm = train(job, workers, run=run / "undisturbed", base=base, progress=progress)
    every_s = min(job.server.snapshot_every_s, SNAPSHOT_EVERY_S)
    often = job.model_copy(update={"server": job.server.model_copy(update={"snapshot_every_s": every_s})})
    chaos = Chaos(seed, kills, calm.steps, narrate)
    clusters: list[LocalCluster] = []

    def look(update: Update) -> None:
        if progress is not None:
            progress(update)
        step = update.points[-1].step if update.points else min(update.status.clock, default=0)
        chaos.strike(step, clusters[0].pids(), clusters[0].proxy_pid)

    try:
        found = train(
            often,
            workers,
            run=run / "disturbed",
            base=base,
            progress=look,
            restarts=2 * kills,
            started=clusters.append,
            transport=transport,
            proxy_seed=seed,
        )
    finally:
        chaos.end()
    passed, reason = _judge(job, calm, found)
    struck = sum(chaos.kills.values())
    if passed and struck < kills:
        passed, reason = False, f"only {struck} of {kills} kills happened before the job ended; use a longer job"
    bits = calm.theta_sha256 if job.train.mode == "sync" else ""
    return Verdict(
        passed=passed,
        reason=reason,
        seed=seed,
        kills=chaos.kills,
        freezes=chaos.freezes,
        lost=chaos.lost,
        repeated=chaos.repeated,
        theta_sha256=found.theta_sha256,
        undisturbed_sha256=bits,
    )


def _judge(job: Job, calm: Result, found: Result) -> tuple[bool, str]:
    if (found.status, found.steps) != (calm.status, calm.steps):
        return False, f"{found.status} after {found.steps} steps, undisturbed {calm.status} after {calm.steps}"
    versions = found.history[-1].version, calm.history[-1].version
    if versions[0] != versions[1]:
        return False, f"θ had {versions[0]} updates, undisturbed {versions[1]}"
    samples = found.history[-1].samples, calm.history[-1].samples
    if samples[0] != samples[1]:
        return False, f"{samples[0]} examples were counted, undisturbed {samples[1]}"
    if job.train.mode != "sync":
        counted = f"{versions[0]} updates and {samples[0]} examples in all"
        return True, f"every shard's {found.steps} steps are counted once, {counted}"
    if found.theta_sha256 != calm.theta_sha256:
        return False, f"θ differs: {found.theta_sha256}, undisturbed {calm.theta_sha256}"
    return True, "the same bits as the undisturbed run"
