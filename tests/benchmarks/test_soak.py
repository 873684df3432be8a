"""The soak's verdict tells growth from noise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks/soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def samples(soak: ModuleType, mb_per_hour: float = 0.0, descriptors_per_hour: float = 0.0) -> list[object]:
    """An hour of noise, with outliers and a warm-up, and growth on top."""
    rng = np.random.default_rng(1)
    hours = np.arange(900) / 900
    memory = 90 + rng.normal(0, 5, 900) + 60 * (rng.random(900) < 0.02) + mb_per_hour * hours
    memory[:100] -= np.linspace(50, 0, 100)
    descriptors = 24 + rng.integers(-3, 4, 900) + descriptors_per_hour * hours
    columns = zip(hours, memory, descriptors, rng.integers(2, 9, 900), strict=True)
    return [soak.Sample(3600 * h, m, int(d), 9, int(s)) for h, m, d, s in columns]


def test_noise_outliers_and_a_warm_up_are_not_growth(soak: ModuleType) -> None:
    assert soak.judge(samples(soak)) == []


def test_slow_growth_under_the_noise_is_found(soak: ModuleType) -> None:
    assert [line.split()[0] for line in soak.judge(samples(soak, mb_per_hour=15))] == ["memory_mb"]
    assert [line.split()[0] for line in soak.judge(samples(soak, descriptors_per_hour=4))] == ["descriptors"]


def test_too_few_measurements_prove_nothing(soak: ModuleType) -> None:
    assert "run for longer" in soak.judge(samples(soak)[:8])[0]
