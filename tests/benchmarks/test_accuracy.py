"""The plain loop that training is compared with computes what the perceptron does."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from paramserver.worker.batches import Batch
from paramserver.worker.tasks import load_task


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("accuracy")


def test_the_plain_gradient_is_that_of_the_task(accuracy: ModuleType) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((7, 5)).astype(np.float32), rng.integers(0, 10, 7)
    task = load_task("mlp", {"hidden": [4]})
    batch = Batch(x, y.astype(np.float32), 10)
    theta = task.init(rng, batch)
    _, expected = task.loss_and_grad(theta, batch)
    names = ("w0", "b0", "w1", "b1")
    found = accuracy._gradient([theta[name] for name in names], x, y)
    for name, values in zip(names, found, strict=True):
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-7)


def test_ratios_are_taken_within_each_repeat(accuracy: ModuleType) -> None:
    speeds = {"plain numpy, no server": [100, 50], "one worker": [80, 45], "two workers": [160, 90]}
    runs = {name: [accuracy.Ran(float(rate), 1.0, 0.8) for rate in found] for name, found in speeds.items()}
    lines = accuracy.rows(256, runs)
    assert "| 0.85 (0.80 to 0.90) |" in lines[1]
    assert "| 2.00 (2.00 to 2.00) |" in lines[2]
