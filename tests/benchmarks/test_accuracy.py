"""The plain loop that training is compared with computes what the perceptron does."""

from __future__ import annotations

import numpy as np

from benchmarks import accuracy
from paramserver.worker.batches import Batch
from paramserver.worker.tasks import load_task


def test_the_plain_gradient_is_that_of_the_task() -> None:
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


def test_ratios_are_taken_within_each_repeat() -> None:
    speeds = {accuracy.PLAIN: [100.0, 50.0], accuracy.ONE: [80.0, 45.0]}
    runs = {name: [{"samples_per_s": rate} for rate in found] for name, found in speeds.items()}
    assert accuracy.ratios(runs, accuracy.ONE, accuracy.PLAIN) == [0.8, 0.9]
