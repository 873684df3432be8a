"""The soak's verdict tells growth from noise."""

from __future__ import annotations

import numpy as np

from benchmarks import soak


def samples(mb_per_hour: float = 0.0, descriptors_per_hour: float = 0.0) -> list[soak.Sample]:
    """An hour of noise, with outliers and a warm-up, and growth on top."""
    rng = np.random.default_rng(1)
    hours = np.arange(900) / 900
    memory = 90 + rng.normal(0, 5, 900) + 60 * (rng.random(900) < 0.02) + mb_per_hour * hours
    memory[:100] -= np.linspace(50, 0, 100)
    descriptors = 24 + rng.integers(-3, 4, 900) + descriptors_per_hour * hours
    columns = zip(hours, memory, descriptors, rng.integers(2, 9, 900), strict=True)
    return [soak.Sample(3600 * h, m, int(d), 9, int(s)) for h, m, d, s in columns]


def test_noise_outliers_and_a_warm_up_are_not_growth() -> None:
    assert soak.judge(samples()) == []


def test_slow_growth_under_the_noise_is_found() -> None:
    assert [line.split()[0] for line in soak.judge(samples(mb_per_hour=15))] == ["memory_mb"]
    assert [line.split()[0] for line in soak.judge(samples(descriptors_per_hour=4))] == ["descriptors"]


def test_too_few_measurements_prove_nothing() -> None:
    assert "run for longer" in soak.judge(samples()[:8])[0]
