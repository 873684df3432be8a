"""The store: what it serves after an update equals direct calls of the optimizer's functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from paramserver.server.optimizers import make_optimizer
from paramserver.server.optimizers.optimizer import StepInfo
from paramserver.server.store import Store
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout

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
        store.apply(number, number, [0, 1], samples=8)

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
