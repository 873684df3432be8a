"""Learning-rate schedules: their ends, their shape, and that they meet the warm-up without a jump."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.optimizers.schedule import learning_rate
from paramserver.wire.job import OptimizerSection


def rates(total: int, **options: Any) -> list[float]:
    section = OptimizerSection(**options)
    return [learning_rate(section, count, total) for count in range(1, total + 1)]


def test_constant_is_constant() -> None:
    assert rates(5, learning_rate=0.5) == [0.5] * 5


def test_step_decays_after_every_decay_steps_updates() -> None:
    found = rates(7, learning_rate=1.0, schedule="step", decay_steps=3, decay_rate=0.5)
    assert found == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


def test_cosine_goes_from_the_full_to_the_final_rate() -> None:
    found = rates(5, learning_rate=1.0, schedule="cosine", final_learning_rate=0.2)
    middle = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    assert found[0] == 1.0
    assert found[1] == pytest.approx(middle, rel=1e-15)
    assert found[2] == pytest.approx(0.6, rel=1e-15)
    assert found[4] == 0.2


def test_cosine_stays_at_the_final_rate_after_the_last_step() -> None:
    section = OptimizerSection(schedule="cosine", final_learning_rate=0.01)
    assert learning_rate(section, 1000, 10) == 0.01


def test_a_single_update_still_moves() -> None:
    assert rates(1, learning_rate=0.3, schedule="cosine") == [0.3]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_warm_up_rises_linearly_to_the_full_rate(schedule: str) -> None:
    found = rates(20, learning_rate=0.8, schedule=schedule, warmup_steps=4, decay_steps=5)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-15)
    assert found[3] == 0.8
    assert max(found) == 0.8


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 70),
    schedule=st.sampled_from(["constant", "step", "cosine"]),
)
def test_the_rate_is_positive_rises_in_warm_up_and_never_after(total: int, warmup: int, schedule: str) -> None:
    found = rates(
        total,
        learning_rate=0.1,
        schedule=schedule,
        warmup_steps=warmup,
        decay_steps=7,
        final_learning_rate=0.001,
    )
    top = min(max(warmup, 1), total)
    assert all(0 < rate <= 0.1 for rate in found)
    assert all(a < b for a, b in pairwise(found[:top]))
    assert all(a >= b for a, b in pairwise(found[top - 1 :]))
