"""`python -m simulation`: run seeds, or one seed with its trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from simulation.seeds import run_all
from simulation.world import World


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description="Simulate training under faults.")
    parser.add_argument("--seed", type=int, nargs="+", help="run these and show their traces")
    parser.add_argument("--seeds", type=int, default=10_000, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="begin with this one")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        for seed in arguments.seed:
            World(seed, trace=print).run()
        return 0
    started = time.perf_counter()
    broken = run_all(range(arguments.first, arguments.first + arguments.seeds), arguments.processes)
    for each in broken:
        print(each, file=sys.stderr)
    print(f"{arguments.seeds} seeds in {time.perf_counter() - started:.1f} s, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
