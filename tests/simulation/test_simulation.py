"""Training under everything that can go wrong, from seeds; see `python -m simulation --help`."""

from __future__ import annotations

import os

import pytest

from simulation.seeds import run_all
from simulation.world import World

#: `make simulate` runs more.
SEEDS = 1000


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_promise() -> None:
    broken = run_all(range(SEEDS), processes=os.cpu_count() or 1)
    assert not broken, "\n".join(map(str, broken))


def test_a_seed_always_tells_the_same_story() -> None:
    stories = []
    for _ in range(2):
        lines: list[str] = []
        World(11, trace=lines.append).run()
        stories.append(lines)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 10
