"""What a seed means: the job or jobs, how fast everything is, and what goes wrong when."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from paramserver.wire.job import Job

MODES = ("sync", "sync", "sync", "quorum", "ssp", "async", "async")

#: What `log` promises beyond `snapshot` raises `Oracle.promised_version` with every contribution that is acknowledged.
DURABILITIES = ("snapshot",) * 5 + ("log",) * 3 + ("none",)

#: The numbers of servers over which θ is cut, …
PARTITIONS = (1, 1, 1, 1, 1, 1, 2, 3)
#: … and where contributions are logged.
LOGGED_PARTITIONS = PARTITIONS

FAULTS = (
    *("kill server",) * 4,
    *("kill server while it writes",) * 3,
    *("cut power",) * 3,
    *("cut power while it writes",) * 3,
    "end server",
    "stop server",
    *("kill worker",) * 4,
    *("stop worker",) * 3,
    "slow worker",
    *("part",) * 3,
    *("reset",) * 3,
    *("join",) * 2,
    *("leave",) * 2,
    *("cut power after a promise",) * 4,
    "fail disk",
    *("rot",) * 2,
    *("checkpoint",) * 3,
    *("export",) * 2,
    *("switch",) * 4,
    "stop job",
    "sicken worker",
)


@dataclass(frozen=True)
class Focus:
    """What scenarios are drawn from: everything, unless it is narrowed to where one kind of fault can show."""

    modes: tuple[str, ...] = MODES
    durabilities: tuple[str, ...] = DURABILITIES
    faults: tuple[str, ...] = FAULTS
    #: How many faults there are.
    troubles: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 12)
    #: How long they last on average, as a share of the time in which they happen.
    lasting: float = 0.25
    #: How long that time is; about 1 is what the jobs take undisturbed.
    spread: tuple[float, ...] = (0.7, 1.5, 4.0)
    workers: tuple[int, ...] = (0, 1, 1, 2, 2, 3, 5)
    shards: tuple[int, ...] = (1, 2, 3, 3, 4)
    steps: tuple[int, ...] = (1, 2, 3, 5)
    compute_s: tuple[float, ...] = (0.005, 0.05, 0.3)
    disk_s: tuple[float, ...] = (0.0002, 0.005, 0.05)
    momenta: tuple[float, ...] = (0.0, 0.5)
    snapshot_every_s: tuple[float, ...] = (0.2, 1.0, 4.0)
    #: How often single messages are lost, doubled and overtaken.
    wild: float = 0.12
    partitions: tuple[int, ...] = PARTITIONS
    #: How often updates need a norm, for which several servers have to ask each other; none is too long.
    asks: float = 0.25


#: Everything.
ALL = Focus()


class Fault(NamedTuple):
    """Something that happens at a time; `number` chooses the victim."""

    at: float
    kind: str
    number: int
    duration_s: float


@dataclass(frozen=True)
class Scenario:
    """Everything that a seed decides before the simulation begins."""

    jobs: tuple[Job, ...]
    workers: int
    faults: tuple[Fault, ...]
    #: When everything is well again.
    calm_at: float
    latency_s: float
    compute_s: float
    disk_s: float
    chunk_bytes: int
    wild: bool
    #: Whether a worker that is started again has the name of the one before.
    keeps_names: bool
    #: Servers.
    partitions: int

    @property
    def describe(self) -> str:
        """Say what it is about in one line."""
        jobs = ", ".join(
            f"{j.train.mode} (quorum {j.train.quorum}, staleness {j.train.staleness}, max_delay {j.train.max_delay}), "
            f"{j.data.shards} shards, {j.task.options['steps']} steps, momentum {j.optimizer.momentum}, "
            f"durability {j.server.durability}, lease {j.server.lease_s} s, snapshots every "
            f"{j.server.snapshot_every_s} s"
            for j in self.jobs
        )
        return (
            f"{jobs}; {self.partitions} servers, {self.workers} workers, "
            f"{len(self.faults)} faults until {self.calm_at:.1f} s, "
            f"latency {self.latency_s} s, computing {self.compute_s} s, disk {self.disk_s} s, "
            f"chunks of {self.chunk_bytes} bytes{', wild network' if self.wild else ''}"
        )


def draw(rng: Random, focus: Focus = ALL) -> Scenario:
    """Return the scenario of a seed."""
    wild = rng.random() < focus.wild
    durability = rng.choice(focus.durabilities)
    partitions = rng.choice(LOGGED_PARTITIONS if durability == "log" else focus.partitions)
    jobs = tuple(
        draw_job(rng, focus, number, durability, wild, partitions) for number in range(1, 2 + (rng.random() < 0.2))
    )
    workers = rng.choice(focus.workers)
    latency_s, compute_s = rng.choice((0.0005, 0.01, 0.1)), rng.choice(focus.compute_s)
    # About as long as the jobs take undisturbed, or some times as long.
    busy_s = sum((j.train.steps or 0) * (compute_s * j.data.shards / max(workers, 1) + 3 * latency_s) for j in jobs)
    calm_at = 8 * latency_s + 2 * compute_s + busy_s * rng.choice(focus.spread)
    faults = [
        Fault(
            calm_at * rng.random(),
            rng.choice(focus.faults),
            rng.randrange(1 << 16),
            calm_at * rng.expovariate(1 / focus.lasting),
        )
        for _ in range(rng.choice(focus.troubles))
    ]
    return Scenario(
        jobs=jobs,
        workers=workers,
        faults=tuple(sorted(faults)),
        calm_at=calm_at,
        latency_s=latency_s,
        compute_s=compute_s,
        disk_s=rng.choice(focus.disk_s),
        chunk_bytes=1 << 20 if wild or rng.random() < 0.6 else 256,
        wild=wild,
        keeps_names=rng.random() < 0.7,
        partitions=partitions,
    )


def draw_job(rng: Random, focus: Focus, number: int, durability: str, wild: bool, partitions: int) -> Job:
    """Return a job of which nothing is left to chance but its shape."""
    mode, shards, steps = rng.choice(focus.modes), rng.choice(focus.shards), rng.choice(focus.steps)
    train: dict[str, object] = {"mode": mode, "steps": steps, "dtype": "float64", "reduce": "sum"}
    if mode == "quorum":
        train |= {"mode": "sync", "quorum": rng.randint(1, shards)}
    if mode in ("ssp", "async"):
        train |= {"staleness": rng.choice((0, 1, 3)), "max_delay": rng.choice((0, 0, 1, 3))}
    train["refuse_norm"] = 1e6 * (rng.random() < focus.asks)
    clip_norm = 1e6 * (rng.random() < focus.asks)
    return Job.from_dict(
        {
            "task": {"use": "ledger", "options": {"number": number, "steps": steps, "in_one": rng.random() < 0.3}},
            "data": {"source": "ledger", "shards": shards},
            "train": train,
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1.0,
                "momentum": rng.choice(focus.momenta) if mode == "sync" else 0.0,
                "clip_norm": clip_norm,
            },
            "server": {
                "partitions": partitions,
                "durability": durability,
                "snapshot_every_s": rng.choice(focus.snapshot_every_s),
                "lease_s": rng.choice((1.0, 3.0, 10.0)),
                "stuck_s": rng.choice((1.0, 60.0)),
                # Where messages overtake each other, honest workers look like liars.
                "max_bad_pushes": 1 << 30 if wild else 3,
            },
        }
    )
