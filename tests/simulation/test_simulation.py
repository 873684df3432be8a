"""Training under everything that can go wrong, from seeds; see `python -m simulation --help`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.seeds import run_all

#: `make simulate` runs more.
SEEDS = 500

#: With several workers and crashes, with log and switches, with a wild network, and with several servers.
STORIES = (6, 46, 43, 26, 70)


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_promise() -> None:
    broken = run_all(range(SEEDS), processes=os.cpu_count() or 1)
    assert not broken, "\n".join(map(str, broken))


def test_a_seed_tells_the_same_story_everywhere(tmp_path: Path) -> None:
    tellers = [
        subprocess.Popen(
            [sys.executable, "-m", "simulation", "--seed", *map(str, STORIES)],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for directory, seed in ((Path.cwd(), "1"), (tmp_path, "2"))
    ]
    one, other = (teller.communicate()[0] for teller in tellers)
    assert one.count(b"\n") > 10 * len(STORIES)
    assert one == other
