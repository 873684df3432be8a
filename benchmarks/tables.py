"""Measures a table beside bare numpy: time of pulling and pushing a batch, and memory beside what must be held.

    python -m benchmarks.tables [--rows 10000000] [--dim 16] [--batch 10000] [--optimizer sgd]

The floor is what no table can do without: `take` and assignment of the batch's rows on a resident array of the same
size, whose places are known. A pull finds the keys and copies their rows out; a push finds them again, reads the rows
(and their optimizer state), updates and writes them. Floor and table are measured in turn, on the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.server.optimizers import Optimizer, StepInfo, make_optimizer
from paramserver.server.tables.rows import Rows
from paramserver.wire.job import OptimizerSection
from paramserver.wire.memory import keep_freed_memory
from paramserver.wire.tables import Table, mix

DIM, BATCH = 16, 10_000
REPEATS = 40
#: Rows that are put in at once.
FILL = 1 << 18


def resident_bytes() -> int:
    """Return what the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Return distinct keys that are spread over all 64 bits."""
    return mix(numbers.astype(np.uint64)).view(np.int64)


def filled(rows: int, dim: int, optimizer: Optimizer) -> Rows:
    """Return a table whose rows have all had an update."""
    table = Rows("t", Table(dim, 0.1), 0, np.dtype(np.float32), optimizer)
    for start in range(0, rows, FILL):
        keys = keys_of(np.arange(start, min(start + FILL, rows)))
        table.update(keys, np.zeros((keys.size, dim), np.float32), StepInfo(1, 0.1))
    return table


def measure(rows: int, dim: int, batch: int, optimizer: str) -> dict[str, Any]:
    """Return the medians, their ratio and the memory."""
    keep_freed_memory()
    rng = np.random.default_rng(0)
    made = make_optimizer(OptimizerSection.model_validate({"name": optimizer}))
    # What compiling and one filling take for the moment is no part of a table.
    filled(min(FILL, rows), dim, made)
    before = resident_bytes()
    table = filled(rows, dim, made)
    held = resident_bytes() - before
    states = len(made.init(0, np.float32))
    raw = rows * dim * 4 * (1 + states)
    bare = np.zeros((rows, dim), np.float32)
    bare += 1
    floor, pull, push = [], [], []
    for number in range(REPEATS):
        # Two batches of their own, so that neither finds in cache what the other has just read.
        places = rng.choice(rows, batch, replace=False)
        started = time.perf_counter()
        gathered = bare.take(places, axis=0)
        bare[places] = gathered
        floor.append(time.perf_counter() - started)
        keys = np.sort(keys_of(rng.choice(rows, batch, replace=False)))
        gradient = np.full((batch, dim), 1e-3, np.float32)
        started = time.perf_counter()
        table.read(keys)
        pulled = time.perf_counter()
        table.update(keys, gradient, StepInfo(number + 2, 0.1))
        push.append(time.perf_counter() - pulled)
        pull.append(pulled - started)
    both = statistics.median(a + b for a, b in zip(pull, push, strict=True))
    return {
        "rows": rows,
        "dim": dim,
        "batch": batch,
        "optimizer": optimizer,
        "floor_ms": statistics.median(floor) * 1e3,
        "pull_ms": statistics.median(pull) * 1e3,
        "push_ms": statistics.median(push) * 1e3,
        "ratio": both / statistics.median(floor),
        "raw_mb": raw / 1e6,
        "held_mb": held / 1e6,
        "memory_ratio": held / raw,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="Measure a table beside bare numpy.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--optimizer", default="sgd")
    arguments = parser.parse_args()
    found = measure(arguments.rows, arguments.dim, arguments.batch, arguments.optimizer)
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in found.items()}))


if __name__ == "__main__":
    main()
