"""Many seeds, on several processes."""

from __future__ import annotations

import gc
from multiprocessing import get_context
from typing import NamedTuple

from simulation.world import World

#: Seeds that one process takes at a time.
CHUNK = 50


class Broken(NamedTuple):
    """A seed that broke a promise."""

    seed: int
    reason: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.reason}\n    make simulate SEED={self.seed}"


def run_all(seeds: range, processes: int) -> list[Broken]:
    """Run the seeds and return those that break a promise, in order."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with get_context("spawn").Pool(processes) as pool:
        found = [broken for part in pool.imap_unordered(run_each, chunks) for broken in part]
    return sorted(found)


def run_each(seeds: range) -> list[Broken]:
    """Run the seeds in this process and return those that break a promise."""
    found = []
    for seed in seeds:
        try:
            World(seed).run()
        except Exception as error:
            found.append(Broken(seed, f"{type(error).__name__}: {error}"))
    gc.collect()
    return found
