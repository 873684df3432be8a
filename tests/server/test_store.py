"""The store: what it serves after an update equals direct calls of the optimizer's functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from paramserver.server.events import Contribution
from paramserver.server.optimizers import make_optimizer
from paramserver.server.optimizers.optimizer import StepInfo
from paramserver.server.store import Store
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout


def contributions(version: int, shards: int, samples: int = 4) -> list[Contribution]:
    return [Contribution("w", s, 1, version - 1, version - 1, samples, 1.0) for s in range(shards)]


SHAPES = [("weight", (300, 7)), ("empty", (0, 3)), ("zeros", (5,)), ("bias", (7,))]


def make_job(shards: int = 2, **tables: Any) -> Job:
    return Job.from_dict({"task": {"use": "m"}, "data": {"source": "d", "shards": shards}, **tables})


@pytest.mark.parametrize("chunk", [64, 1 << 18])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "lars", "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1},
        {"name": "lars", "momentum": 0.9, "nesterov": True},
        {"name": "lamb", "weight_decay": 0.1, "epsilon": 1e-6},
    ],
)
def test_a_served_layerwise_step_equals_the_direct_calls(
    options: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paramserver.server.store.CHUNK_BYTES", 4 * chunk)
    rng = np.random.default_rng(5)
    job = make_job(optimizer=options)
    layout = Layout(SHAPES, "float32")
    theta = rng.normal(size=layout.size).astype(np.float32)
    layout.views(theta)["zeros"][...] = 0
    store = Store(job, layout, [theta], total_steps=10)

    optimizer = make_optimizer(job.optimizer)
    assert optimizer.layerwise is not None
    tensors = {name: view.copy().ravel() for name, view in layout.views(theta).items()}
    states = {name: optimizer.init(values.size, "float32") for name, values in tensors.items()}
    for number in range(1, 5):
        sums = rng.normal(size=(2, layout.size)).astype(np.float32)
        for shard in (1, 0):
            store.incoming.hold(shard, store.cut(sums[shard]))
        store.apply(number, number, contributions(number, 2))

        gradients = layout.views((sums[0] + sums[1]) * np.float32(1 / 8))
        for name, values in tensors.items():
            step = StepInfo(number, 0.1)
            direction, state = gradients[name].ravel(), states[name]
            scratch = np.empty((optimizer.scratch_rows, values.size), np.float32)
            optimizer.layerwise.direction(values, direction, state, step, state, scratch)
            ratio = optimizer.layerwise.ratio(*(math.sqrt(sum(float(v) ** 2 for v in x)) for x in (values, direction)))
            step = StepInfo(number, 0.1 * ratio)
            optimizer.update(values, direction, state, step, values, state, scratch)
    for name, view in layout.views(store.theta).items():
        np.testing.assert_allclose(view.ravel(), tensors[name], rtol=2e-6, atol=1e-9, err_msg=name)
    assert not np.array_equal(layout.views(store.theta)["zeros"], np.zeros(5))


def late(shard: int, step: int, version: int, samples: int = 2) -> Contribution:
    return Contribution("w", shard, 1, step, version, samples, 1.0)


@pytest.mark.parametrize(
    "options",
    [{"name": "sgd"}, {"name": "ftrl", "l1": 0.01}, {"name": "adam"}, {"name": "lamb"}],
    ids=lambda options: options["name"],
)
def test_staleness_scaling_divides_the_rate_by_one_plus_the_delay(options: dict[str, Any]) -> None:
    layout = Layout([("w", (4,))], "float64")
    job = make_job(train={"mode": "async", "staleness_scaling": True, "dtype": "float64"}, optimizer=options)
    store = Store(job, layout, [np.ones(4)], total_steps=10)
    optimizer, theta = make_optimizer(job.optimizer), np.ones(4)
    state = optimizer.init(4, "float64")
    for version, computed_at in enumerate([0, 0, 1, 0, 4], start=1):
        gradient = np.array([1.0, -2.0, 0.5, 3.0]) * version
        store.incoming.hold(0, store.cut(2 * gradient))
        store.apply(version, version, [late(0, version - 1, computed_at)])
        freshness = 1 / (1 + version - 1 - computed_at)
        rate = 0.1
        if options["name"] == "ftrl":
            gradient = gradient * freshness
        else:
            rate *= freshness
        scratch = np.empty((optimizer.scratch_rows, 4))
        if optimizer.layerwise:
            optimizer.layerwise.direction(theta, gradient, state, StepInfo(version, rate), state, scratch)
            rate *= optimizer.layerwise.ratio(float(np.linalg.norm(theta)), float(np.linalg.norm(gradient)))
        optimizer.update(theta, gradient, state, StepInfo(version, rate), theta, state, scratch)
    np.testing.assert_allclose(store.theta, theta, rtol=1e-12)


def test_delay_compensation_follows_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards that pull and push in turn, in chunks of two elements, against the equations over whole vectors."""
    monkeypatch.setattr("paramserver.server.store.CHUNK_BYTES", 16)
    strength = 0.7
    layout = Layout([("w", (5,))], "float64")
    job = make_job(train={"mode": "async", "delay_compensation": strength, "dtype": "float64"})
    rng = np.random.default_rng(0)
    theta = rng.normal(size=5)
    store = Store(job, layout, [theta.copy()], total_steps=10)
    pulled, mean_square, steps = {}, np.zeros(5), [0, 0]
    for shard in (0, 1):
        store.granted(shard)
        pulled[shard] = theta.copy()
    for version in range(1, 20):
        shard = int(rng.integers(2))
        gradient = rng.normal(size=5)
        store.incoming.hold(shard, store.cut(2 * gradient))
        store.apply(version, 1, [late(shard, steps[shard], 0)])
        steps[shard] += 1
        mean_square = 0.95 * mean_square + 0.05 * gradient**2
        compensated = gradient + strength / np.sqrt(mean_square + 1e-7) * gradient**2 * (theta - pulled[shard])
        theta = theta - 0.1 * compensated
        store.granted(shard)
        pulled[shard] = theta.copy()
    np.testing.assert_allclose(store.theta, theta, rtol=1e-12)


def test_without_delay_scaling_and_compensation_change_no_bit() -> None:
    rng = np.random.default_rng(3)
    thetas = []
    values = rng.normal(size=(4, 6)).astype(np.float32)
    for extra in ({}, {"staleness_scaling": True, "delay_compensation": 0.5}):
        store = Store(make_job(train={"mode": "async", **extra}), Layout([("w", (6,))], "float32"), [values[3]], 9)
        for version in (1, 2, 3):
            store.granted(0)
            store.incoming.hold(0, store.cut(values[version - 1]))
            store.apply(version, version, [late(0, version - 1, version - 1)])
        thetas.append(store.theta.tobytes())
    assert thetas[0] == thetas[1]
